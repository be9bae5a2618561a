"""Sockets are born here and nowhere else: opened, inherited, numbered, and closed without leaving a trace.

`open` and `unix` make them, `inherit` takes those of systemd, `ports` chooses numbers, `holder` says who is
in the way.
"""
