"""The logger's program (see logger_process)."""

from .logger_process import main as main
