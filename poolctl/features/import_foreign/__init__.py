"""`poolctl import`: converts another tool's configuration to a pool.toml.

A module for each format reads it into a `ForeignPool`, which `_foreign_pool` writes as TOML that validates.
"""

from poolctl.feature import Feature, FeatureCommand

FEATURE = Feature(
    package=__name__,
    commands={
        "import": FeatureCommand(
            "command", "Get started", "Make a pool.toml of another tool's file or command line."
        )
    },
)
