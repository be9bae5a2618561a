"""A placed worker: what is heard of it, what it is told and handed, and how it is parted with."""
