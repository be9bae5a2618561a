"""The servers' addresses: whether they can be opened, and the kernel's settings that concern them."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator

from poolctl.listeners.failure import explained
from poolctl.listeners.open import BACKLOG, ListenError, close_listener, open_listener

from .check import CheckContext, CheckResult, ok, problem, read, warning

_NET = "/proc/sys/net"


def ports(context: CheckContext) -> Iterator[CheckResult]:
    """Whether each server could open its address now, if it has not done so."""
    served = context.served
    failures: dict[str, ListenError] = {}
    free = 0
    for name, address in context.addresses.items():
        if address.kind == "unix":
            yield from _unix(name, address.path)
        if address.kind != "tcp" or name in served:
            continue
        try:
            close_listener(open_listener(address, backlog=1))
            free += 1
        except ListenError as error:
            failures[name] = error
    for name, failure in zip(failures, explained([*failures.values()]), strict=True):
        yield problem("ports", f"{name}: {failure.message}", failure.hint or "choose another address")
    yield ok("ports", f"{len(served)} served, {free} free")


def _unix(name: str, path: str) -> Iterator[CheckResult]:
    directory = os.path.dirname(path)
    if not os.access(directory, os.W_OK | os.X_OK):
        what = "is not writable" if os.path.isdir(directory) else "does not exist"
        yield problem("ports", f"{name}: {directory} {what}", f"mkdir -p {directory}, owned by this user")


def backlog(context: CheckContext) -> Iterator[CheckResult]:
    """How many connections may wait while a server restarts or wakes: the kernel's own limit cuts ours."""
    most = read(f"{_NET}/core/somaxconn")
    if most.isdecimal() and int(most) < BACKLOG:
        said = f"only {most} connections may wait while a server restarts, not {BACKLOG}"
        yield warning("backlog", said, f"sysctl -w net.core.somaxconn={BACKLOG}")
    else:
        yield ok("backlog", f"{BACKLOG} connections may wait while a server restarts")


def ephemeral(context: CheckContext) -> Iterator[CheckResult]:
    """Whether a port may be taken by this machine's own outgoing connections before its server comes to it."""
    first, _, last = read(f"{_NET}/ipv4/ip_local_port_range").partition("\t")
    if not (first.isdecimal() and last.isdecimal()):
        return
    reserved = _ranges(read(f"{_NET}/ipv4/ip_local_reserved_ports"))
    at_risk = sorted(
        {
            address.port
            for address in context.addresses.values()
            if address.port and int(first) <= address.port <= int(last)
            if not any(low <= address.port <= high for low, high in reserved)
        }
    )
    if at_risk:
        listed = ",".join(map(str, at_risk))
        said = f"outgoing connections use ports {first}-{last} and may occupy {listed} when a server starts"
        yield warning("port range", said, f"sysctl -w net.ipv4.ip_local_reserved_ports={listed}")
    else:
        yield ok("port range", f"no server's port is in the range of outgoing connections, {first}-{last}")


def _ranges(text: str) -> list[tuple[int, int]]:
    found = []
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        found.append((int(low), int(high or low)))
    return found


def sockets(context: CheckContext) -> Iterator[CheckResult]:
    """Files of Unix sockets at the addresses of servers that do not run."""
    for name, address in context.addresses.items():
        if address.kind != "unix" or name in context.served or not os.path.lexists(address.path):
            continue
        if not os.path.exists(address.path) or not _is_socket(address.path):
            yield problem(
                "sockets", f"{name}: {address.path} exists and is not a socket", f"move {address.path} away"
            )
        elif answers(address.path):
            said = f"{name}: another process listens on {address.path}"
            yield problem("sockets", said, f"fuser {address.path} shows the process")
        else:
            yield ok("sockets", f"{name}: {address.path} is stale and will be replaced")


def _is_socket(path: str) -> bool:
    return stat.S_ISSOCK(os.stat(path).st_mode)


def answers(path: str) -> bool:
    """Whether a process listens on that Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


CHECKS = (ports, sockets, backlog, ephemeral)
