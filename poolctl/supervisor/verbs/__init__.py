"""What the control socket can be asked: each verb selects, acts through the engine, waits, and reports."""
