"""Servers' output: a process that moves it into rotated files (`logger_process`), and readers of these files.

Standard library only. `bootstrap.command(interpreter, "logs")` runs the writing process.
"""
