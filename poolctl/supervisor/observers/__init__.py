"""Observers of a pool, which do not change it: events, HTTP addresses of the supervisor, metrics."""
