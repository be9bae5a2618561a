"""Configuration files as tables, with the place of each key."""
