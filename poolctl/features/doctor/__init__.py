"""`poolctl doctor`: checks of the machine and the pool, a module for each subject, a function for each check."""

from poolctl.feature import Feature, FeatureCommand

FEATURE = Feature(
    package=__name__,
    commands={
        "doctor": FeatureCommand("command", "Machine", "Diagnose this machine and pool, and suggest fixes.")
    },
)
