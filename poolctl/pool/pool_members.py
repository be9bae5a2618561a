"""The mapping side of a pool: adding, removing, looking up and visiting servers by address."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any, TypeVar

from poolctl.address import AddressError, UsedPorts, canonical, overlapping
from poolctl.config import ServerConfig
from poolctl.errors import PoolAddError, PoolParamError, PoolStopError, ServerError

from . import loop_thread
from .live_servers import Handle, Startable, living
from .loop_thread import LOCK
from .pool_context import Shared
from .server import Server
from .start_stop import order_stop

T = TypeVar("T")
Visit = Callable[[str, Server], object]


class Members(Mapping[str, Server]):
    """Servers keyed by canonical bind address, in the order in which they came. Thread-safe."""

    def __init__(self, shared: Shared, *, seen_of: Members | None = None) -> None:
        self._shared = shared
        self._is_view = seen_of is not None
        self._whole = self if seen_of is None else seen_of  # the pool itself, where this is a view
        self._servers: dict[str, Server] = {}
        self._own: set[Server] = set()  # for a view: the servers that were stored in it, not in its pool
        self._ports = UsedPorts()
        self._departed: set[Handle] = set()
        self._changes = 0

    # A mapping. Iterations are over a snapshot, so that others may change the pool meanwhile.

    def __getitem__(self, bind: str) -> Server:
        server = self.load(bind)
        if server is None:
            raise KeyError(bind)
        return server

    def __iter__(self) -> Iterator[str]:
        return iter(self._snapshot())

    def __len__(self) -> int:
        return len(self._servers)

    def __contains__(self, bind: object) -> bool:
        return self.load(bind) is not None  # type: ignore[arg-type]

    def keys(self) -> KeysView[str]:
        """The current addresses."""
        return self._snapshot().keys()

    def values(self) -> ValuesView[Server]:
        """The current servers."""
        return self._snapshot().values()

    def items(self) -> ItemsView[str, Server]:
        """The current addresses and servers."""
        return self._snapshot().items()

    def load(self, bind: str) -> Server | None:
        """The server with that address, in constant time; None for an unknown or invalid address."""
        try:
            return self._servers.get(bind) or self._servers.get(_key(bind))
        except TypeError:  # not even hashable
            return None

    def has(self, bind: str) -> bool:
        """Whether there is a server with that address."""
        return self.load(bind) is not None

    # Coming and going.

    def store(self, server: Server) -> None:
        """Add the server. A server with the same address is replaced, and ordered to stop if it runs.

        Raises PoolAddError when the address overlaps with another address, PoolParamError for a value that is not a
        Server.
        """
        if not isinstance(server, Server):
            raise PoolParamError(
                f"a pool stores servers, and this is {server!r}; store_new() takes configurations"
            )
        with LOCK:
            config = server.config
            old = self._servers.get(config.bind)
            if old is server:
                return
            if old is None:
                obstacle = overlapping(config.address, self._servers, self._ports)
                if obstacle is not None:
                    raise _overlapping(config, obstacle)
                self._ports.count(config.address, 1)
            self._changes += 1
            self._servers[config.bind] = server
            if self._is_view:
                if not self._holds(server):
                    self._own.add(server)
            else:
                server._shared = self._shared  # from its next start on
                if old is not None:
                    self._see_off([old])

    def store_new(self, config: ServerConfig | Mapping[str, Any]) -> Server:
        """Create a server from `config` and add it as `store` does.

        Raises PoolAddError; PoolValidateError for a mapping that is no configuration of a server.
        """
        if isinstance(config, Mapping):
            config = ServerConfig(**config)
        try:
            server = Server(config)
        except ServerError as error:
            raise PoolAddError(f"{config.name} cannot be added", [error]) from error
        self.store(server)
        return server

    def delete(self, bind: str) -> None:
        """Remove the server with that address, if there is one.

        A running server is ordered to stop; `join` waits for it.
        """
        self.load_and_delete(bind)

    def load_and_delete(self, bind: str) -> Server | None:
        """Remove and return the server with that address; only one of several callers gets it."""
        with LOCK:
            server = self.load(bind)
            if server is not None:
                self._changes += 1
                # In a view it may have another address than when it was put there.
                del self._servers[bind if bind in self._servers else _key(bind)]
                self._ports.count(server.config.address, -1)
                if not self._is_view:
                    self._see_off([server])
            return server

    def clean(self) -> None:
        """Remove all servers, as `delete` does."""
        with LOCK:
            self._changes += 1
            servers = list(self._servers.values())
            self._servers.clear()
            self._ports.reset()
            if not self._is_view:
                self._see_off(servers)

    def _arrange(self, servers: Sequence[Server]) -> list[Server]:
        """Replace the servers by these, in this order, and return those that are no longer included.

        Their addresses must not overlap. Called under LOCK.
        """
        staying = set(servers)
        gone = [server for server in self._servers.values() if server not in staying]
        self._changes += 1
        self._servers = {server.bind: server for server in servers}
        self._ports.reset()
        for server in servers:
            server._shared = self._shared
        self._see_off(gone)
        return gone

    def _see_off(self, servers: Iterable[Server]) -> None:
        """Order removed servers that run to stop. Called under LOCK."""
        busy = [handle for server in servers if (handle := living(server)) is not None and handle.busy]
        order_stop(busy)
        self._departed.update(busy)

    async def join(self) -> None:
        """Wait until all servers that were ordered to stop have stopped.

        Raises PoolStopError for servers that still run.
        """
        while futures := self._endings():
            done, _ = await asyncio.wait([asyncio.wrap_future(future) for future in futures])
            for each in done:
                each.cancelled() or each.exception()  # marked as retrieved; raised below
            self._raise_failed(futures)

    def join_sync(self) -> None:
        """Like `join`, but blocks."""
        loop_thread.refuse_own_thread()
        while futures := self._endings():
            concurrent.futures.wait(futures)
            self._raise_failed(futures)

    def _endings(self) -> set[concurrent.futures.Future[None]]:
        context = self._shared.context
        if context is not None and context.cancelled:
            context.cancel()  # setting its event has ordered them to stop, whether its watcher has seen it or not
        with LOCK:
            self._departed = {handle for handle in self._departed if handle.stops or handle.ending}
            present = [handle for each in self._servers.values() if (handle := living(each)) is not None]
            return {
                future for handle in (*self._departed, *present) for future in (*handle.stops, *handle.ending)
            }

    @staticmethod
    def _raise_failed(futures: Iterable[concurrent.futures.Future[None]]) -> None:
        raised = [future.exception() for future in futures if future.done() and not future.cancelled()]
        errors = [child for error in raised if isinstance(error, PoolStopError) for child in error.exceptions]
        if errors:
            raise PoolStopError(f"{len(errors)} servers did not stop", errors)

    # Looking.

    def walk(self, fn: Visit) -> bool:
        """Call ``fn(bind, server)`` for each server until it returns False. Returns whether all were visited.

        Over a snapshot: `fn` may change the pool.
        """
        return all(fn(bind, server) is not False for bind, server in self._snapshot().items())

    def walk_limit(self, fn: Visit, *binds: str) -> bool:
        """Like `walk`, but only for the servers with these addresses, in that order. Unknown addresses are skipped.

        No address means all.
        """
        if not binds:
            return self.walk(fn)
        with LOCK:
            servers = [server for bind in binds if (server := self.load(bind)) is not None]
        return all(fn(server.bind, server) is not False for server in dict.fromkeys(servers))

    def _holds(self, server: Startable) -> bool:
        """Whether the server is in the pool; servers stored in a view are only there."""
        return server in self._own or self._whole._servers.get(server.bind) is server

    def _snapshot(self) -> dict[str, Server]:
        with LOCK:
            return self._servers.copy()

    def _look(self, look: Callable[[dict[str, Server]], T]) -> T:
        """The result of calling `look` with a consistent dictionary of the servers, which it must not keep.

        Copying 100,000 servers first would cost a fifth of a filter, so it is done only if the pool was changed
        meanwhile; and never is the lock held while a regular expression runs.
        """
        before = self._changes
        try:
            found = look(self._servers)
        except RuntimeError:  # changed while it was gone through
            return look(self._snapshot())
        return found if self._changes == before else look(self._snapshot())


def _key(bind: str) -> str:
    try:
        return canonical(bind)
    except AddressError:
        return ""


def _overlapping(config: ServerConfig, obstacle: Server) -> PoolAddError:
    problem = ServerError(
        f"its address overlaps with that of {obstacle.name!r}, {obstacle.bind}",
        name=config.name,
        bind=config.bind,
        hint="give one of them another port",
    )
    return PoolAddError(f"{config.name} cannot be added", [problem])
