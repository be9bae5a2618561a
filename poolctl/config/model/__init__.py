"""Immutable classes for the tables of a configuration."""
