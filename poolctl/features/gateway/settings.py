"""Values about the gateway: its settings, its listeners, and addresses to connect to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from poolctl.address import AddressError, parse
from poolctl.routing import match

from .program import MIN_VERSION, program_path, program_version, user_of_program

if TYPE_CHECKING:
    from .table import GatewayConfig

HTTP, H2 = "http", "h2"
_DEFAULT_PORTS = {"http": 80, "https": 443, "h2c": 80, "https+h2": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSettings:
    """One address of the gateway, in canonical form (see Address.bind).

    `alias` names the stream of a stream's listener. `tls`: TLS is terminated here with certificates, or passed to
    servers by the name in the ClientHello. `accept_proxy`: connections of trusted proxies begin with a PROXY protocol
    header. `mode` and `owner` are those of a Unix socket's file.
    """

    bind: str
    protocol: str = HTTP
    alias: str = ""
    tls: bool = False
    accept_proxy: bool = False
    mode: str = ""
    owner: str | None = None

    @property
    def role(self) -> tuple[str, str]:
        """The pair (`protocol`, `alias`), which stays the same when the listener's address changes."""
        return self.protocol, self.alias


class GatewaySettings(NamedTuple):
    """The table [gateway], and HAProxy's executable with its version.

    HAProxy runs as `user`, which may be "user:group"; "" is the pool's own user.
    """

    table: GatewayConfig
    program: str = ""
    version: tuple[int, int] = MIN_VERSION
    user: str = ""

    @property
    def trusted_proxies(self) -> tuple[str, ...]:
        """The networks that are trusted to forward a client's address, and UNIX for the peers on Unix sockets."""
        return tuple(map(str, self.table.trusted_proxies))


def settings_of(table: GatewayConfig) -> GatewaySettings:
    """Return HAProxy's settings from [gateway]. Blocks: executes HAProxy for its version."""
    program = program_path(table.program)
    return GatewaySettings(
        table, program, program_version(program) or MIN_VERSION, user_of_program(table.user)
    )


def unverifiable_address(url: str, *, sni: str, verify: bool) -> str:
    """Why HAProxy cannot verify the certificate of a URL with an IP address; "" if it can."""
    endpoint = Endpoint.of_url(url)
    is_address = match.is_ip_address(endpoint.host) or ":" in endpoint.host
    if not (endpoint.tls and verify and not sni and is_address):
        return ""
    return f"HAProxy looks for {endpoint.host} among the names of the certificate, not among its addresses"


class Endpoint(NamedTuple):
    """An address to connect to: `host` and `port` for "tcp", `path` for "unix".

    With `tls` the certificate is verified for `server_name`; it is "" for a server of this pool, whose certificate is
    not verified. `h2`: HTTP/2 instead of HTTP/1.1.
    """

    kind: str
    host: str = ""
    port: int = 0
    path: str = ""
    tls: bool = False
    server_name: str = ""
    h2: bool = False

    @classmethod
    def of_url(cls, url: str) -> Endpoint:
        """The endpoint of SCHEME://HOST:PORT, unix:/PATH or HOST:PORT. Raises ValueError.

        SCHEME is http, https, h2c or https+h2.
        """
        if url.startswith("unix:"):
            return cls("unix", path=url.removeprefix("unix:"))
        parts = urlsplit(url if "://" in url else f"tcp://{url}")
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
        if not parts.hostname or not port:
            raise ValueError(f"{url!r} does not name host and port")
        tls, h2 = parts.scheme.startswith("https"), parts.scheme in ("h2c", "https+h2")
        return cls("tcp", parts.hostname, port, tls=tls, server_name=parts.hostname if tls else "", h2=h2)

    @classmethod
    def of_server(cls, bind: str, tls: bool, h2: bool = False) -> Endpoint:
        """The endpoint of a server on this machine, by the address where it listens. Raises AddressError."""
        address = parse(bind).connect_address
        if not address.listens:
            raise AddressError(f"{address.key} is not an address to connect to")
        if address.kind == "unix":
            return cls("unix", path=address.path, tls=tls, h2=h2)
        return cls(address.kind, address.host, address.port or 0, tls=tls, h2=h2)
