"""The rows of a table: their order, filter and selection."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence


class HasName(Protocol):
    """A row with a unique name."""

    @property
    def name(self) -> str:
        """The name, different for each row."""


Row = TypeVar("Row", bound=HasName)


class Board(Generic[Row]):
    """The sorted and filtered rows, the selected row, and the part on the screen.

    The selection stays on its row while rows are added and removed. `height` is the number of rows on the screen.
    `orders` are the names of the orders, including "problems", "file" and "name", `keys` the keys that choose them.
    """

    orders: ClassVar[Sequence[str]]
    largest_first: ClassVar[Sequence[str]]
    keys: ClassVar[str]
    sample_seconds = 0.0  # seconds between two values of a chart; 0: unknown

    def __init__(self, *, sort: str = "problems") -> None:
        self.rows: Sequence[Row] = ()  # in file order
        self.is_known = False  # a result has arrived
        self.shown: list[Row] = []
        self.height = 1
        self.top = 0
        self.filter = ""
        self.sort = sort
        self.reverse = False
        self._at = 0

    def figure(self, row: Row) -> float | None:
        """The sort key of the row in the current order, which is not by file or name."""
        raise NotImplementedError

    def words(self, row: Row) -> str:
        """The text searched for the words of a filter."""
        raise NotImplementedError

    @property
    def selected(self) -> Row | None:
        """The row that keys act on; None if no row is shown."""
        return self.shown[self._at] if self.shown else None

    @property
    def visible(self) -> list[Row]:
        """The rows on the screen."""
        return self.shown[self.top : self.top + self.height]

    @property
    def position(self) -> int:
        """The position of the selected row among the shown rows, from 1; 0 for none."""
        return self._at + 1 if self.shown else 0

    @property
    def falling(self) -> bool:
        """Whether the largest value comes first."""
        return (self.sort in self.largest_first) is not self.reverse

    def update(self, rows: Sequence[Row]) -> None:
        """Take the newest result, which replaces all rows."""
        self.rows, self.is_known = rows, True
        self._arrange()

    def move(self, rows: int) -> None:
        """Move the selection down by `rows`."""
        self._select(self._at + rows)

    def move_to(self, at: int) -> None:
        """Select the row with this index; -1 is the last."""
        self._select(len(self.shown) - 1 if at < 0 else at)

    def resize(self, height: int) -> None:
        """Set the number of rows on the screen."""
        self.height = max(1, height)
        self._select(self._at)

    def narrow(self, text: str) -> None:
        """Show only rows that contain all of these words, ignoring case."""
        self.filter = text
        self._arrange()

    def sort_by(self, sort: str) -> None:
        """Sort by an order, or reverse it if it is the current one, and select the first row."""
        self.reverse = self.sort == sort and not self.reverse
        self.sort = sort
        self._arrange()
        self._select(0)

    def sort_next(self, step: int) -> None:
        """Sort by the next or previous order."""
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
        """The sorted rows: equal rows by name, problems in file order, unknown figures last."""
        if self.sort == "problems":
            return sorted(rows, key=lambda row: self.figure(row) or 0.0, reverse=self.reverse)
        if self.sort in ("file", "name"):
            ordered = rows if self.sort == "file" else sorted(rows, key=lambda row: row.name)
            return ordered[::-1] if self.reverse else ordered
        figures = [(self.figure(row), row) for row in sorted(rows, key=lambda row: row.name)]
        known = [(figure, row) for figure, row in figures if figure is not None]
        known.sort(key=lambda each: each[0], reverse=self.falling)
        return [row for _, row in known] + [row for figure, row in figures if figure is None]
