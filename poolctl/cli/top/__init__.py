"""The live view: `live_view` runs it, `board` is its state, `view` draws it, `terminal` and `keys` do I/O."""
