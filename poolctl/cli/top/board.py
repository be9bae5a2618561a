"""Rows of a table: their order, which of them are shown, and which one is selected."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence


class HasName(Protocol):
    """Something with a name of its own."""

    @property
    def name(self) -> str:
        """Unlike that of any other row."""


Row = TypeVar("Row", bound=HasName)


class Board(Generic[Row]):
    """The rows as they are sorted and filtered, which of them is selected, and which part is on the screen.

    The selection stays on its row while others come and go. `height` is the number of rows on the screen. `orders` are
    the names of the orders, `keys` the keys that choose them; "problems", "file" and "name" are three of them.
    """

    orders: ClassVar[Sequence[str]]
    largest_first: ClassVar[Sequence[str]]
    keys: ClassVar[str]
    sample_seconds = 0.0  # between two values of a chart; 0: unknown

    def __init__(self, *, sort: str = "problems") -> None:
        self.rows: Sequence[Row] = ()  # in the order of the file
        self.is_known = False  # there was a result
        self.shown: list[Row] = []
        self.height = 1
        self.top = 0
        self.filter = ""
        self.sort = sort
        self.reverse = False
        self._at = 0

    def figure(self, row: Row) -> float | None:
        """What the row is sorted by in the present order, which is neither that of the file nor by name."""
        raise NotImplementedError

    def words(self, row: Row) -> str:
        """The text in which the words of a filter are found."""
        raise NotImplementedError

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

    @property
    def falling(self) -> bool:
        """Whether the largest comes first."""
        return (self.sort in self.largest_first) is not self.reverse

    def update(self, rows: Sequence[Row]) -> None:
        """Take the newest result; rows that are not in it are gone."""
        self.rows, self.is_known = rows, True
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
        """Show only the rows in which each of these words is found; case is ignored."""
        self.filter = text
        self._arrange()

    def sort_by(self, sort: str) -> None:
        """Sort by one of the orders; by the same once more: the other way round. The first row is selected then."""
        self.reverse = self.sort == sort and not self.reverse
        self.sort = sort
        self._arrange()
        self._select(0)

    def sort_next(self, step: int) -> None:
        """Sort by the next order, or the one before."""
        orders = list(self.orders)
        self.sort_by(orders[(orders.index(self.sort) + step) % len(orders)])

    def _arrange(self) -> None:
        before = self.selected
        wanted = self.filter.lower().split()
        found = [row for row in self.rows if all(word in self.words(row).lower() for word in wanted)]
        self.shown = self._in_order(found)
        names = [row.name for row in self.shown]
        self._select(names.index(before.name) if before is not None and before.name in names else self._at)

    def _select(self, at: int) -> None:
        self._at = max(0, min(at, len(self.shown) - 1))
        last_top = max(0, len(self.shown) - self.height)
        self.top = min(max(self.top, self._at - self.height + 1), self._at, last_top)

    def _in_order(self, rows: list[Row]) -> list[Row]:
        """The rows sorted; equal ones by name, problems as in the file; unknown figures last."""
        if self.sort == "problems":
            return sorted(rows, key=lambda row: self.figure(row) or 0.0, reverse=self.reverse)
        if self.sort in ("file", "name"):
            ordered = rows if self.sort == "file" else sorted(rows, key=lambda row: row.name)
            return ordered[::-1] if self.reverse else ordered
        figures = [(self.figure(row), row) for row in sorted(rows, key=lambda row: row.name)]
        known = [(figure, row) for figure, row in figures if figure is not None]
        known.sort(key=lambda each: each[0], reverse=self.falling)
        return [row for _, row in known] + [row for figure, row in figures if figure is None]
