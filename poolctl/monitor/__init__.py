"""What is seen of a pool: its events, its health, its figures, and who is told."""
