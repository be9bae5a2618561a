"""The command line: ask, render, exit. `main` is the entry point, `typer_app` the complete Typer application."""
