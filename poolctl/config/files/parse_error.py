"""A text that cannot be parsed, how much of a text is looked at, and where in it something is."""

from __future__ import annotations

from bisect import bisect_right

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


class Lines:
    """Finds the line of an offset in a text, in logarithmic time."""

    def __init__(self, text: str) -> None:
        self._starts = [0]
        offset = text.find("\n")
        while offset >= 0:
            self._starts.append(offset + 1)
            offset = text.find("\n", offset + 1)

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column, both from 1."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1
