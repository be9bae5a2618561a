"""Opens and closes listeners without blocking the event loop; blocking calls run in daemon threads."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType
from typing import TypeVar

from poolctl.address import Address, overlaps, parse
from poolctl.daemon_threads import in_daemon_thread
from poolctl.keeper import fd_store
from poolctl.listeners.listen_errors import (
    MAX_SECONDS,
    Holder,
    ListenError,
    Place,
    find_holders,
    with_holders,
)
from poolctl.listeners.open_listener import (
    PRIVATE,
    Identity,
    Inherited,
    SocketAccess,
    close_listener,
    describe,
    listen_alone,
    listens,
    needed_listeners,
    open_listener,
    refuse_and_close,
    refuse_new_connections,
    socket_file_identity,
)
from poolctl.listeners.port_ledger import is_free
from poolctl.platform import close_promptly

from .process_link import Link, stored_entries

# The search has a shorter limit of its own, which cannot interrupt a read from /proc that hangs.
_PATIENCE_SECONDS = 2 * MAX_SECONDS

T = TypeVar("T")

logger = logging.getLogger("poolctl.supervisor")


class ManagerStore:
    """The copies of the pool's listeners that the service manager holds while it restarts the pool's unit.

    `manager` is the link to the service manager, which passes the copies to the next run of the pool; returned copies
    are in the keeper's store (see sd_pid_notify_with_fds(3)). The name of a listener is a hash of its address; because
    of the key `secret`, no other program can give its own sockets such a name.
    """

    def __init__(self, manager: Link, keeper: Link, secret: bytes) -> None:
        self._manager = manager
        self._keeper = keeper
        self._secret = secret
        self._returned: dict[str, list[socket.socket]] = {}
        self._stored: dict[str, Sequence[socket.socket]] = {}
        # Set when the service manager ends this run of the pool: the listeners stay open for the next run.
        self.stays_open = False

    async def fetch_returned(self) -> None:
        async for name, _ in stored_entries(self._keeper, fd_store.RETURNED):
            _, fds = await self._keeper.call({"op": "get", "name": name})
            sockets = self._returned[name] = []
            for fd in fds:
                try:
                    sockets.append(socket.socket(fileno=fd))
                except OSError:  # not a socket: another program has stored it
                    close_promptly(fd)

    def holds(self, key: str) -> bool:
        """Whether there are returned listeners of the canonical address `key` that were not taken yet."""
        return self._name_of(key) in self._returned

    def take(self, key: str) -> list[socket.socket]:
        """Return the returned listeners of this address; the caller owns them."""
        return self._returned.pop(self._name_of(key), [])

    def put(self, key: str, sockets: Sequence[socket.socket]) -> None:
        """Have the service manager hold copies of these listeners, instead of earlier ones for this address."""
        name = self._name_of(key)
        self._remove(name)
        self._stored[name] = sockets
        # FDPOLL=0: HAProxy's listeners do not listen yet, and would be removed for that.
        self._manager.send({"notify": ["FDSTORE=1", "FDPOLL=0", f"FDNAME={name}"]}, sockets)

    def remove(self, key: str, sockets: Sequence[socket.socket]) -> None:
        """Have the service manager close its copies of these listeners, unless it has others for this address now."""
        name = self._name_of(key)
        if any(sock in sockets for sock in self._stored.get(name, sockets)):
            self._stored.pop(name, None)
            self._remove(name)

    def _remove(self, name: str) -> None:
        self._manager.send({"notify": ["FDSTOREREMOVE=1", f"FDNAME={name}"]})
        self._keeper.send({"op": "drop", "name": name})

    def close_returned(self, wanted: Iterable[str] = ()) -> None:
        """Close returned listeners that were not taken, except at the addresses `wanted`."""
        for name in self._returned.keys() - {self._name_of(key) for key in wanted}:
            sockets = self._returned.pop(name)
            refuse_new_connections(sockets)
            for sock in sockets:
                close_listener([sock], socket_file_identity(describe(sock)))
            self._remove(name)

    def _name_of(self, key: str) -> str:
        return (
            fd_store.RETURNED
            + blake2b(key.encode(), key=self._secret, digest_size=fd_store.RETURNED_DIGITS // 2).hexdigest()
        )


class Opener:
    """Opens and closes listeners. With a `manager`, the service manager holds copies of them.

    If addresses are in use, concurrent calls share one search for the processes that hold them.
    """

    def __init__(self, manager: ManagerStore | None = None) -> None:
        self.manager = manager
        self._searching: asyncio.Task[None] | None = None
        self._wanted: dict[Place, asyncio.Future[list[Holder]]] = {}
        # Bound sockets that do not listen yet, by key, with the keys of the overlapping listeners that they wait for.
        self._bound: dict[str, tuple[list[socket.socket], set[str]]] = {}

    @property
    def stays_open(self) -> bool:
        """Whether the service manager keeps closed listeners open for the next run of the pool."""
        return self.manager is not None and self.manager.stays_open

    async def listen(
        self,
        address: Address,
        inherited: Inherited | None = None,
        access: SocketAccess = PRIVATE,
        beside: Sequence[socket.socket] | None = None,
        held: Sequence[socket.socket] = (),
    ) -> list[socket.socket]:
        """Open the sockets of the address, or use returned ones; return them (see `open_listener`).

        Raises ListenError, with the processes that hold an address in use. If cancelled, closes what it has opened.
        """
        manager = None if address.kind == "fd" else self.manager
        open_sockets = functools.partial(
            open_listener, address, inherited=inherited, access=access, beside=beside, held=held
        )
        if manager is None:
            return await self._open(address, open_sockets)
        returned = manager.take(address.key)
        try:
            sockets = await self._open(address, functools.partial(open_sockets, returned=returned))
        except BaseException:
            if returned:
                manager.remove(address.key, returned)
            raise
        if sockets or returned:
            manager.put(address.key, [*held, *sockets])
        return sockets

    def close(self, key: str, sockets: Sequence[socket.socket], identity: Identity | None) -> None:
        """Close the listeners of the canonical address `key`. Connections are refused, even if other processes hold it.

        Sockets of a `.socket` unit stay open. If the service manager ends this run of the pool, the others stay open in
        its store for the next run.
        """
        if key.startswith("fd:") or self.stays_open:
            close_listener(sockets)
            return
        # A worker that is about to exit, or a process that hangs, may hold one.
        refuse_new_connections(sockets)
        close_listener(sockets, identity)
        if self.manager is not None:
            self.manager.remove(key, sockets)

    async def _open(
        self, address: Address, open_sockets: Callable[[], list[socket.socket]]
    ) -> list[socket.socket]:
        try:
            return await _run_maybe_in_thread(address, open_sockets, undo=refuse_and_close)
        except ListenError as error:
            if error.taken is None:
                raise
            raise with_holders(error, await self._holders(error.taken)) from error.__cause__

    async def open_missing(
        self,
        address: Address,
        held: Sequence[socket.socket] = (),
        others: Mapping[str, Sequence[socket.socket]] = MappingProxyType({}),
        inherited: Inherited | None = None,
        access: SocketAccess = PRIVATE,
    ) -> list[socket.socket]:
        """Open the sockets that the address needs besides its listeners `held`, and return them (see `listen`).

        TCP sockets are only bound if `others`, by key, are open at overlapping addresses. They get connections once a
        worker accepts from them, or all `others` are about to be closed: see `closing`.
        """
        if held and not (address.dual and len(held) == 1):
            return []
        beside = [sock for sockets in others.values() for sock in sockets] if others else None
        opened = await self.listen(address, inherited, access, beside, held)
        if others:
            before, waiting_for = self._bound.get(address.key, ([], set()))
            self._bound[address.key] = [*before, *opened], {*others} | waiting_for
        return opened

    def close_unneeded(self, address: Address, held: Sequence[socket.socket]) -> list[socket.socket]:
        """Close the listeners in `held` that the address does not need; return the others."""
        needed = needed_listeners(address, held)
        if surplus := [sock for sock in held if sock not in needed]:
            if bound := self._bound.get(address.key):
                bound[0][:] = [sock for sock in bound[0] if sock not in surplus]
            refuse_and_close(surplus)
            if self.manager is not None:
                self.manager.put(address.key, needed)
        return needed

    def adopt_bound(
        self, key: str, sockets: Sequence[socket.socket], open_: Mapping[str, Sequence[socket.socket]]
    ) -> None:
        """Handle sockets that an earlier supervisor has only bound, as `open_missing` does.

        `open_` has all listeners by key. Listens at once if none has an overlapping address. Raises OSError.
        """
        mine = [parse(describe(sock)) for sock in sockets]
        others = {
            other
            for other, listeners in open_.items()
            for sock in listeners
            if other != key and sock.family in (socket.AF_INET, socket.AF_INET6) and listens(sock)
            if any(overlaps(address, parse(describe(sock))) for address in mine)
        }
        if others:
            self._bound[key] = [*sockets], others
        else:
            listen_alone(sockets)

    def closing(self, key: str) -> None:
        """Prepare for the close of this key's listener: listen on bound sockets that wait for no other listener."""
        self._bound.pop(key, None)
        for bound, (sockets, others) in list(self._bound.items()):
            others.discard(key)
            if not others:
                del self._bound[bound]
                listen_alone(sockets)

    async def check_bindable(self, address: Address) -> None:
        """Check that a program can bind the TCP address itself. Raise ListenError if the address is in use."""
        if not await _run_maybe_in_thread(address, functools.partial(is_free, address, address.port or 0)):
            # Connections in TIME_WAIT do not prevent listening. Another listener does, and the error names its process.
            close_listener(await self._open(address, functools.partial(open_listener, address)))

    async def _holders(self, place: Place) -> list[Holder]:
        loop, search = asyncio.get_running_loop(), self._searching
        if search is None or search.done() or search.get_loop() is not loop:
            self._wanted.clear()  # left by a closed loop
            self._searching = loop.create_task(self._search_wanted_holders())
        future = self._wanted.setdefault(place, loop.create_future())
        await asyncio.wait({future}, timeout=_PATIENCE_SECONDS)
        return future.result() if future.done() else []

    async def _search_wanted_holders(self) -> None:
        while wanted := self._wanted:
            self._wanted = {}
            try:
                holders = await in_daemon_thread(functools.partial(find_holders, list(wanted)))
            except Exception:
                logger.exception("cannot find the process that holds an address")
                holders = {}
            for place, future in wanted.items():
                future.set_result(holders.get(place, []))


async def _run_maybe_in_thread(
    address: Address, work: Callable[[], T], *, undo: Callable[[T], object] = lambda _: None
) -> T:
    """Return `work()`, run in a thread if the address has a host name. On cancellation, `undo` gets the result."""
    if address.kind == "tcp" and address.host.strip("0123456789.") and not address.is_ipv6:
        return await in_daemon_thread(work, undo=undo)
    return work()
