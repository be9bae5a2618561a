"""The accept helper: a process that makes potentially blocking calls on shared sockets for the supervisor."""
