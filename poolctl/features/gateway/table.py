"""[gateway], [[route]] and [[stream]]: their keys and defaults.

Few pools have a gateway: this module is imported when a file has one of these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from poolctl.address import AddressError, canonical
from poolctl.config.model.section import Probe, Section, Table, TLSConfig, field, hidden, required
from poolctl.config.values.normalise import NORMALISERS, absolute
from poolctl.config.values.plain import EMPTY
from poolctl.config.values.problems import Tree

from ._route_values import HOST_ALLOWED, UNIX, name_of_target

if TYPE_CHECKING:
    from poolctl.config.values.value_types import (
        AtLeastOne,
        Bind,
        Duration,
        FileMode,
        FilePath,
        GatewayHeadSize,
        HeaderName,
        Headers,
        Positive,
        Proxies,
        Share,
        Size,
        Text,
        TrustedPeers,
        Truth,
        Word,
    )

    from .value_types import (
        LISTENERS,
        PATH_OF_PROBE,
        REDIRECT,
        STICKY_COOKIE,
        STREAM_TARGETS,
        TARGETS,
        TRUTH_OR_CERTIFICATES,
        AccessLog,
        CookieName,
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
        Threads,
        TlsName,
        UrlPaths,
        Weight,
    )

KINDS = "poolctl.features.gateway.value_types"
INDEX = "index"
DEFAULT_BIND = ":8080"


_MODE = "The mode of the file of a Unix socket, whatever the umask."
_OWNER = 'The user, or "user:group", that the file of a Unix socket belongs to. Left out: the pool\'s user.'


class GatewayListener(Section):
    """An address of the gateway."""

    bind: Bind = required(description="The address.")
    mode: FileMode = field("0666", _MODE)
    owner: Text | None = field(None, _OWNER)
    tls: Annotated[tuple[TLSConfig, ...] | bool, TRUTH_OR_CERTIFICATES] = field(
        False,
        "Its certificate, or a list of certificates from which the client's host selects one. true: "
        "connections are passed to servers that have tls.",
    )
    accept_proxy_protocol: Truth = field(
        False, "Connections from trusted_proxies begin with a header of the PROXY protocol."
    )

    def to_dict(self) -> dict[str, Tree]:
        """Return the table as it would be written in a file, with `mode` only for a Unix socket."""
        return _without_mode_of_port(self, super().to_dict())


def _without_mode_of_port(
    listener: GatewayListener | StreamConfig, found: dict[str, Tree]
) -> dict[str, Tree]:
    is_socket = listener.bind.lower().startswith(UNIX)
    return {key: value for key, value in found.items() if key != "mode" or is_socket}


class RouteTimeouts(Section):
    """Timeouts of a request."""

    connect: Positive = field(5.0, "Maximum time to connect to the backend.")
    head: Duration = field(60.0, "Maximum time until the head of the response has arrived; 0 is no limit.")
    idle: Duration = field(60.0, "Maximum time without data in a body or a WebSocket; 0 is no limit.")
    total: Duration = field(
        0.0, "Maximum time for the whole request, on a cluster: HAProxy has no such limit. 0 is no limit."
    )
    keep_alive: Duration = field(
        1.0,
        "How long an idle connection to a program or a URL is kept open, less than they keep it; 0 closes it after"
        " each response. Connections to the apps of the pool stay open.",
    )


class BackendLimit(Section):
    """The limit of the requests in progress at a backend; further ones wait in the queue, or get 503."""

    concurrency: Number = field(0, "Maximum number of requests in progress; 0 is no limit.")
    queue: Number = field(0, "Maximum number of requests that wait.")
    queue_timeout: Positive = field(5.0, "Maximum time that a request waits.")


class ClientLimit(Section):
    """Limits for the requests of each client; requests above a limit are refused with status 429."""

    concurrency: Number = field(0, "Maximum number of requests in progress; 0 is no limit.")
    requests_per_second: Rate = field(0.0, "Maximum number of new requests a second; 0 is no limit.")
    burst: Number = field(0, "Number of requests that may arrive at once above the rate.")


class RouteLimit(ClientLimit):
    """Limits for all requests of a route together, and `per_client` for the requests of each client.

    Requests above the limits of the route are refused with status 503.
    """

    per_client: ClientLimit = field(ClientLimit.with_defaults(), "The limit of each client, by its address.")


class RouteRedirect(Section):
    """Redirects clients to a URL; a plain string sets only `to`."""

    to: RedirectText = required(
        description='"https" for the same URL with https, a URL, or a path of the same host; a URL without a path '
        "gets the path of the request."
    )
    status: Literal[301, 308] = field(
        308, "The status of the redirect: 308 keeps the method of the request, 301 may not."
    )


class RouteSticky(Section):
    """The cookie that keeps a client with its backend; a plain string sets only `cookie`."""

    cookie: CookieName | None = field(
        None, "The name of the cookie. Left out: one that only routes with the same first target share."
    )
    secure: Truth = field(False, "Browsers send the cookie only with TLS.")
    same_site: Literal["lax", "strict", "none"] = field(
        "lax", "With which requests from other sites browsers send the cookie; none needs secure."
    )


class StreamBreaker(Section):
    """The circuit breaker of a stream: when a failing target gets no more connections."""

    failures: Number = field(5, "Consecutive failures that open the breaker; 0 turns this off.")
    rate: Share = field(
        0.5, "Share of failed requests within the window that opens the breaker; 0 turns this off."
    )
    minimum_requests: AtLeastOne = field(
        20, "Minimum number of requests within the window before rate applies."
    )
    window: Positive = field(10.0, "The time over which rate is measured.")
    open_for: Positive = field(10.0, "How long the breaker stays open.")
    probes: AtLeastOne = field(1, "Maximum number of concurrent requests that try the backend after that.")


class RouteBreaker(StreamBreaker):
    """The circuit breaker of a route: when a failing backend gets no more requests."""

    statuses: Statuses = field(
        (), "Statuses of responses that count as failures, in addition to 502, 503 and 504."
    )
    max_open: Share = field(
        0.5,
        "Maximum share of a route's backends that responses can take out at the same time; the last one "
        "that serves always stays.",
    )


class _WithAbsoluteSocketPaths(Table):
    """Base of tables with addresses: relative paths of Unix sockets are made absolute, also in nested tables."""

    @classmethod
    def with_absolute_paths(
        cls, table: Mapping[str, Tree], written: Mapping[str, Tree], base_dir: str
    ) -> dict[str, Tree]:
        return _with_absolute_addresses(table, base_dir)


class GatewayConfig(_WithAbsoluteSocketPaths):
    """[gateway]: the addresses where clients reach the servers by host and path, and the defaults of all routes."""

    table: ClassVar[str] = "gateway"
    table_name: ClassVar[str] = "gateway"

    bind: Annotated[tuple[GatewayListener, ...], LISTENERS] = field(
        (GatewayListener.unchecked({"bind": DEFAULT_BIND}),),
        "The address, or a list of addresses; { bind, tls } for HTTPS. [] where there are only streams.",
    )
    program: FilePath | None = field(
        None,
        "The path of HAProxy. Left out: looked up in $PATH, /usr/sbin and /usr/local/sbin, then in a wheel.",
    )
    threads: Threads = field(
        1, "Number of HAProxy's threads. With more than one, limits of requests are approximate."
    )
    user: Text | None = field(
        None,
        'Of a pool of root: the user, or "user:group", that HAProxy runs as. Left out: haproxy, or nobody if there '
        "is no such user.",
    )
    http2: Truth = field(True, "Offer HTTP/2 to clients that use TLS.")
    header_for_host: HeaderName = field(
        "Host",
        "The header that names the host of a request. Requests without it, and all requests if it is left"
        " out, use Host.",
    )
    traffic_re_enable: Positive = field(
        30.0, "How long a backend stays disabled before it gets traffic again."
    )
    trusted_proxies: TrustedPeers = field(
        (),
        "Addresses or networks of proxies whose X-Forwarded-* and Forwarded headers are trusted; unix is for the "
        "clients of a Unix socket.",
    )
    head_timeout: Positive = field(
        10.0, "Maximum time until the head of a request has arrived, with the TLS handshake."
    )
    max_head_size: GatewayHeadSize = field(
        16 * 1024,
        "Maximum size of the head of a request; larger ones get 431. Each of HAProxy's buffers is a quarter larger.",
    )
    max_connections: AtLeastOne | None = field(
        None,
        "Maximum number of open connections; further ones wait in the backlog. Left out: what the limit of "
        "descriptors allows.",
    )
    keep_alive: Duration = field(
        75.0, "How long an idle connection is kept open; 0 closes it after each response."
    )
    drain_timeout: Duration = field(
        30.0, "Maximum time for requests and connections to end when the pool stops."
    )
    access_log: AccessLog = field(
        False,
        "Log a line for each request to gateway-access.log in the state directory; json: an object.",
    )
    timeouts: RouteTimeouts = field(
        RouteTimeouts.with_defaults(), "The default timeouts of routes; a route replaces single keys."
    )
    backend_limit: BackendLimit = field(
        BackendLimit.with_defaults(), "The default limit of each backend; a route replaces single keys."
    )
    breaker: RouteBreaker = field(
        RouteBreaker.with_defaults(), "The default breaker of each backend; a route replaces single keys."
    )

    @property
    def has_startup_warnings(self) -> bool:
        """Whether `check` has to be called at startup, because it may return warnings."""
        return True

    @property
    def stop_seconds(self) -> float:
        """Maximum time that the gateway adds to a stop of the pool: its drain timeout."""
        return self.drain_timeout

    def defaults_of_routes(self) -> dict[str, Tree]:
        """The keys given in [gateway] that routes inherit as defaults, as they would be written in a file."""
        keys = ("timeouts", "backend_limit", "breaker")
        return {key: value for key, value in self.as_given().items() if key in keys}

    def to_dict(self) -> dict[str, Tree]:
        """Return the table as it would be written in a file, without `backend_limit` if none of its keys was given."""
        return _without_unset_limits(self, super().to_dict())


def _without_unset_limits(table: Table, found: dict[str, Tree]) -> dict[str, Tree]:
    unset = [key for key, value in table if isinstance(value, (BackendLimit, RouteLimit)) and not value.given]
    return {key: value for key, value in found.items() if key not in unset}


class RouteTarget(Section):
    """A target of a route; a plain string sets only `to`."""

    to: TargetText = required(description="A server's name, tag:TAG for the servers with that tag, or a URL.")
    weight: Weight = field(1, "Its share of the traffic, relative to the other targets.")
    health: Annotated[Probe | None, PATH_OF_PROBE] = field(
        None, "How a URL is probed. Left out: as the route says."
    )
    ca: FilePath | None = field(
        None, "The CA certificates that verify an https:// target, a PEM file. Left out: the system's."
    )
    sni: TlsName | None = field(
        None, "The name that an https:// target is asked for, and has in its certificate. Left out: its host."
    )
    verify: Truth = field(True, "Verify the certificate of an https:// target.")


class StreamTarget(Section):
    """A target of a stream; a plain string sets only `to`."""

    to: StreamTargetText = required(
        description="A server's name, tag:TAG for the servers with that tag, or HOST:PORT."
    )
    weight: Weight = field(1, "Its share of the traffic, relative to the other targets.")
    health: Probe | None = field(None, "How HOST:PORT is probed. Left out: as the stream says.")


class RouteConfig(_WithAbsoluteSocketPaths):
    """[[route]]: which requests it matches, and the servers that answer them."""

    table: ClassVar[str] = "route"
    table_name: ClassVar[str] = "route"
    listed: ClassVar[bool] = True
    is_route: ClassVar[bool] = True
    merged_by: ClassVar[str] = "alias"

    alias: Word | None = field(
        None, "Its name, unique among the routes. Left out: the name of its first target."
    )
    host: Host = field("", f"{HOST_ALLOWED}.")
    path: RoutePath = field(
        "/", 'The prefix of the path, in whole segments: "/v1" matches /v1 and /v1/users, not /v10.'
    )
    methods: Methods = field((), "The methods of the requests. Left out: all.")
    headers: Headers = field(EMPTY, 'Headers that a request must have; "" matches any value.')
    to: Annotated[tuple[RouteTarget, ...], TARGETS] = field(
        (), "The targets: names of servers, tag:TAG, or URLs."
    )
    register: Truth = field(
        False, "Services may register as backends while the pool runs; then `to` is optional."
    )
    policy: Policy = field("round-robin", "How one of several backends is chosen.")
    sticky: Annotated[RouteSticky | None, STICKY_COOKIE] = field(
        None, "The name of the cookie that keeps a client with its backend, or a table."
    )
    strip_path: Truth = field(False, "Remove the route's prefix from the path before the backend sees it.")
    host_header: HostHeader = field(
        "", "The Host header that the backend gets. Left out: as the client sent it."
    )
    add_headers: Headers = field(
        EMPTY, "Headers that are added to requests, after the client's headers of that name."
    )
    set_headers: Headers = field(EMPTY, "Headers of requests that replace the client's headers of that name.")
    remove_headers: HeaderNames = field((), "Names of headers that are removed from requests.")
    response_headers: Headers = field(
        EMPTY, "Headers of responses that replace the backend's headers of that name."
    )
    redirect: Annotated[RouteRedirect | None, REDIRECT] = field(
        None, "Redirect clients to a URL instead of forwarding them."
    )
    allow: Proxies = field((), "Addresses or networks of clients that may use the route; others get 403.")
    context_headers: Truth = field(False, "Send the route's context to the backend as headers.")
    retries: Retries = field(
        0, "Maximum number of times that a failed request is tried on another backend, if it may be repeated."
    )
    max_body_size: Size | None = field(None, "Maximum size of the body of a request. Left out: no limit.")
    buffer_requests: Truth = field(
        False,
        "Read a body, as far as it fits into a buffer, before the backend gets the request: for a server that "
        "answers few requests at once, behind slow clients.",
    )
    repeatable: Truth = field(
        False,
        "Its requests may be executed twice, whatever their method, as searches by POST: they share connections to the "
        "backend, and are retried as those with GET.",
    )
    limit: RouteLimit = field(RouteLimit.with_defaults(), "Limits of the route as a whole.")
    backend_limit: BackendLimit = field(BackendLimit.with_defaults(), "The limit of each of its backends.")
    timeouts: RouteTimeouts = field(RouteTimeouts.with_defaults(), "Timeouts of its requests.")
    breaker: RouteBreaker = field(
        RouteBreaker.with_defaults(), "When a failing backend gets no more requests."
    )
    health: Annotated[Probe | None, PATH_OF_PROBE] = field(
        None, 'How its URLs are probed: a path ("/ready"), or a table like a server\'s readiness probe.'
    )
    waiting_page: Truth = field(False, "Show a waiting page to browsers while the server wakes up.")
    probe_responses: UrlPaths = field((), "Paths that get 200 while the server sleeps, without waking it.")

    index: int = hidden(0)  # its position among the tables of the files

    @property
    def label(self) -> str:
        """The route's name for display."""
        if self.alias or self.to:
            return self.alias or name_of_target(self.to[0].to)
        return f"redirect-{self.host}" if self.host else "redirect"

    def to_dict(self) -> dict[str, Tree]:
        """The table as it would be written in a file, without empty keys or limit tables in which no key was given."""
        found = {
            key: value
            for key, value in _without_unset_limits(self, super().to_dict()).items()
            if value not in ("", [], {}, None)
        }
        if not found.pop("register"):
            return found
        return found | {"register": True}


class StreamTimeouts(Section):
    """Timeouts of a stream's connections."""

    connect: Positive = field(5.0, "Maximum time to connect to the target.")
    idle: Duration = field(600.0, "Maximum time without traffic in either direction; 0 is no limit.")


class StreamConfig(_WithAbsoluteSocketPaths):
    """[[stream]]: an address whose TCP connections are forwarded to other addresses."""

    table: ClassVar[str] = "stream"
    table_name: ClassVar[str] = "stream"
    listed: ClassVar[bool] = True
    is_route: ClassVar[bool] = True
    merged_by: ClassVar[str] = "alias"

    alias: Word | None = field(
        None, "Its name, unique among the streams. Left out: the name of its first target."
    )
    bind: Bind = required(description="The address that clients connect to.")
    mode: FileMode = field("0666", _MODE)
    owner: Text | None = field(None, _OWNER)
    to: Annotated[tuple[StreamTarget, ...], STREAM_TARGETS] = required(
        description="The targets: names of servers, tag:TAG, or HOST:PORT."
    )
    policy: StreamPolicy = field("round-robin", "How one of several backends is chosen.")
    accept_proxy_protocol: Truth = field(
        False, "Connections from the trusted_proxies of [gateway] begin with a header of the PROXY protocol."
    )
    max_connections: Number = field(
        0, "Maximum number of open connections; 0: what the limit of descriptors allows."
    )
    timeouts: StreamTimeouts = field(StreamTimeouts.with_defaults(), "Timeouts of its connections.")
    health: Probe | None = field(None, "How its targets are probed: { tcp = true }.")
    breaker: StreamBreaker = field(
        StreamBreaker.with_defaults(), "When a failing target gets no more connections."
    )

    index: int = hidden(0)  # its position among the tables of the files

    @property
    def label(self) -> str:
        """The stream's name for display."""
        return self.alias or name_of_target(self.to[0].to)

    def to_dict(self) -> dict[str, Tree]:
        """Return the table as it would be written in a file, with `mode` only for a Unix socket."""
        return _without_mode_of_port(self, super().to_dict())


def _with_absolute_addresses(table: Mapping[str, Tree], base_dir: str) -> dict[str, Tree]:
    """The table with relative paths of sockets and certificates resolved against `base_dir`."""
    return {
        key: _absolute_addresses(key, value, base_dir) if key in ("bind", "to", "tls", "ca") else value
        for key, value in table.items()
    }


def _absolute_addresses(key: str, value: Tree, base_dir: str) -> Tree:
    if isinstance(value, (list, tuple)):
        return [_absolute_addresses(key, each, base_dir) for each in value]
    if key == "tls":
        return NORMALISERS["tls"](value, base_dir)
    if isinstance(value, dict):
        return _with_absolute_addresses(value, base_dir)
    if key == "ca":
        return absolute(value, base_dir)
    if isinstance(value, str) and value.lower().startswith(UNIX):
        try:
            return canonical(value, base_dir=base_dir)
        except AddressError:
            return value
    return value
