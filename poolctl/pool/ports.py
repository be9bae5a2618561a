"""The port of an `auto` address, for pools in Python: chosen when the server is made, and kept as long as it lives."""

from __future__ import annotations

from poolctl.config import ServerConfig
from poolctl.errors import ServerError
from poolctl.listeners.port_ledger import is_free

from .lock import LOCK

DEFAULT_RANGE = "20000-29999"

# Chosen here before and perhaps not bound yet: two servers that are made one after the other differ.
_given: set[int] = set()


def with_port(config: ServerConfig, port_range: str = "") -> ServerConfig:
    """The configuration itself, or with a free port of the range in place of `auto`. Raises ServerError."""
    address = config.address
    if not address.auto:
        return config
    port_range = port_range or DEFAULT_RANGE
    first, _, last = port_range.partition("-")
    with LOCK:
        for port in range(int(first), int(last or first) + 1):
            if port not in _given and is_free(address, port):
                _given.add(port)
                return config.at(address.with_port(port))
    raise ServerError(
        f"no port is free in {port_range}",
        name=config.name,
        bind=config.bind,
        hint='widen it: [pool] port_range = "FIRST-LAST"',
    )
