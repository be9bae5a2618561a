"""Matches users' regular expressions in a separate process, which is killed when one takes too long."""
