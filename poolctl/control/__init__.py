"""The control socket: messages, clients, server, and paths."""
