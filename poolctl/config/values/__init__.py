"""What a key may hold: kinds, ranges, short forms; and what is wrong with a value."""
