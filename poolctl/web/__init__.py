"""The dashboard: a page about the pool in a process of its own, which is a client of the supervisor like any other."""
