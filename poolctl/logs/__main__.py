"""Runs the logger (see `logger_process.main`)."""

from .logger_process import main as main
