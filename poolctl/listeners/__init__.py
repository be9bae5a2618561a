"""The only place where listeners are made: opened, inherited, numbered, and closed without leaving files.

`open` and `unix` make them, `inherit` takes those of systemd, `ports` chooses numbers, `holder` finds the
process that uses an address.
"""
