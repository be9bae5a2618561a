"""What the view shows and where the reader is in it; no terminal and no supervisor in here."""

from __future__ import annotations

from typing import Any

from .rows import SORTS, Row, Rows, in_order, matching


class Board:
    """The rows as they are sorted and filtered, which of them is selected, and which part is on the screen.

    The selection stays on its server while others come and go. `height` is the number of rows on the screen.
    """

    def __init__(self, *, sort: str = "file") -> None:
        self.rows = Rows()
        self.shown: list[Row] = []
        self.height = 1
        self.top = 0
        self.filter = ""
        self.sort = sort
        self.reverse = False
        self.summary: dict[str, Any] = {}
        self._at = 0

    @property
    def selected(self) -> Row | None:
        """The row that keys act on; None when none is shown."""
        return self.shown[self._at] if self.shown else None

    @property
    def visible(self) -> list[Row]:
        """The rows on the screen."""
        return self.shown[self.top : self.top + self.height]

    @property
    def position(self) -> int:
        """Which of the shown rows is selected, from 1; 0 for none."""
        return self._at + 1 if self.shown else 0

    def update(self, items: list[dict[str, Any]]) -> None:
        """Take what the supervisor says now."""
        self.rows.update(items)
        self._arrange()

    def move(self, rows: int) -> None:
        """Select another row, so many further down."""
        self._select(self._at + rows)

    def move_to(self, at: int) -> None:
        """Select the row of this number from 0; -1 is the last."""
        self._select(len(self.shown) - 1 if at < 0 else at)

    def resize(self, height: int) -> None:
        """Show so many rows."""
        self.height = max(1, height)
        self._select(self._at)

    def narrow(self, text: str) -> None:
        """Show only the rows in which each of these words is found."""
        self.filter = text
        self._arrange()

    def sort_by(self, sort: str) -> None:
        """Sort by a key of SORTS; by the same once more: the other way round."""
        self.reverse = self.sort == sort and not self.reverse
        self.sort = sort
        self._arrange()

    def sort_next(self, step: int) -> None:
        """Sort by the next key, or the one before."""
        keys = list(SORTS)
        self.sort_by(keys[(keys.index(self.sort) + step) % len(keys)])

    def _arrange(self) -> None:
        before = self.selected
        self.shown = in_order(matching(self.rows.all(), self.filter), self.sort, self.reverse)
        names = [row.name for row in self.shown]
        at = names.index(before.name) if before is not None and before.name in names else self._at
        self._select(at)

    def _select(self, at: int) -> None:
        self._at = max(0, min(at, len(self.shown) - 1))
        last_top = max(0, len(self.shown) - self.height)
        self.top = min(max(self.top, self._at - self.height + 1), self._at, last_top)
