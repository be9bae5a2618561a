"""Selects servers: the selector language, filters by one field, and time-limited regular expressions."""
