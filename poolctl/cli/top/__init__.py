"""The live view: `live_view` runs it, `board` is its state, `frames` and `table` draw it, `terminal` does the I/O."""
