"""Where a backend listens, and the supervisor's reports about servers and machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple
from urllib.parse import urlsplit

from poolctl.address import AddressError, parse

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Endpoint(NamedTuple):
    """An address to connect to: `host` and `port` of "tcp", `path` of "unix".

    With `tls` the certificate is verified for `server_name`; "" stands for a server of this pool on this machine,
    whose certificate is not verified.
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
        address = parse(bind).nearby
        if not address.listens:
            raise AddressError(f"{address.key} is no address to connect to")
        if address.kind == "unix":
            return cls("unix", path=address.path, tls=tls)
        return cls(address.kind, address.host, address.port or 0, tls=tls)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """The supervisor's report about a routed server.

    `bind` is the address where it listens. No request wakes it before `asleep_until` (seconds since 1970, 0 is never).
    `canary` is the name under which the pair of its canary is known, "" without a canary; it listens at `canary_bind`
    and gets `canary_share` of the server's requests. The `context_key` authenticates the route context sent to its
    workers; "" for a server that gets no context.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """The supervisor's report about the container or virtual machine behind a URL (`host`).

    `why` it could not be started, and in how many seconds that may be tried again. A start may take `start_seconds`,
    and requests wait up to that time. `answers` counts the answers to a wake. An empty `state` means that there is no
    such machine.
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
    """The supervisor's probe result for the backend with this URL: `why` it fails, or that it has `answered`."""

    host: str
    why: str = ""
    answered: bool = False
