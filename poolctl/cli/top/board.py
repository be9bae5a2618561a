"""The servers as rows: what is known of each, their order, which are shown, and which one is selected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from poolctl.values import Table

# States that need attention come first.
_STATES = (
    "failed", "backoff", "starting", "stopping", "draining", "running", "sleeping", "stopped", "disabled",
)  # fmt: skip
_HEALTH = ("ko", "warn", "unknown", "ok")
# Key of the column that is sorted by → whether the largest comes first.
SORTS = {
    "name": False,
    "state": False,
    "health": False,
    "requests": True,
    "latency": True,
    "memory": True,
    "cpu": True,
    "uptime": True,
    "restarts": True,
    "file": False,
}
_NUMBERS = {
    "requests": "requests_per_second",
    "latency": "latency_p99_seconds",
    "memory": "memory_bytes",
    "cpu": "cpu_percent",
}


class ServerBoard:
    """The rows as they are sorted and filtered, which of them is selected, and which part is on the screen.

    The selection stays on its server while others come and go. `height` is the number of rows on the screen.
    """

    def __init__(self, *, sort: str = "file") -> None:
        self.rows: dict[str, ServerRow] = {}  # in the order of the file
        self.shown: list[ServerRow] = []
        self.height = 1
        self.top = 0
        self.filter = ""
        self.sort = sort
        self.reverse = False
        self.summary: Table = {}
        self._at = 0

    @property
    def selected(self) -> ServerRow | None:
        """The row that keys act on; None when none is shown."""
        return self.shown[self._at] if self.shown else None

    @property
    def visible(self) -> list[ServerRow]:
        """The rows on the screen."""
        return self.shown[self.top : self.top + self.height]

    @property
    def position(self) -> int:
        """Which of the shown rows is selected, from 1; 0 for none."""
        return self._at + 1 if self.shown else 0

    def update(self, items: list[Table]) -> None:
        """Take the newest result; servers that it does not name are gone."""
        rows: dict[str, ServerRow] = {}
        for at, item in enumerate(items):
            name = str(item.get("name", ""))
            row = rows[name] = self.rows.get(name) or ServerRow(at)
            row.at = at
            row.update(item)
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
        self.shown = in_order(matching(self.rows.values(), self.filter), self.sort, self.reverse)
        names = [row.name for row in self.shown]
        at = names.index(before.name) if before is not None and before.name in names else self._at
        self._select(at)

    def _select(self, at: int) -> None:
        self._at = max(0, min(at, len(self.shown) - 1))
        last_top = max(0, len(self.shown) - self.height)
        self.top = min(max(self.top, self._at - self.height + 1), self._at, last_top)


class ServerRow:
    """One server: its item as every command has it, its statistics if there are any, and what they were."""

    __slots__ = ("at", "history", "item", "stats")

    def __init__(self, at: int) -> None:
        self.at = at
        self.item: Table = {}
        self.stats: Table = {}
        self.history: dict[str, Sequence[float | None]] = {}

    def __repr__(self) -> str:
        return f"<Row {self.name} {self.item.get('state')}>"

    @property
    def name(self) -> str:
        """The server's."""
        return str(self.item.get("name", ""))

    def number(self, key: str) -> float | None:
        """A figure of the statistics; None when it is not known."""
        value = self.stats.get(key)
        return float(value) if isinstance(value, (int, float)) else None

    def update(self, item: Table) -> None:
        """Take the newest item."""
        self.item, self.stats = item, item.get("stats") or {}
        self.history = self.stats.get("history") or {}


def matching(rows: Iterable[ServerRow], words: str) -> list[ServerRow]:
    """The rows in which each of the words is found, in name, address, state, health or a tag; case is ignored."""
    wanted = words.lower().split()
    return [row for row in rows if all(word in _text(row) for word in wanted)] if wanted else list(rows)


def in_order(rows: Iterable[ServerRow], sort: str, reverse: bool) -> list[ServerRow]:
    """The rows sorted by a key of SORTS; equal ones by name, unknown figures last."""
    falling = SORTS[sort] is not reverse
    named = sorted(rows, key=lambda row: (row.name, row.at))
    if sort == "file":
        return sorted(named, key=lambda row: row.at, reverse=reverse)
    if sort == "name":
        return named[::-1] if reverse else named
    known = [row for row in named if _value(row, sort) is not None]
    unknown = [row for row in named if _value(row, sort) is None]
    # Stable in both directions: those that are equal stay by name.
    return sorted(known, key=lambda row: _value(row, sort) or 0.0, reverse=falling) + unknown


def _value(row: ServerRow, sort: str) -> float | None:
    if sort == "state":
        return _place(_STATES, str(row.item.get("state")))
    if sort == "health":
        return _place(_HEALTH, str(row.item.get("health")))
    if sort in _NUMBERS:
        return row.number(_NUMBERS[sort])
    value = row.item.get("uptime_seconds" if sort == "uptime" else sort)
    return float(value) if isinstance(value, (int, float)) else None


def _place(order: Sequence[str], word: str) -> float:
    return float(order.index(word)) if word in order else float(len(order))


def _text(row: ServerRow) -> str:
    item = row.item
    words = [item.get(key) or "" for key in ("name", "bind", "expose", "state", "health")]
    return " ".join(map(str, [*words, *(item.get("tags") or ())])).lower()
