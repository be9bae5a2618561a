"""How a worker is made, made ready, drained and ended: one protocol, several runners.

Empty on purpose: the supervisor and the keeper's side import :mod:`poolctl.runners.protocol` without paying for
the runner that they do not use.
"""
