"""The live view: `live_view` runs it, `board` is its state, `frames` draws it, `terminal` and `keys` do I/O."""
