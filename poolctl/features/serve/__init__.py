"""`poolctl serve`: runs one server as one process. `_launch` executes `__main__`, which also answers health probes."""

from poolctl.feature import Feature, FeatureCommand

FEATURE = Feature(
    package=__name__,
    commands={
        "serve": FeatureCommand(
            "command",
            "Lifecycle",
            "Run one server as one process, for a container: no supervisor, no restarts.",
        )
    },
)
