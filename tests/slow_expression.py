"""An expression that takes twice as long with each two characters more of its text."""

SLOW_EXPRESSION = "^(a|aa)+$"
HOSTILE_TEXT = "a" * 60 + "b"
