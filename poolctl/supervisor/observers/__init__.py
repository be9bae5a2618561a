"""Observers of a pool, which change nothing: events, held addresses, metrics."""
