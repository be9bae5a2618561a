"""Private addresses for the processes of proxied servers."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection, Iterator

from poolctl.address import Address, parse
from poolctl.errors import ServerError

_HOST = "127.0.0.1"
_MIN, _MAX = 10_000, 65_535
# The kernel chooses the ports of outgoing connections from this range.
_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
_DEFAULT_RANGE = 32_768, 60_999
_ATTEMPTS = 200


def free_private_address(taken: Collection[str]) -> Address:
    """An address on loopback with a free port, not in `taken`. Blocks. Raises ServerError if there is none.

    The kernel does not use the port for outgoing connections. But another program may open it first: check which
    process listens there before requests are forwarded to it.
    """
    for port in _candidates():
        address = f"{_HOST}:{port}"
        if address in taken:
            continue
        with socket.socket() as sock:
            try:
                sock.bind((_HOST, port))
            except OSError:
                continue
        return parse(address)
    raise ServerError(
        "no private port is free for another process",
        hint="stop what listens on 127.0.0.1, or let the program take the pool's socket: {fd}, or LISTEN_FDS",
    )


def _candidates() -> Iterator[int]:
    try:
        with open(_RANGE, encoding="ascii") as file:
            first, last = map(int, file.read().split())
    except (OSError, ValueError):
        first, last = _DEFAULT_RANGE
    ports = [*range(_MIN, first), *range(last + 1, _MAX + 1)] or [*range(_MIN, _MAX + 1)]
    yield from random.sample(ports, min(_ATTEMPTS, len(ports)))
