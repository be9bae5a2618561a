"""Sleeping servers: watches their listeners, wakes them on a request, and hands connections to the next worker."""
