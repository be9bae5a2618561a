"""The gateway's process: it accepts clients, and passes or proxies their requests."""
