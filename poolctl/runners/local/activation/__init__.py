"""Servers that sleep: who rings at their doors, what of it wakes them, and how the callers get to the next worker."""
