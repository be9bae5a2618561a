"""`poolctl top`: `_live_view` runs it, boards hold its state, `_frames` and `_table` draw, `_terminal` does I/O."""

from poolctl.feature import Feature

FEATURE = Feature(package=__name__, commands={"top": "command"})
