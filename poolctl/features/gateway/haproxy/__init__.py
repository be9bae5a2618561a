"""HAProxy: its configuration, its process, and its figures."""
