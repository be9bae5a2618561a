"""The dashboard: a web page about the pool."""

from poolctl.feature import Feature, FeatureCommand

FEATURE = Feature(
    package=__name__,
    commands={
        "dashboard": FeatureCommand(
            "command", "Look", "Print a link that logs one browser in to the dashboard."
        )
    },
    tables={"dashboard": "table:Dashboard"},
    supervisor="page:DashboardPart",
    web="site:DashboardSite",
    verbs=("dashboard", "history"),
)
