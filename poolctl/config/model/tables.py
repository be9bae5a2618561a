"""The tables of a file besides its servers: metrics, dashboard, notify, events. Their models are loaded when used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from poolctl.config.model.server_keys import ServerKeys
    from poolctl.config.model.table_models import Dashboard, EventsTable, MetricsTable, Notify

TABLE_NAMES = ("metrics", "dashboard", "notify", "events")
# Tables of later versions: using one is a problem, never silently ignored.
NOT_IMPLEMENTED = {
    "gateway": "the gateway",
    "route": "the gateway's [[route]]",
    "stream": "the gateway's [[stream]]",
    "operator": "the gateway's [operator]",
    "proxmox": "the gateway's [proxmox]",
}


class Tables(NamedTuple):
    """The tables in force; None and () where the files have none."""

    metrics: MetricsTable | None = None
    dashboard: Dashboard | None = None
    notify: tuple[Notify, ...] = ()
    events: EventsTable | None = None

    def to_dict(self) -> dict[str, Any]:
        """The tables as a file could have them; no secret is among them, as files hold none."""
        found: dict[str, Any] = {
            name: table.to_dict()
            for name in ("metrics", "dashboard", "events")
            if (table := getattr(self, name)) is not None
        }
        if self.notify:
            found["notify"] = [each.to_dict() for each in self.notify]
        return found


def pool_variables(
    servers: Iterable[ServerKeys], tables: Tables, defaults: Mapping[str, Any] | None = None
) -> frozenset[str]:
    """The variables that `*_env` keys name: they hold secrets of the pool, and no server gets them by itself."""
    found = set(_named(defaults or {}))
    for each in tables:
        for table in each if isinstance(each, tuple) else (each,):
            if table is not None:
                found.update(_named(table.model_dump(warnings=False)))
    # Of a server only its certificate has such a key; `env` is a table of names that are its own.
    for server in servers:
        if server.tls and server.tls is not True and server.tls.password_env:
            found.add(server.tls.password_env)
    return frozenset(found)


def _named(table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        if key == "env":
            continue
        if isinstance(value, dict):
            yield from _named(value)
        elif key.endswith("_env") and isinstance(value, str):
            yield value
