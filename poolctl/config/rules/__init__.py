"""Rules that compare servers and tables with each other, and the JSON Schema of configuration files."""
