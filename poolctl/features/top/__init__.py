"""`poolctl top`: `_live_view` runs it, `_boards` holds its state, `_frames` draws, `_terminal` does I/O."""

from poolctl.feature import Feature, FeatureCommand

FEATURE = Feature(
    package=__name__,
    commands={
        "top": FeatureCommand("command", "Look", "Show servers live (press ? for the keys).", first=True)
    },
)
