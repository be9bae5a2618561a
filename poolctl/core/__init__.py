"""One lifecycle for all pools: desired state and actual state of each server, and the actions between the two."""
