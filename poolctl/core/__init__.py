"""The lifecycle of servers: their desired state, their actual state, and the actions that reconcile the two."""
