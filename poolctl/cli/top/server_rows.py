"""The servers as rows: their order, which of them are shown, and which one is selected."""

from __future__ import annotations

from poolctl.control.answers import Measured

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


# States that need attention come first.
_STATES = (
    "failed", "backoff", "starting", "stopping", "draining", "running", "sleeping", "stopped", "disabled",
)  # fmt: skip
_HEALTH = ("ko", "warn", "unknown", "ok")
# The fields compared in each order; the order of the file, and by name, compare nothing else.
SORTS: dict[str, Callable[[Measured], float | None]] = {
    "name": lambda row: None,
    "state": lambda row: _place(_STATES, row.state),
    "health": lambda row: _place(_HEALTH, row.health),
    "requests": lambda row: row.stats.requests_per_second,
    "latency": lambda row: row.stats.latency_p99_seconds,
    "memory": lambda row: row.stats.memory_bytes,
    "cpu": lambda row: row.stats.cpu_percent,
    "uptime": lambda row: row.uptime_seconds,
    "restarts": lambda row: row.restarts,
    "file": lambda row: None,
}
_LARGEST_FIRST = ("requests", "latency", "memory", "cpu", "uptime", "restarts")


class ServerBoard:
    """The rows as they are sorted and filtered, which of them is selected, and which part is on the screen.

    The selection stays on its server while others come and go. `height` is the number of rows on the screen.
    """

    def __init__(self, *, sort: str = "file") -> None:
        self.rows: Sequence[Measured] = ()  # in the order of the file
        self.shown: list[Measured] = []
        self.height = 1
        self.top = 0
        self.filter = ""
        self.sort = sort
        self.reverse = False
        self._at = 0

    @property
    def selected(self) -> Measured | None:
        """The row that keys act on; None when none is shown."""
        return self.shown[self._at] if self.shown else None

    @property
    def visible(self) -> list[Measured]:
        """The rows on the screen."""
        return self.shown[self.top : self.top + self.height]

    @property
    def position(self) -> int:
        """Which of the shown rows is selected, from 1; 0 for none."""
        return self._at + 1 if self.shown else 0

    @property
    def falling(self) -> bool:
        """Whether the largest comes first."""
        return (self.sort in _LARGEST_FIRST) is not self.reverse

    def update(self, rows: Sequence[Measured]) -> None:
        """Take the newest result; servers that it does not name are gone."""
        self.rows = rows
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
        self.shown = self._in_order(matching(self.rows, self.filter))
        names = [row.name for row in self.shown]
        self._select(names.index(before.name) if before is not None and before.name in names else self._at)

    def _select(self, at: int) -> None:
        self._at = max(0, min(at, len(self.shown) - 1))
        last_top = max(0, len(self.shown) - self.height)
        self.top = min(max(self.top, self._at - self.height + 1), self._at, last_top)

    def _in_order(self, rows: list[Measured]) -> list[Measured]:
        """The rows sorted; equal ones by name, unknown figures last."""
        if self.sort in ("file", "name"):
            ordered = rows if self.sort == "file" else sorted(rows, key=lambda row: row.name)
            return ordered[::-1] if self.reverse else ordered
        figures = [(SORTS[self.sort](row), row) for row in sorted(rows, key=lambda row: row.name)]
        known = [(figure, row) for figure, row in figures if figure is not None]
        known.sort(key=lambda each: each[0], reverse=self.falling)
        return [row for _, row in known] + [row for figure, row in figures if figure is None]


def matching(rows: Iterable[Measured], words: str) -> list[Measured]:
    """The rows in which each of the words is found, in name, address, state, health or a tag; case is ignored."""
    wanted = words.lower().split()
    return [row for row in rows if all(word in _text(row) for word in wanted)] if wanted else list(rows)


def _text(row: Measured) -> str:
    return " ".join([row.name, row.bind, row.expose, row.state, row.health, *row.tags]).lower()


def _place(order: Sequence[str], word: str) -> float:
    return order.index(word) if word in order else len(order)
