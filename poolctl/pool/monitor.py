"""Monitor: how one server is, frozen at one moment."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from poolctl.address import parse
from poolctl.errors import ServerError
from poolctl.states import State, Status

if TYPE_CHECKING:
    from .life import Life
    from .server import Server

CONNECT_SECONDS = 1.0

_PASSING = (State.STARTING, State.DRAINING, State.STOPPING, State.BACKOFF)
_LOOPBACKS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Monitor:
    """One server at one moment.

    `status` is OK, WARN (between two states) or KO. `latency`: how long a connection took; None when none was made
    or it failed. `uptime` and `downtime` add up what was since the first start; `sli` is the part of it that the
    server was up, 0 to 1. `rise` and `fall` count how often it became ready and ceased to be.
    """

    name: str
    bind: str
    status: Status
    latency: timedelta | None
    uptime: timedelta
    downtime: timedelta
    rise: int
    fall: int
    sli: float
    message: str

    def __repr__(self) -> str:
        said = f" ({self.message})" if self.message else ""
        return f"<Monitor {self.name} {self.status}, up {self.sli:.1%}{said}>"


def observe(server: Server, life: Life | None) -> Monitor:
    """A snapshot of the server; blocks for at most CONNECT_SECONDS. Raises ServerError."""
    latency, refused = None, ""
    state = server.state
    if state is State.RUNNING and life is not None:
        latency, refused = _connect(server, life)
    if state is State.RUNNING:
        status = Status.KO if refused else Status.OK
    elif state in _PASSING:
        status = Status.WARN
    else:
        status = Status.OK if server.ready else Status.KO
    up = life.record.up_seconds if life is not None else 0.0
    down = life.record.down_seconds if life is not None else 0.0
    return Monitor(
        name=server.name,
        bind=server.bind,
        status=status,
        latency=latency,
        uptime=timedelta(seconds=up),
        downtime=timedelta(seconds=down),
        rise=life.record.rise if life is not None else 0,
        fall=life.record.fall if life is not None else 0,
        sli=up / (up + down) if up + down else 0.0,
        message=refused or server.message or ("" if state is State.RUNNING else str(state)),
    )


def _connect(server: Server, life: Life) -> tuple[timedelta | None, str]:
    """The latency of a connection to its first endpoint, or why there is none."""
    if not life.berth.endpoints:
        return None, ""
    address = parse(life.berth.endpoints[0])
    host = _LOOPBACKS.get(address.host, address.host)
    where: Any = address.path if address.kind == "unix" else (host, address.port)
    family = {"unix": socket.AF_UNIX}.get(address.kind, socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock = socket.socket(family)
    except OSError as error:
        raise _unobservable(server, error) from error
    with sock:
        sock.settimeout(CONNECT_SECONDS)
        begun = time.perf_counter()
        try:
            sock.connect(where)
        except OSError as error:
            return None, f"no connection within {CONNECT_SECONDS:g} s" if isinstance(
                error, TimeoutError
            ) else str(error)
        return timedelta(seconds=time.perf_counter() - begun), ""


def _unobservable(server: Server, error: OSError) -> ServerError:
    return ServerError(
        f"no connection can be made: {error.strerror}",
        name=server.name,
        bind=server.bind,
        hint="raise the limit of open files: ulimit -n",
    )
