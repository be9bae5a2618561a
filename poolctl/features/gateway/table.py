"""[gateway], [[route]] and [[stream]]: their keys and defaults.

Few pools have a gateway: this module is imported when a file has one of these tables.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, Strict
from pydantic.json_schema import SkipJsonSchema

from poolctl.config.model.section import Section, Table
from poolctl.config.model.server_tables import Probe
from poolctl.config.values.plain import EMPTY
from poolctl.config.values.problems import Tree
from poolctl.config.values.value_types import (
    ADDRESS_ALLOWED,
    Accepts,
    Account,
    AtLeastOne,
    Bind,
    Duration,
    FileMode,
    FilePath,
    GatewayHeadSize,
    HeaderName,
    Headers,
    OrSingle,
    Positive,
    Proxies,
    Share,
    Short,
    SizeOrNone,
    TrustedPeers,
    Truth,
    Word,
)

from ._route_values import HOST_ALLOWED, STREAM_TARGET_ALLOWED, TARGET_ALLOWED, UNIX, name_of_target
from .value_types import (
    NONE_IF_EMPTY,
    AccessLog,
    Certificates,
    CookieName,
    HeaderNames,
    Host,
    HostHeader,
    Methods,
    Number,
    OutsideProbe,
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

INDEX = "index"
DEFAULT_BIND = ":8080"
AT_LEAST_ONE = OrSingle("at least one target")
STICKY_ALLOWED = 'the name of a cookie, such as "backend", or a table such as { secure = true }'
REDIRECT_FORMS = '"https", a URL, or a table such as { to = "https://example.com", status = 301 }'


# `register` is a key of [[route]], and a method of pydantic's metaclass, which no table uses.
warnings.filterwarnings("ignore", 'Field name "register"')

_MODE = "The mode of the file of a Unix socket, whatever the umask."
_OWNER = 'The user, or "user:group", that the file of a Unix socket belongs to. Left out: the pool\'s user.'


class GatewayListener(Section, frozen=True):
    """An address of the gateway."""

    bind: Bind
    """The address."""
    mode: FileMode = Field(default="0666", description=_MODE)
    owner: Account | None = Field(default=None, description=_OWNER)
    tls: Certificates = False
    """Its certificate, or a list of certificates from which the client's host selects one. true: connections are
    passed to servers that have tls.
    """
    accept_proxy_protocol: Truth = False
    """Connections from trusted_proxies begin with a header of the PROXY protocol."""

    def to_dict(self) -> dict[str, Tree]:
        """Return the table as it would be written in a file, with `mode` only for a Unix socket."""
        return _without_mode_of_port(self, super().to_dict())


def _without_mode_of_port(
    listener: GatewayListener | StreamConfig, table: dict[str, Tree]
) -> dict[str, Tree]:
    is_socket = listener.bind.lower().startswith(UNIX)
    return {key: value for key, value in table.items() if key != "mode" or is_socket}


class RouteTimeouts(Section, frozen=True):
    """Timeouts of a request."""

    connect: Positive = Field(default="5s", validate_default=True)
    """Maximum time to connect to the backend."""
    head: Duration = Field(default="1m", validate_default=True)
    """Maximum time until the head of the response has arrived; 0 is no limit."""
    idle: Duration = Field(default="1m", validate_default=True)
    """Maximum time without data in a body or a WebSocket; 0 is no limit."""
    total: Duration = Field(default="0s", validate_default=True)
    """Maximum time for the whole request, on a cluster: HAProxy has no such limit. 0 is no limit."""
    keep_alive: Duration = Field(default="1s", validate_default=True)
    """How long an idle connection to a program or a URL is kept open, less than they keep it; 0 closes it after each
    response. Connections to the apps of the pool stay open.
    """


class BackendLimit(Section, frozen=True):
    """The limit of the requests in progress at a backend; further ones wait in the queue, or get 503."""

    concurrency: Number = 0
    """Maximum number of requests in progress; 0 is no limit."""
    queue: Number = 0
    """Maximum number of requests that wait."""
    queue_timeout: Positive = Field(default="5s", validate_default=True)
    """Maximum time that a request waits."""


class ClientLimit(Section, frozen=True):
    """Limits for the requests of each client; requests above a limit are refused with status 429."""

    concurrency: Number = 0
    """Maximum number of requests in progress; 0 is no limit."""
    requests_per_second: Rate = 0.0
    """Maximum number of new requests a second; 0 is no limit."""
    burst: Number = 0
    """Number of requests that may arrive at once above the rate."""


class RouteLimit(ClientLimit, frozen=True):
    """Limits for all requests of a route together, and `per_client` for the requests of each client.

    Requests above the limits of the route are refused with status 503.
    """

    per_client: ClientLimit = ClientLimit()
    """The limit of each client, by its address."""


class RouteRedirect(Section, frozen=True):
    """Redirects clients to a URL; a plain string sets only `to`."""

    to: RedirectText
    """"https" for the same URL with https, a URL, or a path of the same host; a URL without a path gets the path of
    the request.
    """
    status: Literal[301, 308] = 308
    """The status of the redirect: 308 keeps the method of the request, 301 may not."""


class RouteSticky(Section, frozen=True):
    """The cookie that keeps a client with its backend; a plain string sets only `cookie`."""

    cookie: CookieName | None = None
    """The name of the cookie. Left out: one that only routes with the same first target share."""
    secure: Truth = False
    """Browsers send the cookie only with TLS."""
    same_site: Literal["lax", "strict", "none"] = "lax"
    """With which requests from other sites browsers send the cookie; none needs secure."""


class StreamBreaker(Section, frozen=True):
    """The circuit breaker of a stream: when a failing target gets no more connections."""

    failures: Number = 5
    """Consecutive failures that open the breaker; 0 turns this off."""
    rate: Share = 0.5
    """Share of failed requests within the window that opens the breaker; 0 turns this off."""
    minimum_requests: AtLeastOne = 20
    """Minimum number of requests within the window before rate applies."""
    window: Positive = Field(default="10s", validate_default=True)
    """The time over which rate is measured."""
    open_for: Positive = Field(default="10s", validate_default=True)
    """How long the breaker stays open."""
    probes: AtLeastOne = 1
    """Maximum number of concurrent requests that try the backend after that."""


class RouteBreaker(StreamBreaker, frozen=True):
    """The circuit breaker of a route: when a failing backend gets no more requests."""

    statuses: Statuses = Field(default=(), validate_default=True)
    """Statuses of responses that count as failures, in addition to 502, 503 and 504."""
    max_open: Share = 0.5
    """Maximum share of a route's backends that responses can take out at the same time; the last one that serves
    always stays.
    """


class GatewayConfig(Table, frozen=True):
    """[gateway]: the addresses where clients reach the servers by host and path, and the defaults of all routes."""

    table: ClassVar[str] = "gateway"
    table_name: ClassVar[str] = "gateway"

    bind: Accepts[
        Annotated[
            tuple[Annotated[GatewayListener, Short("bind", ADDRESS_ALLOWED)], ...],
            Strict(False),
            OrSingle(),
        ],
        str | GatewayListener | Sequence[str | GatewayListener],
    ] = Field(default=DEFAULT_BIND, validate_default=True)
    """The address, or a list of addresses; { bind, tls } for HTTPS. [] where there are only streams."""
    program: FilePath | None = None
    """The path of HAProxy. Left out: looked up in $PATH, /usr/sbin and /usr/local/sbin, then in a wheel."""
    threads: Threads = 1
    """Number of HAProxy's threads. With more than one, limits of requests are approximate."""
    user: Account | None = None
    """Of a pool of root: the user, or "user:group", that HAProxy runs as. Left out: haproxy, or nobody if there is no
    such user.
    """
    http2: Truth = True
    """Offer HTTP/2 to clients that use TLS."""
    header_for_host: HeaderName = "Host"
    """The header that names the host of a request. Requests without it, and all requests if it is left out, use Host.
    """
    traffic_re_enable: Positive = Field(default="30s", validate_default=True)
    """How long a backend stays disabled before it gets traffic again."""
    trusted_proxies: TrustedPeers = Field(default=(), validate_default=True)
    """Addresses or networks of proxies whose X-Forwarded-* and Forwarded headers are trusted; unix is for the clients
    of a Unix socket.
    """
    head_timeout: Positive = Field(default="10s", validate_default=True)
    """Maximum time until the head of a request has arrived, with the TLS handshake."""
    max_head_size: GatewayHeadSize = Field(default="16KiB", validate_default=True)
    """Maximum size of the head of a request; larger ones get 431. Each of HAProxy's buffers is a quarter larger."""
    max_connections: AtLeastOne | None = None
    """Maximum number of open connections; further ones wait in the backlog. Left out: what the limit of descriptors
    allows.
    """
    keep_alive: Duration = Field(default="75s", validate_default=True)
    """How long an idle connection is kept open; 0 closes it after each response."""
    drain_timeout: Duration = Field(default="30s", validate_default=True)
    """Maximum time for requests and connections to end when the pool stops."""
    access_log: AccessLog = False
    """Log a line for each request to gateway-access.log in the state directory; json: an object."""
    timeouts: RouteTimeouts = RouteTimeouts()
    """The default timeouts of routes; a route replaces single keys."""
    backend_limit: BackendLimit = BackendLimit()
    """The default limit of each backend; a route replaces single keys."""
    breaker: RouteBreaker = RouteBreaker()
    """The default breaker of each backend; a route replaces single keys."""

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


def _without_unset_limits(config: Table, table: dict[str, Tree]) -> dict[str, Tree]:
    unset = [
        key
        for key, value in config
        if isinstance(value, (BackendLimit, RouteLimit)) and not value.model_fields_set
    ]
    return {key: value for key, value in table.items() if key not in unset}


class RouteTarget(Section, frozen=True):
    """A target of a route; a plain string sets only `to`."""

    to: TargetText
    """A server's name, tag:TAG for the servers with that tag, or a URL."""
    weight: Weight = 1
    """Its share of the traffic, relative to the other targets."""
    health: OutsideProbe = Field(default=None, validate_default=True)
    """How a URL is probed. Left out: as the route says."""
    ca: FilePath | None = None
    """The CA certificates that verify an https:// target, a PEM file. Left out: the system's."""
    sni: TlsName | None = None
    """The name that an https:// target is asked for, and has in its certificate. Left out: its host."""
    verify: Truth = True
    """Verify the certificate of an https:// target."""


class StreamTarget(Section, frozen=True):
    """A target of a stream; a plain string sets only `to`."""

    to: StreamTargetText
    """A server's name, tag:TAG for the servers with that tag, or HOST:PORT."""
    weight: Weight = 1
    """Its share of the traffic, relative to the other targets."""
    health: Probe | None = Field(default=None, validate_default=True)
    """How HOST:PORT is probed. Left out: as the stream says."""


class RouteConfig(Table, frozen=True):
    """[[route]]: which requests it matches, and the servers that answer them."""

    table: ClassVar[str] = "route"
    table_name: ClassVar[str] = "route"
    listed: ClassVar[bool] = True
    is_route: ClassVar[bool] = True
    merged_by: ClassVar[str] = "alias"

    alias: Word | None = None
    """Its name, unique among the routes. Left out: the name of its first target."""
    host: Host = Field(default="", description=f"{HOST_ALLOWED}.")
    path: RoutePath = "/"
    """The prefix of the path, in whole segments: "/v1" matches /v1 and /v1/users, not /v10."""
    methods: Methods = Field(default=(), validate_default=True)
    """The methods of the requests. Left out: all."""
    headers: Headers = Field(default=EMPTY, validate_default=True)
    """Headers that a request must have; "" matches any value."""
    to: Accepts[
        Annotated[
            tuple[Annotated[RouteTarget, Short("to", TARGET_ALLOWED)], ...],
            Strict(False),
            AT_LEAST_ONE,
        ],
        str | RouteTarget | Sequence[str | RouteTarget],
    ] = Field(default=())  # type: ignore[arg-type]  # not validated: it may be left out
    """The targets: names of servers, tag:TAG, or URLs."""
    register: Truth = False
    """Services may register as backends while the pool runs; then `to` is optional."""
    policy: Policy = "round-robin"
    """How one of several backends is chosen."""
    sticky: Accepts[
        Annotated[RouteSticky | None, Short("cookie", STICKY_ALLOWED), NONE_IF_EMPTY],
        RouteSticky | str | None,
    ] = Field(default=None, validate_default=True)
    """The name of the cookie that keeps a client with its backend, or a table."""
    strip_path: Truth = False
    """Remove the route's prefix from the path before the backend sees it."""
    host_header: HostHeader = ""
    """The Host header that the backend gets. Left out: as the client sent it."""
    add_headers: Headers = Field(default=EMPTY, validate_default=True)
    """Headers that are added to requests, after the client's headers of that name."""
    set_headers: Headers = Field(default=EMPTY, validate_default=True)
    """Headers of requests that replace the client's headers of that name."""
    remove_headers: HeaderNames = Field(default=(), validate_default=True)
    """Names of headers that are removed from requests."""
    response_headers: Headers = Field(default=EMPTY, validate_default=True)
    """Headers of responses that replace the backend's headers of that name."""
    redirect: Accepts[
        Annotated[RouteRedirect | None, Short("to", REDIRECT_FORMS)], RouteRedirect | str | None
    ] = Field(default=None, validate_default=True)
    """Redirect clients to a URL instead of forwarding them."""
    allow: Proxies = Field(default=(), validate_default=True)
    """Addresses or networks of clients that may use the route; others get 403."""
    retries: Retries = 0
    """Maximum number of times that a failed request is tried on another backend, if it may be repeated."""
    max_body_size: SizeOrNone = Field(default=None, validate_default=True)
    """Maximum size of the body of a request. Left out: no limit."""
    buffer_requests: Truth = False
    """Read a body, as far as it fits into a buffer, before the backend gets the request: for a server that answers few
    requests at once, behind slow clients.
    """
    repeatable: Truth = False
    """Its requests may be executed twice, whatever their method, as searches by POST: they share connections to the
    backend, and are retried as those with GET.
    """
    limit: RouteLimit = RouteLimit()
    """Limits of the route as a whole."""
    backend_limit: BackendLimit = BackendLimit()
    """The limit of each of its backends."""
    timeouts: RouteTimeouts = RouteTimeouts()
    """Timeouts of its requests."""
    breaker: RouteBreaker = RouteBreaker()
    """When a failing backend gets no more requests."""
    health: OutsideProbe = Field(default=None, validate_default=True)
    """How its URLs are probed: a path ("/ready"), or a table like a server's readiness probe."""
    waiting_page: Truth = False
    """Show a waiting page to browsers while the server wakes up."""
    probe_responses: UrlPaths = Field(default=(), validate_default=True)
    """Paths that get 200 while the server sleeps, without waking it."""

    index: SkipJsonSchema[int] = Field(default=0, exclude=True, repr=False, init=False)

    @property
    def label(self) -> str:
        """The route's name for display."""
        if self.alias or self.to:
            return self.alias or name_of_target(self.to[0].to)
        return f"redirect-{self.host}" if self.host else "redirect"

    def to_dict(self) -> dict[str, Tree]:
        """The table as it would be written in a file, without empty keys or limit tables in which no key was given."""
        table = {
            key: value
            for key, value in _without_unset_limits(self, super().to_dict()).items()
            if value not in ("", [], {}, None)
        }
        is_registered = table.pop("register")
        return table | ({"register": True} if is_registered else {})


class StreamTimeouts(Section, frozen=True):
    """Timeouts of a stream's connections."""

    connect: Positive = Field(default="5s", validate_default=True)
    """Maximum time to connect to the target."""
    idle: Duration = Field(default="10m", validate_default=True)
    """Maximum time without traffic in either direction; 0 is no limit."""


class StreamConfig(Table, frozen=True):
    """[[stream]]: an address whose TCP connections are forwarded to other addresses."""

    table: ClassVar[str] = "stream"
    table_name: ClassVar[str] = "stream"
    listed: ClassVar[bool] = True
    is_route: ClassVar[bool] = True
    merged_by: ClassVar[str] = "alias"

    alias: Word | None = None
    """Its name, unique among the streams. Left out: the name of its first target."""
    bind: Bind
    """The address that clients connect to."""
    mode: FileMode = Field(default="0666", description=_MODE)
    owner: Account | None = Field(default=None, description=_OWNER)
    to: Accepts[
        Annotated[
            tuple[Annotated[StreamTarget, Short("to", STREAM_TARGET_ALLOWED)], ...],
            Strict(False),
            AT_LEAST_ONE,
        ],
        str | StreamTarget | Sequence[str | StreamTarget],
    ]
    """The targets: names of servers, tag:TAG, or HOST:PORT."""
    policy: StreamPolicy = "round-robin"
    """How one of several backends is chosen."""
    accept_proxy_protocol: Truth = False
    """Connections from the trusted_proxies of [gateway] begin with a header of the PROXY protocol."""
    max_connections: Number = 0
    """Maximum number of open connections; 0: what the limit of descriptors allows."""
    timeouts: StreamTimeouts = StreamTimeouts()
    """Timeouts of its connections."""
    health: Probe | None = Field(default=None, validate_default=True)
    """How its targets are probed: { tcp = true }."""
    breaker: StreamBreaker = StreamBreaker()
    """When a failing target gets no more connections."""

    index: SkipJsonSchema[int] = Field(default=0, exclude=True, repr=False, init=False)

    @property
    def label(self) -> str:
        """The stream's name for display."""
        return self.alias or name_of_target(self.to[0].to)

    def to_dict(self) -> dict[str, Tree]:
        """Return the table as it would be written in a file, with `mode` only for a Unix socket."""
        return _without_mode_of_port(self, super().to_dict())
