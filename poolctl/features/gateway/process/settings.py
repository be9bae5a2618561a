"""Settings of the gateway's process, received at its start and again when the configuration changes."""

from __future__ import annotations

from dataclasses import dataclass, field

from poolctl import __version__
from poolctl.json_form import Table

HTTP, TCP, UDP = "http", "tcp", "udp"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSettings:
    """One address of the gateway, in canonical form, and the number of its sockets.

    `dual`: it is open for IPv4 and IPv6, as ":8080" means. A stream's listener has the alias of its route; `tls` says
    that certificates exist for it, or that connections are passed to servers with TLS by the name in their ClientHello.
    `accept_proxy`: trusted proxies begin their connections with a header of the PROXY protocol.
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
        """Identifies the listener; a TCP and a UDP listener on the same port have different keys."""
        return f"udp {self.bind}" if self.protocol == UDP else self.bind

    @property
    def role(self) -> tuple[str, str]:
        """The purpose of the listener: a listener with another address and the same role replaces it."""
        return self.protocol, self.alias


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """The table [gateway] in force, with the listeners in the order of their descriptors.

    `directory` is the pool's runtime directory, for the process's log. Networks in `trusted_proxies` ("10.0.0.0/8")
    are believed when they forward a client's address. `access_log` is the path of that file, "" for none. `program` is
    the path of the `engine`, if that is another program. `http2`: it offers HTTP/2 to clients that speak TLS.
    `parts` are the settings of features' parts (`Feature.gateway`) by their packages; they may hold secrets.
    """

    directory: str
    listeners: tuple[ListenerSettings, ...] = ()
    header_for_host: str = "Host"
    traffic_re_enable_seconds: float = 30.0
    trusted_proxies: tuple[str, ...] = ()
    drain_seconds: float = 30.0
    head_seconds: float = 60.0
    keep_alive_seconds: float = 75.0
    max_head_bytes: int = 64 * 1024
    max_connections: int = 0
    access_log: str = ""
    engine: str = "poolctl"
    program: str = ""
    http2: bool = True
    parts: dict[str, Table] = field(default_factory=dict, repr=False)

    @property
    def mark(self) -> str:
        """The settings that only another process can change."""
        return f"{__version__} {self.program}".rstrip()
