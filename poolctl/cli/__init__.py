"""The command line: ask, render, exit. `main` is the entry point, `app` the complete Typer application."""
