"""The gateway: clients reach every server of the pool by host, path or port."""
