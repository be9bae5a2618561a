"""The slow lane: the whole command line as a Typer application, one module for each group of commands."""

from .application import FAST, WITH_COMMAND, build, perform_args

__all__ = ["FAST", "WITH_COMMAND", "build", "perform_args"]
