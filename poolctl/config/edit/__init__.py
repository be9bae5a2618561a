"""Changes written back into configuration files, their comments and layout kept."""
