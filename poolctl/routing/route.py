"""Routes as values: the requests that they match, their targets, and their rules."""

from __future__ import annotations

from dataclasses import dataclass

from ..json_form import Table, to_json

# Where a route comes from.
FILE, SERVER, REGISTRATION, INVENTORY = "file", "server", "registration", "inventory"
IP_HASH = "ip-hash"
STICKY = "sticky"  # by a cookie, which a stream does not have
POLICIES = ("round-robin", "weighted", "least-connections", IP_HASH, "random-two", "first", STICKY)
# Route keys that require the gateway to parse requests. It cannot parse those in TLS connections passed through by SNI.
NEEDS_REQUESTS = (
    "methods", "headers", "redirect", "strip_path", "host_header", "add_headers", "set_headers", "remove_headers",
    "response_headers", "sticky", "retries", "limit", "backend_limit", "max_body_size",
    "buffer_requests", "repeatable", "waiting_page", "probe_responses",
)  # fmt: skip
# The attributes of a Route for these keys; each other key is an attribute of the same name.
_ATTRIBUTES = {
    "sticky": ("sticky_cookie",),
    "limit": ("limit", "client_limit"),
    "max_body_size": ("max_body_bytes",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The target of a route: a server of the pool, by name, or a URL.

    A URL is http://HOST:PORT, https://HOST:PORT or unix:/PATH; for a stream's target, HOST:PORT. A target with twice
    the weight gets twice as many connections, or requests.

    With `verify`, the certificate of an https URL is checked for the name `sni`, or the URL's host, against the CA
    certificates in the file `ca`, or the system's.
    """

    server: str = ""
    url: str = ""
    weight: int = 1
    ca: str = ""
    sni: str = ""
    verify: bool = True

    @property
    def key(self) -> str:
        """The name of the server; for a target outside the pool, its URL."""
        return self.server or self.url


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header: its name in lower case, and its value."""

    name: str
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Time limits in seconds, 0 for none: to connect, until the response's head, between bytes of a body.

    `keep_alive` is how long an idle connection to a program or a URL is kept open; with 0 it is closed at once.
    """

    connect: float = 5.0
    head: float = 60.0
    idle: float = 60.0
    keep_alive: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficLimits:
    """Limits, where 0 means no limit: requests in flight, requests per second, and queued requests.

    `queue_seconds` is the maximum time a request is queued. With a `burst` of 0, one second's worth of requests is
    allowed.
    """

    concurrency: int = 0
    requests_per_second: float = 0.0
    burst: int = 0
    queue: int = 0
    queue_seconds: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRule:
    """When to open a backend's breaker: after `failures` in a row, or above the failure rate `rate`.

    The rate is computed over the last `window_seconds`, from `minimum_requests` on; 0 disables `failures` or `rate`.
    The backend is retried after `open_seconds`, with at most `probes` concurrent requests. `statuses` count as failures
    in addition to 502, 503 and 504. This rule takes at most the share `max_open` of a route's backends out of service,
    and never the last one that serves.
    """

    failures: int = 5
    rate: float = 0.5
    minimum_requests: int = 20
    window_seconds: float = 10.0
    open_seconds: float = 10.0
    probes: int = 1
    statuses: tuple[int, ...] = ()
    max_open: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """Where clients are redirected: to the same URL with "https", to the given URL, or to a path of the same host.

    A URL without a path gets the path and query of the request.
    """

    to: str
    status: int = 308


HTTPS = "https"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route for HTTP.

    `host` is exact ("users.example.com"), "*.example.com" for every name below it, a bare first label ("users"), a
    pattern with "*" elsewhere, or "" for every host. `path` is a prefix in whole segments, in normal form: "/v1"
    covers /v1 and /v1/users, not /v10. A request must have each of the `headers`; "" stands for any value. A route that
    redirects to https takes only requests without TLS.
    """

    alias: str
    to: tuple[Target, ...] = ()
    host: str = ""
    path: str = "/"
    methods: tuple[str, ...] = ()
    headers: tuple[Header, ...] = ()
    policy: str = "round-robin"
    provider: str = FILE
    strip_path: bool = False  # the prefix is removed from the path for the backend
    host_header: str = ""  # sent to the backend instead of the client's Host
    add_headers: tuple[Header, ...] = ()  # after the client's headers of the same names
    set_headers: tuple[Header, ...] = ()  # instead of the client's headers of the same names
    remove_headers: tuple[str, ...] = ()  # their names, in lower case
    response_headers: tuple[Header, ...] = ()  # instead of the backend's headers of the same names
    sticky_cookie: str = ""
    sticky_secure: bool = False  # the cookie is sent within TLS only
    sticky_same_site: str = "Lax"  # or "Strict", "None"
    retries: int = 0
    limit: TrafficLimits | None = None
    backend_limit: TrafficLimits | None = None
    client_limit: TrafficLimits | None = None  # for each client; its requests do not wait
    max_body_bytes: int = 0
    buffer_requests: bool = False  # the body is read before the backend gets the request
    repeatable: bool = False  # all requests may be executed twice, whatever their method
    redirect: Redirect | None = None  # instead of targets
    allow: tuple[str, ...] = ()  # client networks; empty allows all
    timeouts: Timeouts = Timeouts()
    breaker: BreakerRule = BreakerRule()
    waiting_page: bool = False
    probe_responses: tuple[str, ...] = ()

    def to_json(self) -> Table:
        """The route as a JSON-compatible dict, for an application that imports another version of poolctl."""
        return to_json(self)

    @property
    def redirects_to_https(self) -> bool:
        """Whether the route redirects to https, and so matches only requests without TLS."""
        return self.redirect is not None and self.redirect.to == HTTPS

    @property
    def takes_whole_hosts(self) -> bool:
        """Whether the host alone selects the route and requests pass unchanged: the gateway need not parse them."""
        attributes = (name for key in NEEDS_REQUESTS for name in _ATTRIBUTES.get(key, (key,)))
        return self.path == "/" and not any(getattr(self, name) for name in attributes)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRoute:
    """A route for TCP connections: the gateway listens for them on `bind`."""

    alias: str
    bind: str
    to: tuple[Target, ...] = ()
    protocol: str = "tcp"
    policy: str = "round-robin"
    provider: str = FILE
    accept_proxy: bool = False  # trusted proxies begin their connections with a header of the PROXY protocol
    max_connections: int = 0
    timeouts: Timeouts = Timeouts(head=0.0, idle=600.0)
    breaker: BreakerRule = BreakerRule()

    def to_json(self) -> Table:
        """The route as a JSON-compatible dict, for an application that imports another version of poolctl."""
        return to_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcludedRoute:
    """A route that is known but not served, with the reason."""

    alias: str
    reason: str
    host: str = ""
    provider: str = FILE

    def to_json(self) -> Table:
        """The route as a JSON-compatible dict, for an application that imports another version of poolctl."""
        return to_json(self)


AnyRoute = Route | StreamRoute | ExcludedRoute
