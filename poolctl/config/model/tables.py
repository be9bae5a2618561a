"""The tables of a file beside its servers: metrics, dashboard, notify, events. Their models are loaded when used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from poolctl.config.model.table_models import Dashboard, EventsTable, Metrics, Notify

TABLE_NAMES = ("metrics", "dashboard", "notify", "events")


class Tables(NamedTuple):
    """What is in force of them; None and () where the files say nothing."""

    metrics: Metrics | None = None
    dashboard: Dashboard | None = None
    notify: tuple[Notify, ...] = ()
    events: EventsTable | None = None

    def to_dict(self) -> dict[str, Any]:
        """The tables as a file could have them; no secret is among them, as none stands in a file."""
        found: dict[str, Any] = {
            name: table.to_dict()
            for name in ("metrics", "dashboard", "events")
            if (table := getattr(self, name)) is not None
        }
        if self.notify:
            found["notify"] = [each.to_dict() for each in self.notify]
        return found
