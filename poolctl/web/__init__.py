"""The dashboard: a page about the pool in a process of its own, which asks the supervisor as any other client does."""
