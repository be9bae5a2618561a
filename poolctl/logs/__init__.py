"""Servers' output: a process that moves it into rotated files (`logger_process`), and readers of those files.

Standard library only. `bootstrap.command(interpreter, "logs")` runs the writing process.
"""
