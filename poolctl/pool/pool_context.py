"""Shared settings of a pool's servers: values for applications and a way to end them all, a handler, TLS, a runner."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from poolctl.clock import Clock
from poolctl.config import ServerConfig, TLSConfig
from poolctl.errors import ServerError
from poolctl.runners.runner_protocol import Runner

from .loop_thread import LOCK

Handler = Callable[[], Mapping[str, object]]

# The keys of the default handler in golib, whose configurations load unchanged.
_KEYLESS = ("", "default")
# How long the watching of an event outlives the servers that it was for; setting the event wakes it at once.
_LINGER_SECONDS = 5.0


class PoolContext:
    """Values that reach applications in ``scope["state"]``, and `cancel`, which ends the servers.

    Setting `stop`, an event that may be shared with other parts of a program, cancels as well.
    """

    def __init__(
        self, values: Mapping[str, object] | None = None, stop: threading.Event | None = None
    ) -> None:
        self.values: dict[str, object] = dict(values or {})
        self.stop = stop if stop is not None else threading.Event()
        self._endings: dict[object, Callable[[], object]] = {}
        self._watcher: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<PoolContext {'cancelled' if self.cancelled else 'live'}, {len(self.values)} values>"

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called or `stop` set: no server starts under this context afterwards."""
        return self.stop.is_set()

    def cancel(self) -> None:
        """Stop every server that runs under this context. Does not block; `Pool.join` awaits them."""
        self.stop.set()
        with LOCK:
            endings = list(self._endings.values())
            self._endings.clear()
        for end in endings:
            end()

    def attach(self, key: object, end: Callable[[], object]) -> None:
        """Call `end` when the context is cancelled, or at once if it already is."""
        with LOCK:
            self._endings[key] = end
            if self._watcher is None or not self._watcher.is_alive():  # it does not survive a fork
                self._watcher = threading.Thread(target=self._watch, name="poolctl-context", daemon=True)
                self._watcher.start()
        if self.stop.is_set():
            self.cancel()

    def detach(self, key: object) -> None:
        """Remove the callback that `attach` registered under `key`."""
        with LOCK:
            self._endings.pop(key, None)

    def _watch(self) -> None:
        while True:
            if self.stop.wait(_LINGER_SECONDS):
                self.cancel()
            with LOCK:
                if not self._endings:
                    self._watcher = None
                    return


_RUNS_ELSEWHERE = (
    "run the pool with `poolctl start`, or Pool(…, runner=poolctl.runners.embedded_runner.ProcessRunner())"
)


class Shared:
    """The settings that all servers of one pool share."""

    __slots__ = ("clock", "context", "handler", "runner", "tls")

    def __init__(self, context: PoolContext | None = None, runner: Runner | None = None) -> None:
        self.context = context
        self.runner = runner
        self.handler: Handler | None = None
        self.tls: TLSConfig | None = None
        self.clock = Clock()

    @property
    def values(self) -> Mapping[str, object]:
        """The values that applications find in their state."""
        return self.context.values if self.context is not None else {}

    def prepare(self, config: ServerConfig) -> ServerConfig:
        """The configuration to start with, completed by the shared handler and default TLS.

        Raises ServerError for a server that must not be started.
        """
        if self.context is not None and self.context.cancelled:
            raise _problem(config, "its context was cancelled", "make a new PoolContext")
        if config.disabled:
            raise _problem(config, "is disabled", "take `disabled = true` out of its configuration")
        if config.every is not None and self.runner is None:
            # Its first run, which may be hours away, would be the first to fail.
            raise _problem(config, "`every` cannot be honoured inside this process", _RUNS_ELSEWHERE)
        found: dict[str, object] = {}
        if config.tls is True:
            if self.tls is None:
                hint = "set_default_tls(TLSConfig(…))"
                raise _problem(config, "asks for TLS, and there is no default", hint)
            found["tls"] = self.tls
        if config.app is None and not config.command:
            app = self._handler(config)
            if app is not None:
                found["app"] = app
        return config.but(**found) if found else config

    def _handler(self, config: ServerConfig) -> object:
        key = config.handler_key
        if self.handler is None:
            if config.handlers:
                return None  # named in the file: the server's worker imports it
            raise _problem(
                config, "has no app, no command and no handler", "give it an `app`, or the pool a handler"
            )
        try:
            handlers = self.handler()
        except (Exception, SystemExit) as error:  # an exit would end the loop of the other servers
            raise _problem(config, f"the handler failed: {type(error).__name__}: {error}", "") from error
        if not isinstance(handlers, Mapping):
            problem = f"the handler gives no mapping of applications, but {handlers!r}"
            raise _problem(config, problem, "have it return {key: application}")
        for name in (key,) if key else _KEYLESS:
            if name in handlers:
                return handlers[name]
        if not key and len(handlers) == 1:
            return next(iter(handlers.values()))
        have = ", ".join(repr(name) for name in handlers) or "none"
        raise _problem(config, f"the handler has nothing under {key!r}", f"it has: {have}")


def _problem(config: ServerConfig, message: str, hint: str) -> ServerError:
    return ServerError(message, name=config.name, bind=config.key, hint=hint)
