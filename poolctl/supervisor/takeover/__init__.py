"""Takeover: the state that a supervisor saves for its successor, and the replacement of the keeper."""
