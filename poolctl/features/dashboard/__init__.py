"""The dashboard: a web page about the pool."""

from poolctl.feature import Feature

FEATURE = Feature(
    package=__name__,
    commands={"dashboard": "command"},
    tables={"dashboard": "table:Dashboard"},
    supervisor="page:DashboardPart",
    web="site:DashboardSite",
    verbs=("dashboard", "history"),
)
