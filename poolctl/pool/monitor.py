"""Monitor: how one server is, frozen at one moment."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from poolctl.address import parse
from poolctl.errors import ServerError
from poolctl.states import PASSING, State, Status

if TYPE_CHECKING:
    from .life import Life
    from .server import Server

CONNECT_SECONDS = 1.0

_TIMES = ("uptime", "downtime", "rise", "fall")


@dataclass(frozen=True, slots=True)
class Monitor:
    """One server at one moment.

    `status` is what the probes say; without any it is OK, WARN (between two states) or KO. `latency`: how long the
    last answer took, or a connection; None when there was none. `uptime` and `downtime` add up what was since the
    first start; `sli` is the part of it that the server was up, 0 to 1. `rise` and `fall` add up how long it was on its
    way to ok and to ko, `rises` and `falls` count how often it became ready and ceased to be.
    """

    name: str
    bind: str
    status: Status
    latency: timedelta | None
    uptime: timedelta
    downtime: timedelta
    rise: timedelta
    fall: timedelta
    sli: float
    message: str
    rises: int = 0
    falls: int = 0

    @classmethod
    def from_dict(cls, name: str, bind: str, told: Mapping[str, Any]) -> Monitor:
        """The snapshot that a supervisor sent."""
        seconds = {key: timedelta(seconds=told[f"{key}_seconds"]) for key in _TIMES}
        latency = told["latency_seconds"]
        return cls(
            name=name,
            bind=bind,
            status=Status(told["status"]),
            latency=None if latency is None else timedelta(seconds=latency),
            **seconds,
            sli=told["sli"] or 0.0,
            message=told["message"],
            rises=told["rises"],
            falls=told["falls"],
        )

    def __repr__(self) -> str:
        said = f" ({self.message})" if self.message else ""
        return f"<Monitor {self.name} {self.status}, up {self.sli:.1%}{said}>"


def observe(server: Server, life: Life | None) -> Monitor:
    """A snapshot of the server; without probes it blocks for at most CONNECT_SECONDS. Raises ServerError."""
    status, latency, problem = _seen(server, life)
    up = life.record.up_seconds if life is not None else 0.0
    down = life.record.down_seconds if life is not None else 0.0
    return Monitor(
        name=server.name,
        bind=server.bind,
        status=status,
        latency=latency,
        uptime=timedelta(seconds=up),
        downtime=timedelta(seconds=down),
        rise=timedelta(seconds=life.record.rise_seconds if life is not None else 0.0),
        fall=timedelta(seconds=life.record.fall_seconds if life is not None else 0.0),
        sli=up / (up + down) if up + down else 0.0,
        message=problem or server.message or ("" if server.state is State.RUNNING else str(server.state)),
        rises=life.record.rises if life is not None else 0,
        falls=life.record.falls if life is not None else 0,
    )


def _seen(server: Server, life: Life | None) -> tuple[Status, timedelta | None, str]:
    """How it is, how long it took to answer, and what is wrong with it."""
    state = server.state
    if state is not State.RUNNING or life is None:
        if state in PASSING:
            return Status.WARN, None, ""
        return (Status.OK if server.ready else Status.KO), None, ""
    told = life.wellness.status
    if told is not None:
        seconds = life.wellness.latency_seconds
        return told, None if seconds is None else timedelta(seconds=seconds), life.wellness.message
    latency, refused = _connect(server, life)
    return (Status.KO if refused else Status.OK), latency, refused


def _connect(server: Server, life: Life) -> tuple[timedelta | None, str]:
    """The latency of a connection to its first endpoint, or why there is none."""
    if not life.berth.endpoints:
        return None, ""
    address = parse(life.berth.endpoints[0]).nearby
    where: Any = (address.host, address.port)
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    if address.kind == "unix":
        where, family = address.path, socket.AF_UNIX
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
