"""Opens the listening sockets of an address."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from . import inherit, unix
from .failure import ListenError, explain, explain_tcp
from .resolve import Target, targets

if TYPE_CHECKING:
    from poolctl.address import Address

__all__ = ["BACKLOG", "ListenError", "close_listener", "describe", "from_descriptor", "open_listener"]

# The accept queue belongs to the socket that all processes share, and the last listen() sets its
# length: every caller of it uses this number (the kernel caps it at net.core.somaxconn).
BACKLOG = 2048

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def open_listener(
    address: Address, *, backlog: int = BACKLOG, inherited: inherit.Inherited | None = None
) -> list[socket.socket]:
    """The sockets of `address`, bound, listening, non-blocking and close-on-exec; at least one.

    `:8080` gives one for each IP version, `localhost` one for each loopback address of the name,
    `fd:NAME` those of `inherited` (see inherited_descriptors) under that name. A stale Unix socket file is
    replaced. Raises ListenError; resolving a host name may block.
    """
    if address.kind == "tcp":
        sockets = _open_tcp(address, backlog)
    elif address.kind == "unix":
        sockets = [_listening(address, unix.bind(address), backlog)]
    elif address.kind == "fd":
        sockets = inherit.take(address, inherited or {}, backlog)
    else:
        raise ListenError(f"{address.key} is not an address to listen on", bind=address.key)
    for sock in sockets:
        prepare(sock)
    return sockets


def prepare(sock: socket.socket) -> socket.socket:
    """The listener as every worker needs it: non-blocking, and without Nagle's delay on what it accepts.

    Accepted sockets inherit TCP_NODELAY from their listener; without it a keep-alive request was measured to
    wait 44 ms for a delayed acknowledgement where an event loop does not set it by itself.
    """
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def from_descriptor(fd: int) -> socket.socket:
    """The listener behind a descriptor that another process sent; it owns `fd` from now on.

    The kernel is asked for the family: with a wrong one TCP options are silently not set on accepted
    connections.
    """
    return prepare(socket.socket(fileno=fd))


def refuse(sockets: Iterable[socket.socket]) -> None:
    """Refuse connections, even if other processes hold the same listeners: closing a duplicate would not do that."""
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RD)


def close_listener(sockets: Iterable[socket.socket], identity: unix.Identity | None = None) -> None:
    """Close the sockets; remove a Unix socket's file if `unix.identity` still gives `identity` for it."""
    for sock in sockets:
        path = "" if identity is None or sock.family != socket.AF_UNIX else sock.getsockname()
        sock.close()
        if path:
            unix.remove(path, identity)


def describe(sock: socket.socket) -> str:
    """The address that a socket is bound to, as the user writes it: `[::1]:8080`, `unix:/run/a.sock`."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        text = name.decode("utf-8", "replace").replace("\0", "@", 1) if isinstance(name, bytes) else name
        return f"unix:{text}"
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


def _open_tcp(address: Address, backlog: int) -> list[socket.socket]:
    opened: list[socket.socket] = []
    skipped: ListenError | None = None
    if address.port is None:
        raise ListenError(f"no port was chosen for {address.key}", bind=address.key)
    wanted = targets(address)
    try:
        for target in wanted:
            try:
                opened.append(_bound(target, address.port, backlog, dual=address.dual))
            except OSError as error:
                problem = explain_tcp(address, target.host, error)
                if len(wanted) == 1 or target.family != socket.AF_INET6 or error.errno not in _NO_IPV6:
                    raise problem from error
                skipped = problem
    except BaseException:
        close_listener(opened)
        raise
    if not opened and skipped is not None:
        raise skipped
    return opened


def _bound(target: Target, port: int, backlog: int, *, dual: bool) -> socket.socket:
    sock = socket.socket(target.family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if target.family == socket.AF_INET6:
            # Set in both cases: the system's default (net.ipv6.bindv6only) is not to decide what `[::]`
            # means.
            only = 1 if dual or target.host != "::" else 0
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        sock.bind(target.sockaddr(port))
        sock.listen(backlog)  # with SO_REUSEADDR a conflict may show here instead of at bind()
    except OSError:
        sock.close()
        raise
    return sock


def _listening(address: Address, sock: socket.socket, backlog: int) -> socket.socket:
    try:
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise explain(address, f"{address.key} cannot be opened", error) from error
    return sock
