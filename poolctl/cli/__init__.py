"""The command line. `main` is its entry point, `app` the Typer application with the list of all commands."""
