"""Text that is no configuration, and how much of it is looked at."""

from __future__ import annotations

# The model is five levels deep.
DEEPEST = 100
# 10,000 servers of 25 keys; hostile files are given up before they cost seconds.
MOST_VALUES = 300_000


class ParseError(Exception):
    """The text cannot be parsed; line and column count from 1, 0 is unknown."""

    def __init__(self, message: str, line: int = 0, column: int = 0, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column
        self.hint = hint
