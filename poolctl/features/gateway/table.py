"""[gateway], [[route]] and [[stream]]: their keys and defaults.

Few pools have a gateway: this module is imported when a file has one of these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from poolctl.address import AddressError, canonical
from poolctl.config.model.section import Section, Table, field, hidden, required
from poolctl.config.model.server_sections import Probe, TLSConfig
from poolctl.config.values.normalise import STEPS
from poolctl.config.values.plain import EMPTY
from poolctl.config.values.problems import Tree

from ._route_values import HOST_ALLOWED, UNIX, name_of_target

if TYPE_CHECKING:
    from poolctl.config.values.value_types import (
        AtLeastOne,
        Bind,
        Duration,
        FilePath,
        HeaderName,
        Headers,
        HeadSize,
        Positive,
        Proxies,
        Share,
        Size,
        Truth,
        Word,
    )

    from .value_types import (
        LISTENERS,
        PATH_OF_PROBE,
        REDIRECT,
        STREAM_TARGETS,
        TARGETS,
        TRUTH_OR_CERTIFICATES,
        CookieName,
        Engine,
        HeaderNames,
        Host,
        HostHeader,
        Methods,
        Number,
        Policy,
        Rate,
        RedirectText,
        Retries,
        RoutePath,
        Statuses,
        StreamPolicy,
        StreamTargetText,
        TargetText,
        UrlPaths,
        Weight,
    )

KINDS = "poolctl.features.gateway.value_types"
INDEX = "index"
DEFAULT_BIND = ":8080"
MODES = Literal["auto", "pass", "proxy"]


class GatewayListener(Section):
    """An address of the gateway."""

    bind: Bind = required(description="The address.")
    tls: Annotated[tuple[TLSConfig, ...] | bool, TRUTH_OR_CERTIFICATES] = field(
        False,
        "Its certificate, or a list of them: clients get the one for the host that they ask for. true: none of its "
        "own, connections are passed to servers with tls.",
    )
    accept_proxy_protocol: Truth = field(
        False, "trusted_proxies begin their connections with a header of the PROXY protocol."
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
    """How many requests are served at once; further requests wait in the queue, or get 503."""

    concurrency: Number = field(0, "Requests in flight; 0 is no limit.")
    requests_per_second: Rate = field(0.0, "New requests a second; 0 is no limit.")
    burst: Number = field(0, "How many may come at once above the rate.")
    queue: Number = field(0, "How many requests may wait for their turn.")
    queue_timeout: Positive = field(5.0, "How long one waits for its turn.")


class ClientLimit(Section):
    """How many requests of one client are served; further requests get 429."""

    concurrency: Number = field(0, "Requests in flight; 0 is no limit.")
    requests_per_second: Rate = field(0.0, "New requests a second; 0 is no limit.")
    burst: Number = field(0, "How many may come at once above the rate.")


class WholeRouteLimit(RouteLimit):
    """How many requests of a route are served at once, and how many of one client."""

    per_client: ClientLimit = field(ClientLimit.usual(), "The limit of each client, by its address.")


class RouteRedirect(Section):
    """Where clients are sent instead of to a server; a string is `to` alone."""

    to: RedirectText = required(
        description='"https" for the same URL by https, or a URL; without a path it gets that of the request.'
    )
    status: Literal[301, 308] = field(308, "308 keeps the method of the request, 301 may not.")


class StreamBreaker(Section):
    """When a failing target gets no more connections."""

    failures: Number = field(5, "Failures in a row that open it; 0: they do not.")
    rate: Share = field(0.5, "Share of failures within the window that opens it; 0: it does not.")
    minimum_requests: AtLeastOne = field(20, "The share counts from so many requests in the window.")
    window: Positive = field(10.0, "The time in which the share is counted.")
    open_for: Positive = field(10.0, "How long the backend is left alone.")
    probes: AtLeastOne = field(1, "Requests at once that try it afterwards.")


class RouteBreaker(StreamBreaker):
    """When a failing backend gets no more requests."""

    statuses: Statuses = field((), "Statuses of answers that are failures, beside 502, 503 and 504.")
    max_open: Share = field(
        0.5, "Share of a route's backends that answers may take out at once; never the last that serves."
    )


class _WithAddresses(Table):
    """A table whose addresses may be sockets, at any depth."""

    @classmethod
    def from_file(
        cls, table: Mapping[str, Tree], written: Mapping[str, Tree], base_dir: str
    ) -> dict[str, Tree]:
        """See Table."""
        return _with_absolute_addresses(table, base_dir)


class GatewayConfig(_WithAddresses):
    """[gateway]: where clients reach the pool's servers by host and path, and what holds for every route."""

    table: ClassVar[str] = "gateway"
    table_name: ClassVar[str] = "gateway"

    bind: Annotated[tuple[GatewayListener, ...], LISTENERS] = field(
        (GatewayListener.unchecked({"bind": DEFAULT_BIND}),),
        "The addresses: one, or a list; { bind, tls } for HTTPS. [] is for streams alone.",
    )
    engine: Engine = field(
        "poolctl",
        "The program that serves the clients: poolctl's own, or another, which proxies all of them.",
    )
    program: FilePath | None = field(
        None, "The path of another engine. Left out: found in $PATH, /usr/sbin or /usr/local/sbin."
    )
    http2: Truth | None = field(
        None,
        "Clients that speak TLS may choose HTTP/2. Left out: with another engine than poolctl's own they may.",
    )
    header_for_host: HeaderName = field(
        "Host", "The header that names the host of a request; without it, that is the Host header."
    )
    traffic_re_enable: Positive = field(30.0, "When a disabled backend gets traffic again by itself.")
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

    @property
    def has_startup_warnings(self) -> bool:
        """See Table."""
        return True

    @property
    def stop_seconds(self) -> float:
        """See Table."""
        return self.drain_timeout

    def defaults_of_routes(self) -> dict[str, Tree]:
        """The keys that routes inherit from [gateway] as defaults, in the form in which a file has them."""
        keys = ("mode", "timeouts", "backend_limit", "breaker")
        return {key: value for key, value in self.as_given().items() if key in keys}

    def to_dict(self) -> dict[str, Tree]:
        """The table as a file could have it, without a limit that nothing sets."""
        return _without_unset_limits(self, super().to_dict())


def _without_unset_limits(table: Table, found: dict[str, Tree]) -> dict[str, Tree]:
    unset = [key for key, value in table if isinstance(value, RouteLimit) and not value.given]
    return {key: value for key, value in found.items() if key not in unset}


class RouteTarget(Section):
    """A target of a route; a string is `to` alone."""

    to: TargetText = required(description="A server's name, tag:TAG for the servers with that tag, or a URL.")
    weight: Weight = field(1, "Its share of the traffic, compared with the others.")
    health: Annotated[Probe | None, PATH_OF_PROBE] = field(
        None, "How a URL is probed. Left out: the route's."
    )


class StreamTarget(Section):
    """A target of a stream; a string is `to` alone."""

    to: StreamTargetText = required(
        description="A server's name, tag:TAG for the servers with that tag, or HOST:PORT."
    )
    weight: Weight = field(1, "Its share of the traffic, compared with the others.")
    health: Probe | None = field(None, "How HOST:PORT is probed. Left out: the stream's.")


class RouteConfig(_WithAddresses):
    """[[route]]: which requests go to which servers."""

    table: ClassVar[str] = "route"
    table_name: ClassVar[str] = "route"
    listed: ClassVar[bool] = True
    is_route: ClassVar[bool] = True
    merged_by: ClassVar[str] = "alias"

    alias: Word | None = field(None, "Its name, unique among the routes; left out: its first target's.")
    host: Host = field("", f"{HOST_ALLOWED}.")
    path: RoutePath = field("/", 'The prefix of the path, in whole segments: "/v1" is for /v1 and /v1/users.')
    methods: Methods = field((), "The methods; left out: all.")
    headers: Headers = field(EMPTY, 'Headers that a request must have; "" is any value.')
    to: Annotated[tuple[RouteTarget, ...], TARGETS] = field(
        (), "Where it leads: names of servers, tag:TAG, or URLs."
    )
    register: Truth = field(
        False, "Services may register as its backends while the pool runs; to may then be left out."
    )
    policy: Policy = field("round-robin", "How one of several targets is chosen.")
    mode: MODES = field("auto", "pass hands connections to workers, proxy copies; auto passes where it can.")
    sticky: CookieName = field("", "The cookie that keeps a client with its backend.")
    strip_path: Truth = field(False, "The backend is asked for the path without the route's prefix.")
    host_header: HostHeader = field("", "The Host that the backend gets. Left out: the client's.")
    add_headers: Headers = field(EMPTY, "Headers that are added to requests, behind a client's own.")
    set_headers: Headers = field(EMPTY, "Headers that requests get instead of a client's own.")
    remove_headers: HeaderNames = field((), "Names of headers that are removed from requests.")
    response_headers: Headers = field(EMPTY, "Headers that responses get instead of the backend's own.")
    redirect: Annotated[RouteRedirect | None, REDIRECT] = field(
        None, "Where clients are sent instead of to a server."
    )
    allow: Proxies = field((), "Addresses or networks of the clients that it is for; others get 403.")
    context_headers: Truth = field(False, "The backend gets the route's context as headers.")
    retries: Retries = field(0, "How often a failed request that may be repeated is tried elsewhere.")
    max_body_size: Size | None = field(None, "Largest body of a request. Left out: no limit.")
    limit: WholeRouteLimit = field(WholeRouteLimit.usual(), "The limit of the whole route.")
    backend_limit: RouteLimit = field(RouteLimit.usual(), "The limit of each of its backends.")
    timeouts: RouteTimeouts = field(RouteTimeouts.usual(), "How long the steps of a request may take.")
    breaker: RouteBreaker = field(RouteBreaker.usual(), "When a failing backend gets no more requests.")
    health: Annotated[Probe | None, PATH_OF_PROBE] = field(
        None, 'How its URLs are probed: a path ("/ready"), or a table as of a server\'s readiness.'
    )
    waiting_page: Truth = field(False, "A browser sees a page while its server wakes up.")
    probe_responses: UrlPaths = field(
        (), "Paths that are answered with 200 while the server sleeps, without waking it."
    )

    index: int = hidden(0)  # its position among the tables of the files

    @property
    def label(self) -> str:
        """The name by which people know it."""
        if self.alias or self.to:
            return self.alias or name_of_target(self.to[0].to)
        return f"redirect-{self.host}" if self.host else "redirect"

    def to_dict(self) -> dict[str, Tree]:
        """The table as a file could have it, without empty keys and limits that nothing sets."""
        found = {
            key: value
            for key, value in _without_unset_limits(self, super().to_dict()).items()
            if value not in ("", [], {}, None)
        }
        if not found.pop("register"):
            return found
        return found | {"register": True}


class StreamTimeouts(Section):
    """How long the steps of a stream's connections may take."""

    connect: Positive = field(5.0, "To connect to the target.")
    idle: Duration = field(600.0, "Without traffic in either direction; 0 is no limit.")
    total: Duration = field(0.0, "For the whole connection; 0 is no limit.")


class StreamConfig(_WithAddresses):
    """[[stream]]: an address whose TCP connections, or UDP datagrams, go to other addresses."""

    table: ClassVar[str] = "stream"
    table_name: ClassVar[str] = "stream"
    listed: ClassVar[bool] = True
    is_route: ClassVar[bool] = True
    merged_by: ClassVar[str] = "alias"

    alias: Word | None = field(None, "Its name, unique among the streams; left out: its first target's.")
    bind: Bind = required(description="The address that clients connect to.")
    protocol: Literal["tcp", "udp"] = field("tcp", "tcp or udp.")
    to: Annotated[tuple[StreamTarget, ...], STREAM_TARGETS] = required(
        description="Where it leads: names of servers, tag:TAG, or HOST:PORT."
    )
    policy: StreamPolicy = field("round-robin", "How one of several targets is chosen.")
    accept_proxy_protocol: Truth = field(
        False, "trusted_proxies of [gateway] begin their connections with a header of the PROXY protocol."
    )
    max_connections: Number = field(
        0, "Open connections, or sessions of clients; 0: as many as there are descriptors for streams."
    )
    timeouts: StreamTimeouts = field(StreamTimeouts.usual(), "How long the steps of a connection may take.")
    health: Probe | None = field(None, "How its targets are probed: { tcp = true }.")
    breaker: StreamBreaker = field(StreamBreaker.usual(), "When a failing target gets no more connections.")

    index: int = hidden(0)  # its position among the tables of the files

    @property
    def label(self) -> str:
        """The name by which people know it."""
        return self.alias or name_of_target(self.to[0].to)


def _with_absolute_addresses(table: Mapping[str, Tree], base_dir: str) -> dict[str, Tree]:
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
        return _with_absolute_addresses(value, base_dir)
    if isinstance(value, str) and value.lower().startswith(UNIX):
        try:
            return canonical(value, base_dir=base_dir)
        except AddressError:
            return value
    return value
