"""Features: a folder each, with its command. The rest of poolctl imports none of them by name."""
