"""Selects servers: the selector language, filters by one field, and the process that matches regular expressions."""
