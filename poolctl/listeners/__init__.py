"""The only package that creates listeners: it opens or inherits them, chooses ports, and removes files on close.

`open_listener` creates them, `port_ledger` chooses numbers, `listen_errors` explains errors and
finds the process that uses an address, `sock_diag` asks the kernel about sockets.
"""
