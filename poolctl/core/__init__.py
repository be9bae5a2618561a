"""What decides and does: each server as it is wanted and as it is, the actions that lead from one to the other."""
