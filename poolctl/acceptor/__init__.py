"""The accept helper: a process that may be blocked by an application, so that the supervisor never is."""
