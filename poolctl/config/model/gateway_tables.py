"""[gateway], [[route]] and [[stream]]: their keys, ranges and short forms.

Few pools have a gateway: this module is imported when a file has one of these tables.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field, Strict, WrapValidator

from poolctl.address import AddressError, canonical
from poolctl.config.model.normalise import STEPS, merged
from poolctl.config.model.problems import Finding, Path, Tree, shown
from poolctl.config.model.route_values import (
    HOST_ALLOWED,
    STREAM_TARGET_ALLOWED,
    TARGET_ALLOWED,
    UNIX,
    CookieName,
    Host,
    HostHeader,
    Number,
    Rate,
    Retries,
    RoutePath,
    StreamTargetText,
    TargetText,
    Weight,
    name_of_target,
)
from poolctl.config.model.server_sections import Section, Table, TLSConfig
from poolctl.config.model.validation_errors import validated
from poolctl.config.model.value_types import (
    ADDRESS_ALLOWED,
    EMPTY,
    AtLeastOne,
    BadValue,
    Bind,
    Duration,
    FilePath,
    HeaderName,
    Headers,
    HeadSize,
    Method,
    Positive,
    Proxies,
    Share,
    Size,
    Truth,
    UrlPath,
    Word,
    field,
    truth_from_environment,
)

Model = TypeVar("Model", bound=Table)

INDEX = "index"
DEFAULT_BIND = ":8080"
POLICIES = Literal["round-robin", "weighted", "least-connections", "ip-hash", "random-two", "first", "sticky"]
MODES = Literal["auto", "pass", "proxy"]


def _short(key: str, allowed: str) -> BeforeValidator:
    """A list of tables of which one may stand alone, and of each its most important key.

    `allowed` is what that key may be.
    """

    def tables(value: Tree) -> Tree:
        found = value if isinstance(value, (list, tuple)) else (value,)
        if not found and key == "to":
            raise BadValue("an empty list is not allowed here", "at least one target")
        for each in found:
            if not isinstance(each, (str, dict, Section)):
                raise BadValue(f"{shown(each)} is not allowed here", allowed)
        return tuple({key: each} if isinstance(each, str) else each for each in found)

    return BeforeValidator(tables)


def _certificates(value: Tree, validate: Tree) -> Tree:
    value = truth_from_environment(value)
    if isinstance(value, bool):
        return value
    tables = value if isinstance(value, (list, tuple)) else (value,)
    if not tables or not all(isinstance(each, (dict, TLSConfig)) for each in tables):
        allowed = '{ cert = "FILE", key = "FILE" }, a list of such tables, true or false'
        raise BadValue(f"{shown(value)} is not allowed here", allowed)
    return validate(tuple(tables))


if TYPE_CHECKING:
    Certificates = tuple[TLSConfig, ...] | bool
else:
    Certificates = Annotated[tuple[TLSConfig, ...], WrapValidator(_certificates)]


class GatewayListener(Section):
    """An address of the gateway."""

    bind: Bind = Field(description="The address.")
    tls: Certificates = field(
        False,
        "Its certificate, or a list of them: clients get the one for the host that they ask for. true: none of its "
        "own, connections are passed to servers with tls.",
    )


class RouteTimeouts(Section):
    """How long the steps of a proxied request may take."""

    connect: Positive = field(5.0, "To connect to the backend.")
    head: Duration = field(60.0, "Until the head of the response has arrived; 0 is no limit.")
    idle: Duration = field(
        60.0, "Between two pieces of a body, or of a WebSocket: quiet ones end; 0 is no limit."
    )
    total: Duration = field(0.0, "For the whole request; 0 is no limit.")


class RouteLimit(Section):
    """How many requests are served at once; what is above it waits in the queue, or gets 503."""

    concurrency: Number = field(0, "Requests in flight; 0 is no limit.")
    requests_per_second: Rate = field(0.0, "New requests a second; 0 is no limit.")
    burst: Number = field(0, "How many may come at once above the rate.")
    queue: Number = field(0, "How many may wait for their turn.")
    queue_timeout: Positive = field(5.0, "How long one waits for its turn.")


class RouteBreaker(Section):
    """When a failing backend gets no more requests."""

    failures: Number = field(5, "Failures in a row that open it; 0: they do not.")
    rate: Share = field(0.5, "Share of failures within the window that opens it; 0: it does not.")
    minimum_requests: AtLeastOne = field(20, "The share counts from so many requests in the window.")
    window: Positive = field(10.0, "The time in which the share is counted.")
    open_for: Positive = field(10.0, "How long the backend is left alone.")
    probes: AtLeastOne = field(1, "Requests at once that try it afterwards.")


class GatewayConfig(Table):
    """[gateway]: where clients reach the pool's servers by host and path, and what holds for every route."""

    table: ClassVar[str] = "gateway"

    bind: Annotated[tuple[GatewayListener, ...], _short("bind", ADDRESS_ALLOWED)] = Field(
        default_factory=lambda: (GatewayListener(bind=DEFAULT_BIND),),
        description="The addresses: one, or a list; { bind, tls } for HTTPS. [] is for streams alone.",
    )
    engine: Literal["poolctl", "haproxy"] = field(
        "poolctl",
        "The program that serves the clients: poolctl's own, or HAProxy, which proxies all of them.",
    )
    program: FilePath | None = field(
        None, "The path of HAProxy. Left out: haproxy in $PATH, /usr/sbin or /usr/local/sbin."
    )
    header_for_host: HeaderName = field("Host", "The header that names the host of a request.")
    traffic_re_enable: Positive = field(30.0, "When a disabled host gets traffic again by itself.")
    trusted_proxies: Proxies = field(
        (), "Addresses or networks of proxies whose X-Forwarded-* and Forwarded are believed."
    )
    head_timeout: Positive = field(
        10.0, "Time for the head of a request to arrive, a TLS handshake included."
    )
    max_head_size: HeadSize = field(
        64 * 1024, "Largest head of a request; a larger one is answered with 431."
    )
    max_connections: AtLeastOne | None = field(
        None,
        "Open connections of clients. A new one above it replaces the one that is idle longest; where none is idle, it "
        "waits in the backlog. Left out: as many as descriptors allow.",
    )
    keep_alive: Duration = field(
        75.0, "How long an idle connection is kept; 0: it is closed after its response."
    )
    drain_timeout: Duration = field(30.0, "How long proxied connections may take to end when it is replaced.")
    access_log: Truth = field(
        False, "A line for each proxied request, in gateway-access.log in the state directory."
    )
    mode: MODES = field("auto", "The mode of routes that have none.")
    timeouts: RouteTimeouts = field(RouteTimeouts.usual(), "The timeouts of routes, key by key.")
    backend_limit: RouteLimit = field(RouteLimit.usual(), "The limit of each backend of a route, key by key.")
    breaker: RouteBreaker = field(RouteBreaker.usual(), "The breaker of each backend, key by key.")

    def defaults_of_routes(self) -> dict[str, Tree]:
        """What its routes take over, as a file has it."""
        return self.model_dump(
            include={"mode", "timeouts", "backend_limit", "breaker"}, exclude_unset=True, warnings=False
        )

    def to_dict(self) -> dict[str, Tree]:
        """The table as a file could have it, without a limit that nothing sets."""
        return _without_unset_limits(self)


def _without_unset_limits(table: Table) -> dict[str, Tree]:
    limits = (key for key, value in table if isinstance(value, RouteLimit) and not value.model_fields_set)
    found = Table.to_dict(table)
    for key in limits:
        del found[key]
    return found


class RouteTarget(Section):
    """A target of a route; a string is `to` alone."""

    to: TargetText = Field(description="A server's name, tag:TAG for the servers with that tag, or a URL.")
    weight: Weight = field(1, "Its share of the traffic, compared with the others.")


class StreamTarget(Section):
    """A target of a stream; a string is `to` alone."""

    to: StreamTargetText = Field(
        description="A server's name, tag:TAG for the servers with that tag, or HOST:PORT."
    )
    weight: Weight = field(1, "Its share of the traffic, compared with the others.")


with warnings.catch_warnings():
    # pydantic means the method `register` of its metaclass, which no table has.
    warnings.filterwarnings("ignore", 'Field name "register"')

    class RouteConfig(Table):
        """[[route]]: which requests go to which servers."""

        table: ClassVar[str] = "route"

        alias: Word | None = field(None, "Its name, unique among the routes; left out: its first target's.")
        host: Host = field("", f"{HOST_ALLOWED}.")
        path: RoutePath = field(
            "/", 'The prefix of the path, in whole segments: "/v1" is for /v1 and /v1/users.'
        )
        methods: Annotated[tuple[Method, ...], Strict(False)] = field((), "The methods; left out: all.")
        headers: Headers = field(EMPTY, 'Headers that a request must have; "" is any value.')
        to: Annotated[tuple[RouteTarget, ...], _short("to", TARGET_ALLOWED)] = field(
            (), "Where it leads: names of servers, tag:TAG, or URLs."
        )
        register: Truth = field(
            False, "Services may register as its backends while the pool runs; to may then be left out."
        )
        policy: POLICIES = field("round-robin", "How one of several targets is chosen.")
        mode: MODES = field(
            "auto", "pass hands connections to workers, proxy copies; auto passes where it can."
        )
        sticky: CookieName = field("", "The cookie that keeps a client with its backend.")
        strip_path: Truth = field(False, "The backend is asked for the path without the route's prefix.")
        host_header: HostHeader = field("", "The Host that the backend gets. Left out: the client's.")
        add_headers: Headers = field(EMPTY, "Headers that are added to requests.")
        context_headers: Truth = field(False, "The backend gets the route's context as headers.")
        retries: Retries = field(0, "How often a failed request that may be repeated is tried elsewhere.")
        max_body_size: Size | None = field(None, "Largest body of a request. Left out: no limit.")
        limit: RouteLimit = field(RouteLimit.usual(), "The limit of the whole route.")
        backend_limit: RouteLimit = field(RouteLimit.usual(), "The limit of each of its backends.")
        timeouts: RouteTimeouts = field(RouteTimeouts.usual(), "How long the steps of a request may take.")
        breaker: RouteBreaker = field(RouteBreaker.usual(), "When a failing backend gets no more requests.")
        waiting_page: Truth = field(False, "A browser sees a page while its server wakes up.")
        probe_responses: Annotated[tuple[UrlPath, ...], Strict(False)] = field(
            (), "Paths that are answered with 200 while the server sleeps, without waking it."
        )

        index: int = Field(default=0, exclude=True, repr=False)  # among those of the files

        @property
        def label(self) -> str:
            """The name by which people know it."""
            return self.alias or name_of_target(self.to[0].to)

        def to_dict(self) -> dict[str, Tree]:
            """The table as a file could have it, without empty keys and limits that nothing sets."""
            found = {
                key: value for key, value in _without_unset_limits(self).items() if value not in ("", [], {})
            }
            if not found.pop("register"):
                return found
            return found | {"register": True}


class StreamTimeouts(Section):
    """How long the steps of a stream's connections may take."""

    connect: Positive = field(5.0, "To connect to the target.")
    idle: Duration = field(600.0, "Without traffic in either direction; 0 is no limit.")
    total: Duration = field(0.0, "For the whole connection; 0 is no limit.")


class StreamConfig(Table):
    """[[stream]]: an address whose TCP connections, or UDP datagrams, go to other addresses."""

    table: ClassVar[str] = "stream"

    alias: Word | None = field(None, "Its name, unique among the streams; left out: its first target's.")
    bind: Bind = Field(description="The address that clients connect to.")
    protocol: Literal["tcp", "udp"] = field("tcp", "tcp or udp.")
    to: Annotated[tuple[StreamTarget, ...], _short("to", STREAM_TARGET_ALLOWED)] = Field(
        description="Where it leads: names of servers, tag:TAG, or HOST:PORT."
    )
    policy: Literal["round-robin", "weighted", "least-connections", "ip-hash", "random-two", "first"] = field(
        "round-robin", "How one of several targets is chosen."
    )
    max_connections: Number = field(
        0, "Open connections, or sessions of clients; 0: as many as there are descriptors for streams."
    )
    timeouts: StreamTimeouts = field(StreamTimeouts.usual(), "How long the steps of a connection may take.")
    breaker: RouteBreaker = field(RouteBreaker.usual(), "When a failing target gets no more connections.")

    index: int = Field(default=0, exclude=True, repr=False)  # among those of the files

    @property
    def label(self) -> str:
        """The name by which people know it."""
        return self.alias or name_of_target(self.to[0].to)


GATEWAY_MODELS: dict[str, type[Table]] = {
    "gateway": GatewayConfig, "route": RouteConfig, "stream": StreamConfig,
}  # fmt: skip


def with_absolute_addresses(table: dict[str, Tree], base_dir: str) -> dict[str, Tree]:
    """The table with the paths of sockets and certificates made absolute, from the directory of its file."""
    return {
        key: _absolute(key, value, base_dir) if key in ("bind", "to", "tls") else value
        for key, value in table.items()
    }


def _absolute(key: str, value: Tree, base_dir: str) -> Tree:
    if isinstance(value, (list, tuple)):
        return [_absolute(key, each, base_dir) for each in value]
    if key == "tls":
        return STEPS["tls"](value, base_dir)
    if isinstance(value, dict):
        return with_absolute_addresses(value, base_dir)
    if isinstance(value, str) and value.lower().startswith(UNIX):
        try:
            return canonical(value, base_dir=base_dir)
        except AddressError:
            return value
    return value


def gateway_tables(raw: Mapping[str, Tree], findings: list[Finding]) -> dict[str, Tree]:
    """The valid tables among them, by their names in Tables; problems of the others are added to the findings."""
    own: list[Finding] = []
    given = raw.get("gateway", {})
    gateway = _validated(GatewayConfig, given, ("gateway",), own)
    if gateway is not None and "bind" not in given and "gateway" not in raw and "route" not in raw:
        gateway = gateway.model_copy(update={"bind": ()})  # streams have addresses of their own
    defaults = gateway.defaults_of_routes() if gateway else {}
    routes = _list_of(RouteConfig, "route", [merged(defaults, each) for each in raw.get("route", ())], own)
    streams = _list_of(StreamConfig, "stream", raw.get("stream", ()), own)
    # The key of a short form is not written.
    findings += [
        each._replace(path=each.path[:-1]) if each.path[-3::2] in (("to", "to"), ("bind", "bind")) else each
        for each in own
    ]
    return {"gateway": gateway, "routes": routes, "streams": streams}


def _list_of(
    model: type[Model], name: str, tables: Iterable[dict[str, Tree]], findings: list[Finding]
) -> tuple[Model, ...]:
    found: list[Model] = []
    for index, table in enumerate(tables):
        if INDEX in table:
            findings.append(Finding((name, index, INDEX), f"unknown key {INDEX!r}", "take it out"))
        made = _validated(model, table, (name, index), findings)
        if isinstance(made, RouteConfig) and (missing := _missing(made)):
            message, hint = f"{missing!r} is missing", f"add {missing} = …"
            if missing == "to":
                hint += ", or register = true for services that register themselves"
            findings.append(Finding((name, index, missing), message, hint))
        elif made is not None:
            found.append(made.model_copy(update={INDEX: index}))
    return tuple(found)


def _missing(route: RouteConfig) -> str:
    """The key that a route cannot be without."""
    return "" if route.to else "to" if not route.register else "" if route.alias else "alias"


def _validated(
    model: type[Model], given: dict[str, Tree], path: Path, findings: list[Finding]
) -> Model | None:
    table = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    own: list[Finding] = []
    found = validated(model, table, own)
    findings += [each._replace(path=(*path, *each.path)) for each in own]
    return None if own else found
