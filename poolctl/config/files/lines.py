"""Lines and columns of offsets in a text."""

from __future__ import annotations

from bisect import bisect_right


class Lines:
    """Finds the line of an offset in logarithmic time."""

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
