"""Creates all listeners: opens or inherits them, chooses ports, and removes socket files on close.

`open_listener` opens listeners, `port_ledger` chooses port numbers, `listen_errors` explains errors and finds the
process that uses an address, and `sock_diag` queries the kernel about sockets.
"""
