"""Which route a request takes: routes, their table, the match, and a request's route context. Standard library only.

Gateway and workers use the same table and the same match, so that both decide alike.
"""
