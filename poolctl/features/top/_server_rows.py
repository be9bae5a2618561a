"""The servers as rows."""

from __future__ import annotations

from poolctl.control.statistics_answers import Measured

from ._board import Board

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


# States that need attention come first.
_STATES = (
    "failed", "backoff", "starting", "stopping", "draining", "running", "sleeping", "completed", "stopped",
    "disabled",
)  # fmt: skip
_HEALTH = ("ko", "warn", "unknown", "ok")
_PASSING = ("starting", "stopping", "draining")


def _problem(row: Measured) -> float:
    """The rank of a server: 0 failing, 1 possibly failing, 2 in transition, 3 otherwise."""
    if row.state in ("failed", "backoff") or row.health == "ko":
        return 0.0
    if row.health == "warn" or (row.state == "running" and not row.ready):
        return 1.0
    return 2.0 if row.state in _PASSING else 3.0


# The fields compared in each order except file and name.
SORTS: dict[str, Callable[[Measured], float | None]] = {
    "problems": _problem,
    "name": lambda row: None,
    "state": lambda row: _place(_STATES, row.state),
    "health": lambda row: _place(_HEALTH, row.health),
    "requests": lambda row: row.stats.requests_per_second,
    "errors": lambda row: row.stats.errors_per_second,
    "latency": lambda row: row.stats.latency_p99_seconds,
    "memory": lambda row: row.stats.memory_bytes,
    "cpu": lambda row: row.stats.cpu_percent,
    "uptime": lambda row: row.uptime_seconds,
    "restarts": lambda row: row.restarts,
    "file": lambda row: None,
}


class ServerBoard(Board[Measured]):
    """The servers as rows; filters search name, address, state, health and tags."""

    orders, keys = tuple(SORTS), "PNSHRELMCUXF"
    largest_first = ("requests", "errors", "latency", "memory", "cpu", "uptime", "restarts")

    def update(self, rows: Sequence[Measured]) -> None:
        """See Board."""
        self.sample_seconds = rows[0].stats.history.interval_seconds if rows else 0.0
        super().update(rows)

    def figure(self, row: Measured) -> float | None:
        """See Board."""
        return SORTS[self.sort](row)

    def words(self, row: Measured) -> str:
        """See Board."""
        return " ".join([row.name, row.bind, row.expose, row.state, row.health, *row.tags])


def _place(order: Sequence[str], word: str) -> float:
    return order.index(word) if word in order else len(order)
