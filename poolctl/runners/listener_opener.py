"""Opens a server's listeners without blocking the event loop; blocking calls run in daemon threads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from poolctl.address import Address
from poolctl.daemon_threads import run_in_daemon_thread
from poolctl.listeners.listen_errors import (
    MOST_SECONDS,
    Holder,
    ListenError,
    Place,
    find_holders,
    with_holders,
)
from poolctl.listeners.open_listener import (
    PRIVATE,
    Inherited,
    SocketAccess,
    close_listener,
    listen_alone,
    open_listener,
)
from poolctl.listeners.port_ledger import is_free

# The search has a shorter limit of its own, which cannot interrupt a read from /proc that hangs.
_PATIENCE_SECONDS = 2 * MOST_SECONDS

T = TypeVar("T")

logger = logging.getLogger("poolctl.supervisor")


class Opener:
    """Opens listeners. If addresses are in use, concurrent calls share one search for the processes that hold them."""

    def __init__(self) -> None:
        self._searching: asyncio.Task[None] | None = None
        self._wanted: dict[Place, asyncio.Future[list[Holder]]] = {}
        # By the key of a listener that is only bound: the sockets, and the keys of the listeners beside them.
        self._bound: dict[str, tuple[list[socket.socket], set[str]]] = {}

    async def listen(
        self,
        address: Address,
        inherited: Inherited | None = None,
        access: SocketAccess = PRIVATE,
        beside: Sequence[socket.socket] | None = None,
        held: Sequence[socket.socket] = (),
    ) -> list[socket.socket]:
        """Open the sockets of the address, and return them (see `open_listener`).

        Raises ListenError, with the processes that hold an address in use. If cancelled, closes what it has opened.
        """
        open_it = functools.partial(
            open_listener, address, inherited=inherited, access=access, beside=beside, held=held
        )
        try:
            return await _run_resolving_work(address, open_it, undo=close_listener)
        except ListenError as error:
            if error.taken is None:
                raise
            raise with_holders(error, await self._holders(error.taken)) from error.__cause__

    async def bind_beside(
        self, address: Address, others: Mapping[str, Sequence[socket.socket]]
    ) -> list[socket.socket]:
        """Bind the sockets of a TCP address beside `others`, open at overlapping addresses, by key (see `listen`).

        They get connections once a worker accepts from them, or all `others` are about to be closed: see `closing`.
        """
        beside = [sock for sockets in others.values() for sock in sockets]
        opened = await self.listen(address, beside=beside)
        self._bound[address.key] = opened, {*others}
        return opened

    def closing(self, key: str) -> None:
        """Note that the listener of this key is about to be closed: what is bound beside it alone listens from now."""
        self._bound.pop(key, None)
        for bound, (sockets, others) in list(self._bound.items()):
            others.discard(key)
            if not others:
                del self._bound[bound]
                listen_alone(sockets)

    async def check_bindable(self, address: Address) -> None:
        """Check that a program can bind the TCP address itself. Raise ListenError if the address is in use."""
        if not await _run_resolving_work(address, functools.partial(is_free, address, address.port or 0)):
            # Connections in TIME_WAIT do not prevent listening. Another listener does, and the error names its process.
            close_listener(await self.listen(address))

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
                found = await in_daemon_thread(functools.partial(find_holders, list(wanted)))
            except Exception:
                logger.exception("cannot find the process that holds an address")
                found = {}
            for place, future in wanted.items():
                future.set_result(found.get(place, []))


async def _run_resolving_work(
    address: Address, work: Callable[[], T], *, undo: Callable[[T], object] = lambda _: None
) -> T:
    """Return `work()`, run in a thread if the address has a host name. On cancellation, `undo` gets the result."""
    if address.kind == "tcp" and address.host.strip("0123456789.") and not address.is_ipv6:
        return await in_daemon_thread(work, undo=undo)
    return work()


async def in_daemon_thread(work: Callable[[], T], *, undo: Callable[[T], object] = lambda _: None) -> T:
    """Run `work` in a thread and return its result; if the caller is cancelled, `undo` gets the result instead.

    The thread is a daemon, so that an import that hangs cannot keep the interpreter from exiting. Raises RuntimeError
    if it cannot be created (see daemon_threads).
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def hand_over(value: T) -> None:
        if result.cancelled():
            undo(value)
        else:
            result.set_result(value)

    def fail(error: BaseException) -> None:
        if not result.cancelled():
            # A StopIteration cannot be set on a future; SystemExit would end the whole loop.
            usual = isinstance(error, Exception) and not isinstance(error, StopIteration)
            result.set_exception(error if usual else RuntimeError(repr(error)))

    def run_work() -> None:
        try:
            value = work()
        except BaseException as error:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(fail, error)
            return
        try:
            loop.call_soon_threadsafe(hand_over, value)
        except RuntimeError:  # the loop is gone
            undo(value)

    run_in_daemon_thread(run_work)
    return await result
