"""The tables of a file besides its servers: pool, metrics, dashboard, notify, events, and the rules between their keys.

Most files have few of them: the validator of each is built when it is first used. Those of the gateway have a module of
their own, imported when a file has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from poolctl.address import Address, parse
from poolctl.config.model.key_rules import app_findings
from poolctl.config.model.normalise import STEPS, absolute
from poolctl.config.model.problems import Finding, Path, Tree
from poolctl.config.model.server_keys import ServerKeys
from poolctl.config.model.server_sections import Section, Table, TLSConfig
from poolctl.config.model.validation_errors import validated
from poolctl.config.model.value_types import (
    Argument,
    BadValue,
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
    field,
    host_and_port,
    is_port,
)

if TYPE_CHECKING:
    from poolctl.config.model.gateway_tables import GatewayConfig, RouteConfig, StreamConfig
    from poolctl.config.model.operator_table import OperatorTable
    from poolctl.config.model.proxmox_table import ProxmoxTable

GATEWAY_TABLES = ("gateway", "route", "stream")
TABLE_NAMES = ("metrics", "dashboard", "notify", "events", "operator", "proxmox", *GATEWAY_TABLES)
# Tables of which a file has a list.
LISTED = ("notify", "route", "stream")

PORT_RANGE_ALLOWED = '"FIRST-LAST", ports from 1 to 65535'


def _port_range(value: object) -> tuple[int, int]:
    text = "-".join(map(str, value)) if isinstance(value, tuple) else value
    ports = (
        re.fullmatch(r"\s*(\d{1,20})\s*-\s*(\d{1,20})\s*", text, re.ASCII) if isinstance(text, str) else None
    )
    if ports is None:
        raise BadValue(f"{str(value)[:60]!r} is not a range of ports", PORT_RANGE_ALLOWED)
    if not 1 <= int(ports[1]) <= int(ports[2]) <= 65535:
        raise BadValue(f"{ports[0][:60]!r} is not within 1-65535, the smaller first", PORT_RANGE_ALLOWED)
    return int(ports[1]), int(ports[2])


def _handlers(value: Tree) -> Tree:
    if isinstance(value, str) and app_findings(value):
        raise BadValue(f"{value[:60]!r} is not module:function", '"module:function"')
    return value


KINDS = Literal["lifecycle", "health", "config", "audit", "recovery", "scale", "wake", "notify", "pool"]


def _url(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    host, port = host_and_port(rest) or ("", "")
    is_web = scheme.lower() in ("http", "https") and separator and host and is_port(port)
    if not is_web or not text.isprintable():
        # The address itself may be the secret, and is not repeated.
        raise BadValue("this is no address of a web service", '"https://HOST/PATH"')
    return text


Url = Annotated[str, AfterValidator(_url)]
MetricsPath = Annotated[str, Field(pattern=r"^/[^\x00-\x20\x7f?#]*$")]
Topic = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Kinds = Annotated[tuple[KINDS, ...], Field(strict=False)]


class PoolSettings(Section):
    """The table [pool]."""

    name: Name | None = field(None, "Names the pool; left out: derived from the path of the file.")
    port_range: Annotated[
        tuple[int, int],
        BeforeValidator(_port_range),
        WithJsonSchema({"type": "string", "pattern": r"^\s*\d{1,5}\s*-\s*\d{1,5}\s*$"}),
    ] = field((20000, 29999), "The ports that `auto` chooses from.")
    handlers: Annotated[str, BeforeValidator(_handlers)] | None = field(
        None, '"module:function" that returns the apps by their handler_key, for servers without their own.'
    )

    def to_dict(self) -> dict[str, Tree]:
        """The settings as a file would have them, unset keys left out."""
        return self.model_dump(exclude_none=True) | {"port_range": "-".join(map(str, self.port_range))}


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
    type: Literal["webhook", "ntfy", "gotify", "slack", "command"] = Field(
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

    written: str | None = Field(default=None, exclude=True, repr=False)

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
                found.update(_named(table.model_dump(warnings=False)))
    # Of a server only its certificate has such a key; `env` is a table of names that are its own.
    for server in servers:
        if server.tls and server.tls is not True and server.tls.password_env:
            found.add(server.tls.password_env)
    return frozenset(found)


def _named(table: Mapping[str, Tree]) -> Iterator[str]:
    for key, value in table.items():
        inner = value if isinstance(value, (list, tuple)) else (value,)
        if key != "env" and any(isinstance(each, dict) for each in inner):
            for each in inner:
                yield from _named(each) if isinstance(each, dict) else ()
        elif key.endswith("_env") and isinstance(value, str):
            yield value


_PATHS = ("path", "token_file", "url_file", "ca")
_SOURCES = ("url", "url_env", "url_file")


def with_absolute_paths(name: str, table: dict[str, Tree], base_dir: str) -> dict[str, Tree]:
    """The table with its paths made absolute, from the directory of its file."""
    if name in GATEWAY_TABLES:
        from poolctl.config.model.gateway_tables import with_absolute_addresses

        return with_absolute_addresses(table, base_dir)
    if name == "proxmox":
        from poolctl.config.model.proxmox_table import with_absolute_files

        return with_absolute_files(table, base_dir)
    found = dict(table)
    for key, value in table.items():
        if key in _PATHS and not (name == "metrics" and key == "path"):
            found[key] = absolute(value, base_dir)
        elif key in ("bind", "tls"):
            found[key] = STEPS[key](value, base_dir)
        elif (name, key) == ("operator", "url"):
            found[key] = STEPS["bind"](value, base_dir)  # it may be a Unix socket
    return found


def made(raw: Mapping[str, Tree], findings: list[Finding]) -> Tables:
    """The valid tables of the merged files; problems of the others are added to the findings."""
    values: dict[str, Tree] = {}
    for name, given in raw.items():
        if name in MODELS and name != "notify":
            values[name] = _model(MODELS[name], given, (name,), findings)
    if "notify" in raw:
        values["notify"] = _receivers(raw["notify"], findings)
    if any(name in raw for name in GATEWAY_TABLES):
        from poolctl.config.model.gateway_tables import gateway_tables

        values |= gateway_tables(raw, findings)
    if "proxmox" in raw:
        from poolctl.config.model.proxmox_table import proxmox_table

        values["proxmox"] = proxmox_table(raw["proxmox"], findings)
    if "operator" in raw:
        from poolctl.config.model.operator_table import operator_table

        has_gateway = any(name in raw for name in GATEWAY_TABLES)
        values["operator"] = operator_table(raw["operator"], findings, has_gateway=has_gateway)
    return Tables(**values)


def _receivers(raw: list[dict[str, Tree]], findings: list[Finding]) -> tuple[Notify, ...]:
    labels: set[str] = set()
    found: list[Notify] = []
    for index, each in enumerate(raw):
        receiver = _model(Notify, each, ("notify", index), findings)
        if isinstance(receiver, Notify):
            found.append(receiver)
            if receiver.label in labels:
                path = ("notify", index, *(("name",) if receiver.name else ()))
                findings.append(Finding(path, f"the name {receiver.label!r} is taken", 'add name = "…"'))
            labels.add(receiver.label)
    return tuple(found)


def _model(model: type[Table], given: dict[str, Tree], path: Path, findings: list[Finding]) -> Table | None:
    table = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    own: list[Finding] = []
    found = validated(model, table, own)
    # An address that is not accepted may still be a secret.
    own = [each._replace(found="") if each.path[:1] == ("url",) else each for each in own]
    if isinstance(found, Notify):
        own += _notify_findings(found)
    elif isinstance(found, Dashboard):
        own += _dashboard_findings(found)
    findings += [each._replace(path=(*path, *each.path)) for each in own]
    return None if own else found


def _dashboard_findings(page: Dashboard) -> Iterator[Finding]:
    if page.token_env and page.token_file:
        yield Finding(("token_file",), "the token is given twice", "keep one of token_env and token_file")
    if not (page.tls or page.insecure or _is_local(parse(page.bind))):
        message = f"{page.bind} can be reached from other machines, and without tls they send the token in the clear"
        yield Finding(("bind",), message, "add tls = { cert = …, key = … }, or bind 127.0.0.1 behind a proxy")
    if find_spec("starlette") is None:
        yield Finding((), "starlette is not installed, which serves the page", "pip install starlette")


def _is_local(address: Address) -> bool:
    """Whether only this machine can reach it."""
    if address.kind == "unix" or address.host == "localhost":
        return True
    try:
        return ip_address(address.host.strip("[]")).is_loopback
    except ValueError:
        return False


def _notify_findings(notify: Notify) -> Iterator[Finding]:
    given = [key for key in _SOURCES if getattr(notify, key) is not None]
    if notify.type == "command":
        if notify.command is None:
            yield Finding((), "a command is missing", 'add command = ["program", "argument"]')
        if given:
            yield Finding((given[0],), f"a command has no {given[0]}", "take it out, or choose another type")
        return
    if notify.command is not None:
        message = f"{notify.type} runs no command"
        yield Finding(("command",), message, 'take it out, or write type = "command"')
    if len(given) != 1:
        what = "is missing" if not given else f"is given {len(given)} times"
        hint = "write one of url, url_env and url_file"
        yield Finding((given[1],) if given else (), f"the address {what}", hint)
    if notify.token_env and notify.token_file:
        yield Finding(("token_file",), "the token is given twice", "keep one of token_env and token_file")
    if notify.type == "gotify" and not (notify.token_env or notify.token_file):
        yield Finding((), "gotify asks for a token", "add token_env or token_file")
    if notify.type == "ntfy" and not notify.topic:
        yield Finding((), "ntfy sends to a topic", 'add topic = "…"')
