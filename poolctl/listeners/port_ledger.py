"""Chooses ports for `:auto` addresses, and stores them so that a server keeps its port."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from zlib import crc32

from poolctl.errors import ServerError
from poolctl.platform import read_json_object, replace_file

from .open_listener import BindHost, resolve_bind_targets

if TYPE_CHECKING:
    from poolctl.address import Address

_IN_USE_ERRORS = (errno.EADDRINUSE, errno.EACCES)


class PortLedger:
    """Chooses ports from `first` to `last` (inclusive) for a pool's servers, and stores them in the JSON file `path`.

    A server keeps its port, because clients know the server by its address. `key`, a hash of the path of the pool's
    file, identifies the pool; `path` is below a directory named `key`, next to the directories of other pools.

    The search starts at a port derived from `path`, and uses another pool's stored port only if no other port is free:
    two checkouts of one project, or two isolated runs of one file, can run at the same time. A missing or damaged file
    counts as an empty ledger. Not thread-safe; choosing a port blocks briefly.
    """

    def __init__(self, path: str, first: int, last: int, *, key: str) -> None:
        self._path = path
        self._first = first
        self._last = last
        self._key = key
        self._ports = _read(path)

    def __repr__(self) -> str:
        return f"<PortLedger {self._first}-{self._last}, {len(self._ports)} chosen>"

    def assign_port(
        self,
        name: str,
        address: Address,
        *,
        avoid: Container[int] = (),
        vacated: Iterable[int] = (),
        at_rest: bool = False,
    ) -> int:
        """The stored port of server `name`, or else a newly chosen one that is free on `address`.

        `avoid` are ports configured for other servers. `vacated` are ports of servers about to be removed: still in
        use, and chosen only if no other port is free. With `at_rest` the server does not run: if its stored port is in
        use, another program has it, and a new one is chosen. Raises ServerError if no port is free, or if the choice
        cannot be stored.
        """
        stored = self._ports.get(name)
        if stored is not None and self._first <= stored <= self._last and stored not in avoid:
            in_use = at_rest and not is_free(address, stored, lingering=True)
            if not in_use:
                return stored
        taken = {port for owner, port in self._ports.items() if owner != name}
        with self._lock_other_pools_ports() as others:
            # Ports of other pools only in a second pass.
            for of_other_pool in (False, True):
                for port in self._candidate_ports():
                    usable = (port in others) is of_other_pool and port not in taken and port not in avoid
                    if usable and is_free(address, port):
                        return self._store_chosen_port(name, port)
        for port in vacated:
            if self._first <= port <= self._last and port not in avoid:
                return self._store_chosen_port(name, port)
        raise ServerError(
            f"no port is free in port_range {self._first}-{self._last}",
            name=name,
            hint='widen it: [pool] port_range = "FIRST-LAST"',
        )

    def stored_port(self, name: str) -> int | None:
        """The stored port of server `name`, or None. Does not choose one."""
        return self._ports.get(name)

    def keep_only(self, names: Iterable[str]) -> None:
        """Forget the ports of all servers except `names`; the others were removed from the file."""
        remaining = set(names)
        kept = {name: port for name, port in self._ports.items() if name in remaining}
        if kept != self._ports:
            self._ports = kept
            with suppress(OSError):
                self._write()

    def _candidate_ports(self) -> Iterator[int]:
        """All ports of the range, starting at the port derived from `path`."""
        start = self._first + crc32(self._path.encode()) % (self._last - self._first + 1)
        yield from range(start, self._last + 1)
        yield from range(self._first, start)

    @contextmanager
    def _lock_other_pools_ports(self) -> Iterator[set[int]]:
        """Context manager: the ports stored by the user's other pools, which cannot store further ports meanwhile."""
        root, _, file = self._path.partition(f"/{self._key}/")
        if not file:
            root = os.path.dirname(self._path)
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            keys = os.listdir(root) if file else ()
            yield {
                port for key in keys if key != self._key for port in _read(f"{root}/{key}/{file}").values()
            }
        finally:
            os.close(directory)

    def _store_chosen_port(self, name: str, port: int) -> int:
        self._ports[name] = port
        try:
            self._write()
        except OSError as error:
            raise ServerError(
                f"its port cannot be stored: {self._path}: {error.strerror}",
                name=name,
                hint="free space there or make it writable; or write a port instead of auto",
            ) from error
        return port

    def _write(self) -> None:
        replace_file(self._path, json.dumps(self._ports).encode())


def is_free(address: Address, port: int, *, lingering: bool = False) -> bool:
    """Whether `port` is unused on each IP address of `address`. With `lingering`, TIME_WAIT does not count as use."""
    return all(_is_unused(target, port, lingering=lingering) for target in resolve_bind_targets(address))


def _is_unused(target: BindHost, port: int, *, lingering: bool) -> bool:
    try:
        with socket.socket(target.family, socket.SOCK_STREAM) as sock:
            # Without this option, connections in TIME_WAIT count as use.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, lingering)
            if target.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(target.sockaddr(port))
    except OSError as error:
        return error.errno not in _IN_USE_ERRORS
    return True


def _read(path: str) -> dict[str, int]:
    content = read_json_object(path)
    return {name: port for name, port in content.items() if isinstance(port, int) and 0 < port < 65536}
