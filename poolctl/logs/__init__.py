"""What servers print: a process that moves it into rotated files (`writer`), and the reading of those files.

Standard library only. `bootstrap.command(interpreter, "logs")` runs the writing process.
"""
