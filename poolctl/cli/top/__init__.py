"""The live view: `live_view` runs it, the boards are its state, `frames` and `table` draw, `terminal` does I/O."""
