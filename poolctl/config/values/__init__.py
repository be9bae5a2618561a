"""The types, ranges and short forms of values in configuration files, and the problems of invalid values."""
