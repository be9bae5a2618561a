"""Monitor: the state of one server at one moment."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from poolctl.address import parse
from poolctl.core.server_entry import Availability
from poolctl.errors import ServerError
from poolctl.states import PASSING, State, Status

if TYPE_CHECKING:
    from .live_servers import Handle

CONNECT_SECONDS = 1.0

_TIMES = ("uptime", "downtime", "rise", "fall")


@dataclass(frozen=True, slots=True)
class Monitor:
    """The state of one server at one moment.

    `status` is the result of the probes; without probes it is OK, WARN (between two states) or KO. `latency`: how long
    the last answer or connection took; None without an answer. `uptime` and `downtime` add up since the first start,
    without the time for which it was stopped; `sli` is the part of them that the server was up, 0 to 1. `rise` and
    `fall` add up how long it was on its way to ok and to ko, `rises` and `falls` count how often it became ready and
    ceased to be.
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
    def from_dict(cls, name: str, bind: str, document: Mapping[str, Any]) -> Monitor:
        """The snapshot in a document that a supervisor sent."""
        seconds = {key: timedelta(seconds=document[f"{key}_seconds"]) for key in _TIMES}
        latency = document["latency_seconds"]
        return cls(
            name=name,
            bind=bind,
            status=Status(document["status"]),
            latency=None if latency is None else timedelta(seconds=latency),
            **seconds,
            sli=document["sli"] or 0.0,
            message=document["message"],
            rises=document["rises"],
            falls=document["falls"],
        )

    def __repr__(self) -> str:
        message = f" ({self.message})" if self.message else ""
        return f"<Monitor {self.name} {self.status}, up {self.sli:.1%}{message}>"


def observe(name: str, bind: str, state: State, handle: Handle | None) -> Monitor:
    """A snapshot of the server; without probes it blocks for at most CONNECT_SECONDS. Raises ServerError."""
    known = handle.availability_now() if handle is not None else Availability()
    status, latency, problem = _status(name, bind, state, handle)
    message = problem or (handle.observed.message if handle is not None else "")
    return Monitor(
        name=name,
        bind=bind,
        status=status,
        latency=latency,
        uptime=timedelta(seconds=known.uptime),
        downtime=timedelta(seconds=known.downtime),
        rise=timedelta(seconds=known.risetime),
        fall=timedelta(seconds=known.falltime),
        sli=known.sli or 0.0,
        message=message or ("" if state is State.RUNNING else str(state)),
        rises=known.rise,
        falls=known.fall,
    )


def _status(
    name: str, bind: str, state: State, handle: Handle | None
) -> tuple[Status, timedelta | None, str]:
    """The status, the latency of the answer, and the problem."""
    if handle is None:
        return Status.KO, None, ""
    if state in PASSING:
        return Status.WARN, None, ""
    observed = handle.observed
    if state is not State.RUNNING:
        return (Status.OK if observed.ready or state is State.SLEEPING else Status.KO), None, ""
    if observed.probed:
        seconds = handle.latency_seconds
        return observed.health, None if seconds is None else timedelta(seconds=seconds), handle.complaint
    try:
        latency, refused = _connect(observed.endpoints)
    except OSError as error:
        problem = f"no connection can be made: {error.strerror}"
        hint = "raise the limit of open files: ulimit -n"
        raise ServerError(problem, name=name, bind=bind, hint=hint) from error
    return (Status.KO if refused else Status.OK), latency, refused


def _connect(endpoints: tuple[str, ...]) -> tuple[timedelta | None, str]:
    """The latency of a connection to the first endpoint, or the reason why it failed.

    Raises OSError without a socket.
    """
    if not endpoints:
        return None, ""
    address = parse(endpoints[0]).nearby
    where: Any = (address.host, address.port)
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    if address.kind == "unix":
        where, family = address.path, socket.AF_UNIX
    with socket.socket(family) as sock:
        sock.settimeout(CONNECT_SECONDS)
        begun = time.perf_counter()
        try:
            sock.connect(where)
        except TimeoutError:
            return None, f"no connection within {CONNECT_SECONDS:g} s"
        except OSError as error:
            return None, str(error)
        return timedelta(seconds=time.perf_counter() - begun), ""
