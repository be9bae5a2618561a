"""A server's listeners, opened from an event loop: cancelled halfway, nothing stays open."""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING

from poolctl.listeners.open import close_listener, open_listener

from ..aside import aside

if TYPE_CHECKING:
    from poolctl.address import Address
    from poolctl.listeners.inherit import Inherited


async def listen(address: Address, inherited: Inherited | None = None) -> list[socket.socket]:
    """The open sockets of the address. Raises ListenError; only a host name is resolved beside the loop."""
    open_it = functools.partial(open_listener, address, inherited=inherited)
    if address.kind == "tcp" and address.host.strip("0123456789.") and not address.is_ipv6:
        return await aside(open_it, undo=close_listener)  # resolving may take long
    return open_it()
