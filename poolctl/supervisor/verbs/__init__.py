"""What the control socket can be asked: each verb selects, acts through the core, waits, and reports."""
