"""Server: one entry of the pool, its configuration and what it does now."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from poolctl.address import Address
from poolctl.config import ServerConfig
from poolctl.errors import PoolMonitorError, PoolParamError, ServerError
from poolctl.states import State, Status

from . import engine, together
from .home import Home
from .life import Life
from .lock import LOCK
from .monitor import Monitor, observe
from .ports import with_port
from .together import Timeout

_NO_POOL = Home()


class Server:
    """One server. Lives in this process unless its pool has another runner; any method from any thread.

    Alone it may be started too; what it lacks (a handler, default TLS) comes from the pool that stores it.
    """

    # 100,000 of them are a use case: what runs is in `_life`, which only those have that were started. Name and
    # expose are the configuration's, at hand for filters.
    __slots__ = ("_config", "_expose", "_home", "_life", "_name")

    def __init__(self, config: ServerConfig) -> None:
        """Raises PoolParamError for what is no ServerConfig, ServerError when no port is free for `auto`."""
        if not isinstance(config, ServerConfig):
            raise PoolParamError(f"a Server is made from a ServerConfig, and this is {config!r}")
        self._put(with_port(config))
        self._home = _NO_POOL
        self._life: Life | None = None

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
        """Where it listens."""
        return self._config.address

    @property
    def expose(self) -> str:
        """The address that clients use."""
        return self._expose

    @property
    def config(self) -> ServerConfig:
        """The configuration that the next start uses; what runs now may lag behind it (see `stale`)."""
        return self._config

    @property
    def state(self) -> State:
        """What it does now; `disabled` when it is not to be started."""
        life = self._living()
        if life is None or (life.state is State.STOPPED and self._config.disabled):
            return State.DISABLED if self._config.disabled else State.STOPPED
        return life.state

    @property
    def health(self) -> Status:
        """What its probes say; without any, ok while it answers, ko when it has failed, else unknown."""
        life = self._living()
        if life is not None and life.wellness.status is not None:
            return life.wellness.status
        if self.ready:
            return Status.OK
        return Status.KO if self.state is State.FAILED else Status.UNKNOWN

    @property
    def ready(self) -> bool:
        """Whether it has answered, takes requests and is not ko; a job is ready when it has ended with 0."""
        life = self._living()
        return life is not None and life.well

    @property
    def message(self) -> str:
        """Why it failed or ended; empty when there is nothing to say."""
        life = self._living()
        return life.message if life is not None else ""

    @property
    def pids(self) -> list[int]:
        """The processes that serve it, none twice; this process's for servers that run inside it."""
        life = self._living()
        placements = life.placements if life is not None else ()
        return list(dict.fromkeys(each.pid for each in placements if each.pid is not None))

    @property
    def endpoints(self) -> list[str]:
        """The addresses on which its listener is open."""
        life = self._living()
        return list(life.berth.endpoints) if life is not None else []

    @property
    def is_running(self) -> bool:
        """Whether it runs, which nothing is called before it has answered."""
        return self.state is State.RUNNING

    @property
    def uptime(self) -> timedelta:
        """How long this instance has been ready; zero while there is none."""
        life = self._living()
        running = life is not None and life.state is State.RUNNING
        return timedelta(seconds=life.record.uptime_seconds if life is not None and running else 0.0)

    @property
    def stale(self) -> bool:
        """Whether it runs with an older configuration than its own: the next start or restart swaps it."""
        life = self._living()
        return life is not None and life.stale

    async def start(self, *, timeout: Timeout = None) -> None:
        """Return when it answers; at once if it does already. Raises PoolStartError of one child.

        `timeout` is in seconds (or a timedelta, or "5s"); it passing is a child with a TimeoutError as cause.
        """
        await engine.run(together.start([self], timeout))

    async def stop(self, *, timeout: Timeout = None) -> None:
        """Return when it has ended; killed after `stop_timeout` or `timeout`. Raises PoolStopError."""
        await engine.run(together.stop([self], timeout))

    async def restart(self, *, timeout: Timeout = None) -> None:
        """Return when a new instance answers on the same listener. Raises PoolRestartError; then the old one stays.

        A server that is stopped is started.
        """
        await engine.run(together.restart([self], timeout))

    def start_sync(self, *, timeout: Timeout = None) -> None:
        """`start`, blocking."""
        engine.run_sync(together.start([self], timeout))

    def stop_sync(self, *, timeout: Timeout = None) -> None:
        """`stop`, blocking."""
        engine.run_sync(together.stop([self], timeout))

    def restart_sync(self, *, timeout: Timeout = None) -> None:
        """`restart`, blocking."""
        engine.run_sync(together.restart([self], timeout))

    def monitor(self) -> Monitor:
        """A snapshot; of a server without probes one connection measures the latency: blocks for at most a second.

        Raises PoolMonitorError.
        """
        try:
            return observe(self, self._living())
        except ServerError as error:
            raise PoolMonitorError(f"{self.name} cannot be monitored", [error]) from error

    def _living(self) -> Life | None:
        """What runs; not in a forked child, where nothing of it is left."""
        life = self._life
        return life if life is not None and life.epoch == engine.epoch else None

    def _alive(self) -> Life:
        with LOCK:
            life = self._living()
            if life is None:
                life = self._life = Life(self)
            return life

    def _move(self, home: Home) -> None:
        """Belong to that pool from the next start on."""
        self._home = home

    def _reconfigure(self, config: ServerConfig) -> None:
        if config != self._config:
            self._put(config)

    def _put(self, config: ServerConfig) -> None:
        self._config = config
        self._name = config.name
        self._expose = config.expose

    def __reduce__(self) -> Any:
        raise TypeError("a Server cannot be pickled; pickle its config")
