"""The tables of a configuration and their keys: plain values that do not change."""
