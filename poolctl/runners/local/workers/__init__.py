"""A placed worker: its messages, the commands and descriptors that it gets, and how it is stopped."""
