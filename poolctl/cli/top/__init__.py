"""The live view: `session` runs it, `board` is its state, `view` draws it, `screen` and `keys` are the terminal."""
