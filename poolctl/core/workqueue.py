"""Which entries are to be decided on, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .state import Entry

AT_ONCE = 8


class Agenda:
    """Entries that may have changed, each once, in the order in which they did.

    One of which an action has come to something goes before those of which nothing has begun: the first of a hundred
    servers are being forked while the sockets of the last ones are opened.
    """

    def __init__(self) -> None:
        self._moved: dict[str, Entry] = {}
        self._others: dict[str, Entry] = {}

    def __bool__(self) -> bool:
        return bool(self._moved or self._others)

    def add(self, entry: Entry, *, moved: bool = False) -> None:
        """Decide on it; `moved`: an action of its own has come to something."""
        (self._moved if moved else self._others)[entry.name] = entry

    def update(self, entries: Iterable[Entry]) -> None:
        """Decide on all of them."""
        for entry in entries:
            self.add(entry)

    def turn(self) -> Iterator[Entry]:
        """The entries to decide on before the loop turns; what is added meanwhile may be among them.

        The first is one of which nothing has come: none is passed over for ever.
        """
        for place in range(AT_ONCE):
            if not self:
                return
            queue = self._moved if self._moved and (place or not self._others) else self._others
            entry = queue.pop(next(iter(queue)))
            self._moved.pop(entry.name, None)
            self._others.pop(entry.name, None)
            yield entry
