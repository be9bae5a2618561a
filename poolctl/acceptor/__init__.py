"""The accept helper: a process for calls on shared sockets that could block, so that the supervisor never blocks."""
