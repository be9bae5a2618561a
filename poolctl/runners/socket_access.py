"""Who may connect to Unix sockets, according to the configuration."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from poolctl.config import ServerConfig, ids_of
from poolctl.errors import ServerError
from poolctl.listeners.open_listener import PRIVATE, SocketAccess, change_access


def socket_access(mode: str, owner: str | None) -> SocketAccess:
    """Who may connect to a Unix socket, from the keys for its mode, "0660", and owner, "user:group".

    Raises ServerError for an unknown user or group.
    """
    try:
        ids = None if owner is None else ids_of(owner)
    except KeyError:
        raise ServerError(
            f"there is no user or group {owner!r} that its socket could belong to",
            hint="create it, or name another",
        ) from None
    return SocketAccess(int(mode, 8), ids)


def server_socket_access(server: ServerConfig) -> SocketAccess:
    """Who may connect to the server's socket if it is a Unix socket. By default its user owns it. Raises ServerError.

    Only root can give a file to another user.
    """
    if server.address.kind != "unix":
        return PRIVATE
    return socket_access(
        server.socket_mode, server.socket_owner or (server.user if os.geteuid() == 0 else None)
    )


def change_server_socket_access(server: ServerConfig, sockets: Iterable[socket.socket]) -> None:
    """Give the file of the server's open Unix socket its configured mode and owner. Raises ServerError."""
    try:
        change_access(server.address, sockets, server_socket_access(server))
    except ServerError as error:
        raise ServerError(error.message, name=server.name, bind=server.bind, hint=error.hint) from error
