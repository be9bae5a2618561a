"""The dashboard: a page about the pool in a process of its own, which is a client of the supervisor like any other."""

from poolctl.feature import Feature, Trial

FEATURE = Feature(
    package=__name__,
    commands={"dashboard": "command"},
    tables={"dashboard": "table:Dashboard"},
    supervisor="page:DashboardPart",
    verbs=("dashboard", "history"),
    trial=Trial(tables={"dashboard": {"bind": "unix:dashboard.sock"}}, verb="dashboard"),
)
