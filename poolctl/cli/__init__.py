"""The command line: `main` is the entry point, `app` the Typer application with the list of all commands."""
