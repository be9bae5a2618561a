"""How a worker is made, made ready, drained and ended: one protocol, several runners.

Empty on purpose: whoever imports the protocol does not pay for a runner that it does not use.
"""
