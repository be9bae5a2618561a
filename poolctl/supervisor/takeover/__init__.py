"""From one supervisor to the next: what it leaves, what is found of it, and what is saved when the keeper dies."""
