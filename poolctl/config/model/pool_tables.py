"""The tables of a file besides its servers: pool, metrics, dashboard, notify, events. Most files have few of them.

Those of the gateway have a module of their own, imported when a file has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from poolctl.config.model.section import Section, Table, field, hidden, required
from poolctl.config.model.server_keys import ServerKeys
from poolctl.config.model.server_sections import TLSConfig
from poolctl.config.values.problems import Tree

if TYPE_CHECKING:
    from poolctl.config.model.gateway_tables import GatewayConfig, RouteConfig, StreamConfig
    from poolctl.config.model.operator_table import OperatorTable
    from poolctl.config.model.proxmox_table import ProxmoxTable
    from poolctl.config.model.registration_table import RegistrationTable
    from poolctl.config.values.table_types import Handlers, Kinds, MetricsPath, PortRange, Topic, Url
    from poolctl.config.values.value_types import (
        Argument,
        Bind,
        Duration,
        FileCount,
        FilePath,
        Name,
        Positive,
        Size,
        Text,
        Truth,
        Words,
    )

KINDS = "poolctl.config.values.table_types"
GATEWAY_TABLES = ("gateway", "route", "stream")
TABLE_NAMES = (
    "metrics",
    "dashboard",
    "notify",
    "events",
    "operator",
    "proxmox",
    "registration",
    *GATEWAY_TABLES,
)
# Tables of which a file has a list.
LISTED = ("notify", "route", "stream")


class PoolSettings(Section):
    """The table [pool]."""

    name: Name | None = field(None, "Names the pool; left out: derived from the path of the file.")
    port_range: PortRange = field((20000, 29999), "The ports that `auto` chooses from.")
    handlers: Handlers | None = field(
        None, '"module:function" that returns the apps by their handler_key, for servers without their own.'
    )

    def to_dict(self) -> dict[str, Tree]:
        """The settings as a file would have them, unset keys left out."""
        return super().to_dict() | {"port_range": "-".join(map(str, self.port_range))}


class MetricsTable(Table):
    """[metrics]: the endpoint for a Prometheus server."""

    bind: Bind = field("127.0.0.1:9464", "The address of the endpoint.")
    path: MetricsPath = field("/metrics", "The path of the metrics.")


class Dashboard(Table):
    """[dashboard]: the web page of the pool."""

    bind: Bind = field("127.0.0.1:9465", "The address of the page.")
    token_file: FilePath | None = field(
        None, "A file that holds the token; left out: dashboard.token in the state directory."
    )
    token_env: Text | None = field(None, "The environment variable that holds the token.")
    hosts: Words = field((), "Names by which browsers may request the page, besides addresses and localhost.")
    tls: TLSConfig | Literal[False] = field(False, "The certificate of the page.")
    insecure: Truth = field(False, "Whether other machines may reach it without tls.")


class Notify(Table):
    """[[notify]]: a receiver of notifications about problems and their end."""

    name: Name | None = field(None, "Names it in events and in `poolctl notify`; left out: its type.")
    type: Literal["webhook", "ntfy", "gotify", "slack", "command"] = required(
        description="How notifications are sent."
    )
    url: Url | None = field(None, "The receiver's address; of ntfy and gotify the server.")
    url_env: Text | None = field(None, "The environment variable that holds the url.")
    url_file: FilePath | None = field(None, "A file that holds the url.")
    token_env: Text | None = field(None, "The environment variable that holds the token.")
    token_file: FilePath | None = field(None, "A file that holds the token.")
    topic: Topic | None = field(None, "The topic of ntfy.")
    command: Argument | None = field(None, "A program that reads the message from standard input.")
    events: Kinds = field(("lifecycle", "health", "recovery", "pool"), "The kinds of events that are sent.")
    servers: Words = field((), 'Names or wildcards of servers, "tag:T" for their tags; left out: all.')
    min_severity: Literal["info", "warning", "error"] = field("warning", "The lowest severity that is sent.")
    resolved: Truth = field(True, "Whether the end of a problem is sent too.")
    delay: Duration = field(1.0, "How long events are gathered; a problem that ends meanwhile is not sent.")
    repeat: Duration = field(4 * 3600.0, "When a problem that lasts is sent again; 0 is never.")
    timeout: Positive = field(10.0, "How long one attempt may take.")
    retry_for: Duration = field(3600.0, "How long failed attempts are repeated, with backoff.")
    ca: FilePath | None = field(
        None, "The CA certificates that the receiver's is checked against; left out: the system's."
    )

    written: str | None = hidden(None)

    @property
    def label(self) -> str:
        """The name by which people know it."""
        return self.name or self.type

    def to_dict(self) -> dict[str, Tree]:
        """The table as a file could have it; a url with references as it was written, as their values are secret."""
        found = super().to_dict()
        return found | {"url": self.written} if self.written else found


class EventsTable(Table):
    """[events]: the journal."""

    path: FilePath | None = field(None, "The file. Left out: events.jsonl in the state directory.")
    max_size: Size = field(10 * 1024 * 1024, "The file is rotated when it is larger.")
    keep: FileCount = field(5, "Number of rotated files.")
    max_age: Positive | None = field(None, "The file is rotated when it is older. Left out: never.")


MODELS: dict[str, type[Table]] = {
    "metrics": MetricsTable,
    "dashboard": Dashboard,
    "notify": Notify,
    "events": EventsTable,
}


class Tables(NamedTuple):
    """The tables in force; None and () where the files have none."""

    metrics: MetricsTable | None = None
    dashboard: Dashboard | None = None
    notify: tuple[Notify, ...] = ()
    events: EventsTable | None = None
    gateway: GatewayConfig | None = (
        None  # there is one where a file has [gateway], a [[route]] or a [[stream]]
    )
    proxmox: ProxmoxTable | None = None
    routes: tuple[RouteConfig, ...] = ()
    streams: tuple[StreamConfig, ...] = ()
    operator: OperatorTable | None = None
    registration: RegistrationTable | None = None

    def by_name(self) -> dict[str, Table | tuple[Table, ...] | None]:
        """The tables by the names that files have for them."""
        found = self._asdict()
        found |= {"route": found.pop("routes"), "stream": found.pop("streams")}
        return {name: found[name] for name in TABLE_NAMES}

    def to_dict(self) -> dict[str, Tree]:
        """The tables as a file could have them; no secret is among them, as files hold none."""
        return {
            name: [each.to_dict() for each in table] if isinstance(table, tuple) else table.to_dict()
            for name, table in sorted(self.by_name().items(), key=lambda each: each[0] in LISTED)
            if table
        }


def pool_variables(
    servers: Iterable[ServerKeys], tables: Tables, defaults: Mapping[str, Tree] | None = None
) -> frozenset[str]:
    """The variables that `*_env` keys name: they hold secrets of the pool, and no server gets them by itself."""
    found = set(_named(defaults or {}))
    for each in tables:
        for table in each if isinstance(each, tuple) else (each,):
            if table is not None:
                found.update(_named(table))
    # Of a server only its certificate has such a key; `env` is a table of names that are its own.
    for server in servers:
        if server.tls and server.tls is not True and server.tls.password_env:
            found.add(server.tls.password_env)
    return frozenset(found)


def _named(table: Section | Mapping[str, Tree]) -> Iterator[str]:
    # Not of their documents: those of many routes would take seconds.
    for key, value in table if isinstance(table, Section) else table.items():
        if isinstance(value, str):
            if key.endswith("_env"):
                yield value
        elif key != "env":
            for each in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(each, (Section, dict)):
                    yield from _named(each)
