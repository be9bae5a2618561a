"""Server: one entry of the pool, with its configuration and current state."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from datetime import timedelta
from typing import NoReturn

from poolctl.address import Address
from poolctl.config import ServerConfig
from poolctl.errors import (
    PoolError,
    PoolMonitorError,
    PoolParamError,
    PoolRestartError,
    PoolStartError,
    ServerError,
)
from poolctl.listeners.port_ledger import is_free
from poolctl.states import State, Status

from . import loop_thread, start_stop
from .live_servers import Handle, Startable, living
from .loop_thread import LOCK
from .pool_context import Shared
from .server_monitor import Monitor, observe
from .start_stop import Membership, Timeout, seconds

DEFAULT_PORT_RANGE = "20000-29999"

_NO_POOL = Shared()
# The ports that were chosen for `auto` and perhaps are not bound yet: two servers made one after the other differ.
_chosen_ports: set[int] = set()


class StartAndStop:
    """`start`, `stop` and `restart`, for one server or all servers of a pool, each with a blocking counterpart.

    A timeout is in seconds, a timedelta, or "5s".
    """

    __slots__ = ()

    def _chosen(self) -> tuple[Sequence[Startable], Membership | None]:
        """The servers to act on, and the pool if a whole pool is started."""
        raise NotImplementedError

    def _start(self, timeout: Timeout, kind: type[PoolError] = PoolStartError) -> Coroutine[None, None, None]:
        servers, pool = self._chosen()
        return start_stop.start(servers, seconds(timeout), pool, kind)

    def _stop(self, timeout: Timeout) -> Coroutine[None, None, None]:
        return start_stop.stop(self._chosen()[0], seconds(timeout))

    async def start(self, *, timeout: Timeout = None) -> None:
        """Return when the server answers; for a pool, when all enabled servers answer, dependencies first.

        Raises PoolStartError with every failure; failures due to the timeout have a TimeoutError as cause.
        """
        await loop_thread.run(self._start(timeout))

    async def stop(self, *, timeout: Timeout = None) -> None:
        """Return when all servers have ended; each is killed after its `stop_timeout`, or `timeout`.

        Raises PoolStopError.
        """
        await loop_thread.run(self._stop(timeout))

    async def restart(self, *, timeout: Timeout = None) -> None:
        """Return when a new instance answers on the same listener; a stopped server is started.

        Raises PoolRestartError; a server whose restart failed keeps its old instance.
        """
        await loop_thread.run(self._start(timeout, PoolRestartError))

    def start_sync(self, *, timeout: Timeout = None) -> None:
        """Like `start`, but blocks."""
        loop_thread.run_sync(self._start(timeout))

    def stop_sync(self, *, timeout: Timeout = None) -> None:
        """Like `stop`, but blocks."""
        loop_thread.run_sync(self._stop(timeout))

    def restart_sync(self, *, timeout: Timeout = None) -> None:
        """Like `restart`, but blocks."""
        loop_thread.run_sync(self._start(timeout, PoolRestartError))


class Server(StartAndStop):
    """One server of a pool. Any thread may call any method.

    It runs in this process unless its pool has another runner. It may also be started alone; a missing handler or
    default TLS comes from the pool that stores it.
    """

    # 100,000 of them are a use case: only started servers have a handle. Name and expose are copied from the
    # configuration for filters.
    __slots__ = ("__weakref__", "_config", "_expose", "_handle", "_name", "_shared")

    def __init__(self, config: ServerConfig) -> None:
        """Raises PoolParamError for a value that is not a ServerConfig, ServerError if no port is free for `auto`."""
        if not isinstance(config, ServerConfig):
            raise PoolParamError(f"a Server is made from a ServerConfig, and this is {config!r}")
        self._put(with_port(config))
        self._shared = _NO_POOL
        self._handle: Handle | None = None

    def __repr__(self) -> str:
        parts = [self.name, self.bind, str(self.state)]
        parts += ["ready"] * (self.ready and self.state is not State.RUNNING) + ["stale"] * self.stale
        return f"<Server {' '.join(parts)}>"

    @property
    def name(self) -> str:
        """Its name, unique in a configuration."""
        return self._name

    @property
    def bind(self) -> str:
        """The canonical bind address: its key in the pool."""
        return self._config.bind

    @property
    def address(self) -> Address:
        """The address on which the server listens."""
        return self._config.address

    @property
    def expose(self) -> str:
        """The address that clients use."""
        return self._expose

    @property
    def config(self) -> ServerConfig:
        """The configuration for the next start; the running instance may still use an older one (see `stale`)."""
        return self._config

    @property
    def state(self) -> State:
        """The current state; `disabled` for a server that must not be started."""
        handle = living(self)
        if handle is not None and (state := handle.observed.state) is not State.STOPPED:
            return state
        return State.DISABLED if self._config.disabled else State.STOPPED

    @property
    def health(self) -> Status:
        """The health by its probes; without probes, ok while it answers, ko if it has failed, else unknown."""
        handle = living(self)
        if handle is None:
            return Status.UNKNOWN
        if handle.observed.probed or handle.observed.health is Status.KO:
            return handle.observed.health
        if handle.observed.ready:
            return Status.OK
        return Status.KO if handle.observed.state is State.FAILED else Status.UNKNOWN

    @property
    def ready(self) -> bool:
        """Whether the server answers, takes requests and is not ko. A job is ready when it has ended with 0."""
        handle = living(self)
        return handle is not None and handle.observed.ready

    @property
    def message(self) -> str:
        """The reason why the server failed or ended, or ""."""
        handle = living(self)
        return handle.observed.message if handle is not None else ""

    @property
    def pids(self) -> list[int]:
        """The processes that serve it, each once; this process's for servers that run inside it."""
        handle = living(self)
        return list(handle.observed.pids) if handle is not None else []

    @property
    def endpoints(self) -> list[str]:
        """The addresses on which its listener is open."""
        handle = living(self)
        return list(handle.observed.endpoints) if handle is not None else []

    @property
    def is_running(self) -> bool:
        """Whether the server runs. False until it has answered for the first time."""
        return self.state is State.RUNNING

    @property
    def uptime(self) -> timedelta:
        """How long this instance has been ready; zero without a ready instance."""
        handle = living(self)
        running = handle is not None and handle.observed.state is State.RUNNING
        return timedelta(seconds=handle.uptime_seconds if handle is not None and running else 0.0)

    @property
    def stale(self) -> bool:
        """Whether the server runs with an older configuration than `config`, until its next start or restart."""
        handle = living(self)
        if handle is None or handle.observed.state is not State.RUNNING:
            return False
        return handle.observed.config is not self._config

    def monitor(self) -> Monitor:
        """A snapshot; for a server without probes one connection measures the latency. Blocks for at most a second.

        Raises PoolMonitorError.
        """
        try:
            return observe(self.name, self.bind, self.state, living(self))
        except ServerError as error:
            raise PoolMonitorError(f"{self.name} cannot be monitored", [error]) from error

    def _chosen(self) -> tuple[Sequence[Startable], Membership | None]:
        return [self], None

    def _put(self, config: ServerConfig) -> None:
        self._config = config
        self._name = config.name
        self._expose = config.expose

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Server cannot be pickled; pickle its config")


def with_port(config: ServerConfig, port_range: str = "") -> ServerConfig:
    """The configuration, with a free port of the range in place of `auto`, kept from now on. Raises ServerError."""
    address = config.address
    if not address.auto:
        return config
    port_range = port_range or DEFAULT_PORT_RANGE
    first, _, last = port_range.partition("-")
    with LOCK:
        for port in range(int(first), int(last or first) + 1):
            if port not in _chosen_ports and is_free(address, port):
                _chosen_ports.add(port)
                return config.at(address.with_port(port))
    raise ServerError(
        f"no port is free in {port_range}",
        name=config.name,
        bind=config.bind,
        hint='widen it: [pool] port_range = "FIRST-LAST"',
    )
