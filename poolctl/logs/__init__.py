"""Servers' output: a process that moves it into rotated files (`writer`), and readers of those files.

Standard library only. `bootstrap.command(interpreter, "logs")` runs the writing process.
"""
