"""The dashboard: a web page about the pool, served by a process that queries the supervisor's control socket."""

from poolctl.feature import Feature, UpgradeRehearsal

FEATURE = Feature(
    package=__name__,
    commands={"dashboard": "command"},
    tables={"dashboard": "table:Dashboard"},
    supervisor="page:DashboardPart",
    verbs=("dashboard", "history"),
    trial=UpgradeRehearsal(tables={"dashboard": {"bind": "unix:dashboard.sock"}}, verb="dashboard"),
)
