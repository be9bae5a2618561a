"""Observers of a pool, which do not change it: they record events, and report metrics and health."""
