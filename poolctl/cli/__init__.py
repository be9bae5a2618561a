"""The command line. `main` is its entry point, `typer_app` the complete Typer application."""
