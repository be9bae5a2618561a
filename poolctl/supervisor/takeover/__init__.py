"""From one supervisor to the next: the state that it leaves, how it is found, and what outlives the keeper."""
