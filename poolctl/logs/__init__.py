"""The output of servers: a process that moves it into rotated files (`logger_process`), and readers of these files.

Uses the standard library only. `bootstrap.command(interpreter, "logs")` runs the logger.
"""
