"""Addresses and what the kernel has to say about them."""

from __future__ import annotations

import os
import socket
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


def localhost(context: CheckContext) -> Iterator[CheckResult]:
    """Whether `localhost` is this machine's loopback, and IPv4 too."""
    fix = 'add "127.0.0.1 localhost" to /etc/hosts'
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)}
    except OSError as error:
        yield problem("localhost", f"the name does not resolve: {error.strerror or error}", fix)
        return
    if foreign := {each for each in found if not (each.startswith("127.") or each == "::1")}:
        yield problem("localhost", f"the name resolves to {', '.join(sorted(foreign))}", fix)
    elif not any(each.startswith("127.") for each in found):
        yield warning("localhost", f"the name resolves to {', '.join(found)} only", fix)
    else:
        yield ok("localhost", ", ".join(sorted(found)))


CHECKS = (ports, backlog, ephemeral, localhost)
