"""The verbs (requests) of the control socket: each selects servers, acts through the core, and reports the result."""
