"""The keys of a configuration: their kinds, ranges and defaults, and the rules between them."""
