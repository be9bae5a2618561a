"""The live view: `live_view` runs it, `server_rows` is its state, `frames` and `table` draw, `terminal` does I/O."""
