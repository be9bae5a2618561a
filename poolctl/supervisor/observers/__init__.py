"""Observers of a pool, which decide nothing: events, statistics, metrics, features."""
