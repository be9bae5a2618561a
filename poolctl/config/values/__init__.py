"""The values of keys: kinds, ranges, short forms; and the problems of a value."""
