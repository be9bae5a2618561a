"""Changes of a pool: by a command, by its changed files, and written back to the files."""
