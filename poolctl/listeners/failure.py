"""Errors of opening a listener, with the cause and the fix."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from poolctl.errors import ServerError

from . import holder

if TYPE_CHECKING:
    from poolctl.address import Address

_UNPRIVILEGED_PORT_START = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
_DEFAULT_UNPRIVILEGED_PORT = 1024


class ListenError(ServerError):
    """A listener could not be opened; with the cause and the fix.

    `taken` is the place that another process uses, if that is the cause; `naming` names that process.
    """

    def __init__(
        self, message: str, *, bind: str = "", hint: str = "", taken: holder.Place | None = None
    ) -> None:
        super().__init__(message, bind=bind, hint=hint)
        self.taken = taken


def explain_tcp(address: Address, host: str, error: OSError) -> ListenError:
    """The ListenError for an OSError raised while opening `host`, one of the hosts of `address`."""
    port = address.port or 0
    if error.errno == errno.EADDRINUSE:
        return taken(address, (host, port))
    if error.errno in (errno.EACCES, errno.EPERM) and port < _unprivileged_port():
        message = f"port {port} is privileged: only root may open ports below {_unprivileged_port()}"
        hint = (
            f"take a port from {_unprivileged_port()} up, or allow it: "
            f"sysctl net.ipv4.ip_unprivileged_port_start={port}"
        )
    elif error.errno == errno.EADDRNOTAVAIL:
        message = f"{host} is not an address of this machine"
        hint = f"use one that it has: {', '.join(holder.local_addresses()) or '127.0.0.1'}"
    elif error.errno == errno.EAFNOSUPPORT:
        message, hint = f"this machine has no support for the address {host}", "use an IPv4 address"
    else:
        return explain(address, f"{host}:{port} cannot be opened", error)
    return ListenError(message, bind=address.key, hint=hint)


def explain(address: Address, what: str, error: OSError) -> ListenError:
    """The ListenError for any other OSError, with the fix for those that have one."""
    hints = {
        errno.EMFILE: "raise the limit of open files: ulimit -n",
        errno.ENFILE: "raise the system's limit of open files: sysctl fs.file-max",
        errno.EPERM: "check whether a security policy forbids it (seccomp, SELinux, AppArmor)",
    }
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ListenError(f"{what}: {reason}", bind=address.key, hint=hints.get(error.errno or 0, ""))


def unresolved(address: Address, reason: str) -> ListenError:
    """The ListenError for a host name without an address."""
    return ListenError(
        f"host name {address.host!r} cannot be resolved: {reason}",
        bind=address.key,
        hint="check its spelling, add it to /etc/hosts, or write the address itself",
    )


def taken(address: Address, place: holder.Place) -> ListenError:
    """The ListenError for a place that is in use. It does not name the process, because finding it takes long."""
    what, command, another = _named(place)
    hint = f"find the process (as root): {command}, or choose another {another}"
    return ListenError(f"{what} is in use", bind=address.key, hint=hint, taken=place)


def naming(error: ListenError, holders: Sequence[holder.Holder]) -> ListenError:
    """The same error with the processes that use the place (see holder.Search), and the fix."""
    if error.taken is None or not holders:
        return error
    what, command, another = _named(error.taken)
    first = holders[0]
    others = f" and {len(holders) - 1} more" if len(holders) > 1 else ""
    by = f"{first}{others}"
    if first.pool is not None:
        # Killing its keeper would not help: the supervisor starts another one.
        by, hint = _pool(first, first.pool)
    elif not first.name:
        by, hint = "a connection that has ended", f"wait until the kernel forgets it, a minute: {command}"
    elif not first.listens:
        by, hint = f"a connection of {by}", f"wait until it ends: {command}"
    elif first.pid is None:
        hint = f"see which (as root): {command}"
    else:
        hint = f"stop it (kill {first.pid})"
    hint = f"{hint}, or choose another {another}"
    return ListenError(f"{what} is in use by {by}", bind=error.bind, hint=hint, taken=error.taken)


def _pool(holder_: holder.Holder, files: Sequence[str]) -> tuple[str, str]:
    if not files:
        return f"a pool inside another program, {holder_}", "stop that program"
    user = "" if holder_.uid in (-1, os.geteuid()) else f" as {holder_.user}"
    named = " ".join(f"-c {shlex.quote(file)}" for file in files)
    return f"the pool of {', '.join(files)}", f"stop it{user}: poolctl {named} stop"


def explained(errors: Sequence[ListenError]) -> list[ListenError]:
    """The same errors with the processes that use the places, from one search; blocks for up to a second."""
    found = holder.Search().find([each.taken for each in errors if each.taken is not None])
    return [naming(each, found.get(each.taken, ())) if each.taken is not None else each for each in errors]


def _named(place: holder.Place) -> tuple[str, str, str]:
    """The place in words, the command that shows which process has it, and its kind."""
    if isinstance(place, str):
        return f"the Unix socket {place}", f"ss -lxp 'src {place}'", "path"
    return f"port {place[1]}", f"ss -tanp 'sport = :{place[1]}'", "port"


def _unprivileged_port() -> int:
    try:
        with open(_UNPRIVILEGED_PORT_START, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _DEFAULT_UNPRIVILEGED_PORT
