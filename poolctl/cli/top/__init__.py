"""The live view: `live_view` runs it, boards hold its state, `frames` and `table` draw, `terminal` does I/O."""
