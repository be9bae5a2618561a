"""Checks of the machine and the pool: one file for each subject, each check a function of the context."""
