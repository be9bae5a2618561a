"""Regular expressions of users, matched in a process of its own that is ended when one takes too long."""
