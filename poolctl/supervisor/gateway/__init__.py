"""The gateway as the supervisor sees it: its process, its listeners, the route table, and the routed servers."""
