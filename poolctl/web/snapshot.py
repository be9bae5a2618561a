"""The servers' last queried state, and the differences of a new one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from poolctl.config import masked_text

Document = dict[str, Any]

FIGURES = (
    "requests_total",
    "requests_per_second",
    "errors_total",
    "in_flight",
    "connections",
    "latency_p50_seconds",
    "latency_p99_seconds",
    "memory_bytes",
    "cpu_percent",
    "loop_lag_seconds",
    "wakes_total",
)


class Snapshot:
    """`items` by name in the order of the file; `latest` are the figures with their history, `shown` without it."""

    def __init__(self, about: Mapping[str, Any] | None = None) -> None:
        keys = ("name", "version", "python", "supervisor_pid", "files")
        self.about = {key: (about or {}).get(key) for key in keys}
        self.items: dict[str, Document] = {}
        self.latest: dict[str, Document] = {}
        self.shown: dict[str, Document] = {}

    @property
    def order(self) -> list[str]:
        """The names in the order of the file."""
        return list(self.items)

    def update(self, items: Iterable[Document]) -> tuple[list[Document], list[str], Document]:
        """The changed servers (uptime, which always changes, aside), the names removed, and the changed figures."""
        before, self.items = self.items, {}
        latest, shown = {}, {}
        changed = []
        for item in items:
            name = item["name"]
            item["expose"] = masked_text(item.get("expose") or "") or None
            figures = item.pop("stats", None) or {}
            self.items[name] = item
            latest[name] = figures
            shown[name] = {key: figures[key] for key in FIGURES if key in figures}
            if _without_uptime(before.get(name)) != _without_uptime(item):
                changed.append(item)
        news = {name: each for name, each in shown.items() if each != self.shown.get(name)}
        self.latest, self.shown = latest, shown
        return changed, [name for name in before if name not in self.items], news


def _without_uptime(item: Document | None) -> Document | None:
    return None if item is None else {key: value for key, value in item.items() if key != "uptime_seconds"}
