"""The control socket: its messages, its clients and its server, and where a pool keeps it."""
