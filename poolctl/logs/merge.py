"""Lines of several logs that are read one after the other, in the order of time."""

from __future__ import annotations

from .line import Line
from .read import in_order

# Longer than it takes from a line's time to its being in the file, and than a reader's round through the files.
SETTLE_SECONDS = 0.03


class Merge:
    """Holds each batch back until the next: while one file was read, an earlier line may have come to another."""

    def __init__(self) -> None:
        self._held: list[Line] = []

    @property
    def holds(self) -> bool:
        """Whether there are lines to be asked for again, SETTLE_SECONDS later."""
        return bool(self._held)

    def take(self, lines: list[Line]) -> list[Line]:
        """The lines that none can come before any more, in order; `lines` were read just now."""
        newest = max((line.time for line in self._held), default="")
        merged = in_order(iter([*self._held, *lines]))
        due = sum(line.time <= newest for line in merged) if self._held else 0
        self._held = merged[due:]
        return merged[:due]

    def rest(self) -> list[Line]:
        """What is held."""
        held, self._held = self._held, []
        return held
