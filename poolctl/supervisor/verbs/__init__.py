"""The verbs of the control socket: each selects servers, acts through the core, waits, and reports."""
