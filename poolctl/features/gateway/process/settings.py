"""The values that the supervisor sends to the gateway's process: settings, listeners, and facts about backends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple
from urllib.parse import urlsplit

from poolctl import __version__
from poolctl.address import AddressError, parse
from poolctl.json_form import Table

HTTP, TCP, UDP = "http", "tcp", "udp"
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSettings:
    """One address of the gateway, in canonical form, and the number of its sockets.

    `dual`: it is open for both IPv4 and IPv6 (":8080"). `alias` is the route of a stream's listener. `tls`: it has
    certificates, or passes connections to servers with TLS by the name in the ClientHello. `accept_proxy`: trusted
    proxies begin their connections with a header of the PROXY protocol.
    """

    bind: str
    sockets: int = 1
    protocol: str = HTTP
    alias: str = ""
    tls: bool = False
    dual: bool = False
    accept_proxy: bool = False

    @property
    def key(self) -> str:
        """A key that identifies the listener; TCP and UDP listeners on the same port have different keys."""
        return f"udp {self.bind}" if self.protocol == UDP else self.bind

    @property
    def role(self) -> tuple[str, str]:
        """The pair (`protocol`, `alias`), which stays the same when the listener's address changes."""
        return self.protocol, self.alias


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """The table [gateway] as the process needs it.

    `directory` is the pool's runtime directory, for the process's log. Networks in `trusted_proxies` ("10.0.0.0/8") are
    trusted to forward a client's address. `access_log` is the path of the access log, or "". `program` is the path of
    the `engine`'s executable, "" for poolctl's own, and `threads` the number of its threads. `http2`: HTTP/2 is offered
    to clients that use TLS. `parts` has the settings of each feature's EdgePart, by the feature's package; the settings
    may hold secrets.
    """

    directory: str
    listeners: tuple[ListenerSettings, ...] = ()
    header_for_host: str = "Host"
    traffic_re_enable_seconds: float = 30.0
    trusted_proxies: tuple[str, ...] = ()
    drain_seconds: float = 30.0
    head_seconds: float = 10.0
    keep_alive_seconds: float = 75.0
    max_head_bytes: int = 64 * 1024
    max_connections: int = 0
    access_log: str = ""
    access_log_as_json: bool = False
    engine: str = "poolctl"
    program: str = ""
    threads: int = 1
    http2: bool = True
    parts: dict[str, Table] = field(default_factory=dict, repr=False)

    @property
    def mark(self) -> str:
        """The version of poolctl and the engine's executable; if either changes, the gateway's process is replaced."""
        return f"{__version__} {self.program}".rstrip()


class Endpoint(NamedTuple):
    """An address to connect to: `host` and `port` for "tcp", `path` for "unix".

    With `tls` the certificate is verified for `server_name`; "" means a server of this pool on this machine, whose
    certificate is not verified.
    """

    kind: str
    host: str = ""
    port: int = 0
    path: str = ""
    tls: bool = False
    server_name: str = ""

    @classmethod
    def of_url(cls, url: str) -> Endpoint:
        """The endpoint of http://HOST:PORT, https://HOST:PORT, unix:/PATH or HOST:PORT. Raises ValueError."""
        if url.startswith("unix:"):
            return cls("unix", path=url.removeprefix("unix:"))
        parts = urlsplit(url if "://" in url else f"tcp://{url}")
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
        if not parts.hostname or not port:
            raise ValueError(f"{url!r} names no host and port")
        tls = parts.scheme == "https"
        return cls("tcp", parts.hostname, port, tls=tls, server_name=parts.hostname if tls else "")

    @classmethod
    def of_server(cls, bind: str, tls: bool) -> Endpoint:
        """The endpoint of a server on this machine, by the address where it listens. Raises AddressError."""
        address = parse(bind).connect_address
        if not address.listens:
            raise AddressError(f"{address.key} is no address to connect to")
        if address.kind == "unix":
            return cls("unix", path=address.path, tls=tls)
        return cls(address.kind, address.host, address.port or 0, tls=tls)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """The supervisor's report about a routed server.

    `bind` is its address. `asleep_until` is the time before which requests do not wake it, in seconds since 1970; with
    0 they never wake it, with None they always do. `canary` is the name of its canary's socket pair, "" without a
    canary; the canary listens at `canary_bind` and gets `canary_share` of the server's requests. `context_key`
    authenticates the route context sent to its workers; it is "" for a server that gets no context. `is_app`: its
    workers serve an application, and end no connection that is idle.
    """

    name: str
    bind: str = ""
    tls: bool = False
    state: str = "stopped"
    ready: bool = False
    health: str = "unknown"
    weight: int = 1
    asleep_until: float | None = None
    canary: str = ""
    canary_bind: str = ""
    canary_share: float = 0.0
    context_key: str = ""
    is_app: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """The supervisor's report about the container or virtual machine behind a URL (`host`).

    `why` is the reason why it could not be started; the next attempt is allowed after `retry_seconds`. A start may take
    `start_seconds`; requests do not wait longer. `answers` counts the supervisor's answers to requests to start it. If
    `state` is empty, there is no such machine.
    """

    RUNNING: ClassVar[str] = "running"
    STOPPED: ClassVar[str] = "stopped"
    STARTING: ClassVar[str] = "starting"
    FAILED: ClassVar[str] = "failed"
    UNKNOWN: ClassVar[str] = "unknown"

    host: str
    state: str = ""
    why: str = ""
    retry_seconds: float = 0.0
    start_seconds: float = 60.0
    answers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeState:
    """The state of a probed URL (`host`). If it fails probes, `why` is the reason; if it passes, `answered` is true."""

    host: str
    why: str = ""
    answered: bool = False
