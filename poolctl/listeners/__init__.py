"""The only place where listeners are made: opened, inherited, numbered, and closed without leaving files.

`open_listener` and `unix_listener` make them, `port_ledger` chooses numbers, `listen_errors` explains errors and finds
the process that uses an address, `sock_diag` asks the kernel about sockets.
"""
