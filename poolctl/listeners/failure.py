"""Why a listener could not be opened, in words that name the mend."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from poolctl.errors import ServerError

from . import holder

if TYPE_CHECKING:
    from poolctl.address import Address

_UNPRIVILEGED_PORT_START = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
_DEFAULT_UNPRIVILEGED_PORT = 1024


class ListenError(ServerError):
    """A listener that could not be opened: what was wrong, and what to do about it."""


def explain_tcp(address: Address, host: str, error: OSError) -> ListenError:
    """The ListenError for an OSError met while opening `host`, one of those that `address` stands for."""
    port = address.port or 0
    if error.errno == errno.EADDRINUSE:
        message, hint = _taken(host, port)
    elif error.errno in (errno.EACCES, errno.EPERM) and port < _unprivileged_port():
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
    """The ListenError for any other OSError, with the mend for those that have one."""
    hints = {
        errno.EMFILE: "raise the limit of open files: ulimit -n",
        errno.ENFILE: "raise the system's limit of open files: sysctl fs.file-max",
        errno.EPERM: "look whether a security policy forbids it (seccomp, SELinux, AppArmor)",
    }
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ListenError(f"{what}: {reason}", bind=address.key, hint=hints.get(error.errno or 0, ""))


def unresolved(address: Address, reason: str) -> ListenError:
    """The ListenError for a host name that no address belongs to."""
    return ListenError(
        f"host name {address.host!r} cannot be resolved: {reason}",
        bind=address.key,
        hint="check its spelling, add it to /etc/hosts, or write the address itself",
    )


def _taken(host: str, port: int) -> tuple[str, str]:
    holders = holder.find_tcp(host, port)
    if not holders:
        return (
            f"port {port} is in use by another program",
            f"find it with: ss -ltnp 'sport = :{port}' (as root), or choose another port",
        )
    first = holders[0]
    others = f" and {len(holders) - 1} more" if len(holders) > 1 else ""
    message = f"port {port} is in use by {first}{others}"
    if first.pid is None:
        return message, f"see which with: sudo ss -ltnp 'sport = :{port}', or choose another port"
    return message, f"stop it (kill {first.pid}), or choose another port"


def _unprivileged_port() -> int:
    try:
        with open(_UNPRIVILEGED_PORT_START, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _DEFAULT_UNPRIVILEGED_PORT
