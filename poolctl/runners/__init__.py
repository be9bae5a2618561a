"""How a worker is made, made ready, drained and ended: one protocol, several runners.

Empty on purpose: an import of the protocol loads no runner.
"""
