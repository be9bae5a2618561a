"""What the servers of a pool share: its PoolContext, runner, default TLS and the handler that provides their apps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from poolctl.config import Recovery, ServerConfig, TLSConfig, with_resolved_references, wrong_references
from poolctl.errors import ServerError
from poolctl.runners.runner_protocol import Runner

from .loop_thread import LOCK

Handler = Callable[[], Mapping[str, object]]

# The keys of the default handler in golib, whose configuration files can be loaded unchanged.
_DEFAULT_KEYS = ("", "default")
# How long the watcher thread lingers after the last server has detached.
_LINGER_SECONDS = 5.0


class PoolContext:
    """Values passed to applications in ``scope["state"]``, and `cancel`, which stops all servers of a pool.

    Setting `stop`, an event that may be shared with other parts of a program, stops them as well.
    """

    def __init__(
        self, values: Mapping[str, object] | None = None, stop: threading.Event | None = None
    ) -> None:
        self.values: dict[str, object] = dict(values or {})
        self.stop = stop if stop is not None else threading.Event()
        self._callbacks: dict[object, Callable[[], object]] = {}
        self._watcher: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<PoolContext {'cancelled' if self.cancelled else 'live'}, {len(self.values)} values>"

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called or `stop` is set. If so, servers of pools with this PoolContext do not start."""
        return self.stop.is_set()

    def cancel(self) -> None:
        """Stop every server that runs under this context. Does not block; `Pool.join` awaits them."""
        self.stop.set()
        with LOCK:
            endings = list(self._callbacks.values())
            self._callbacks.clear()
        for end in endings:
            end()

    def attach(self, key: object, callback: Callable[[], object]) -> None:
        """Register `callback` for cancellation; call it at once if the context is already cancelled.

        `detach` with the same `key` undoes this.
        """
        with LOCK:
            self._callbacks[key] = callback
            if self._watcher is None or not self._watcher.is_alive():  # no thread survives a fork
                self._watcher = threading.Thread(target=self._watch, name="poolctl-context", daemon=True)
                self._watcher.start()
        if self.stop.is_set():
            self.cancel()

    def detach(self, key: object) -> None:
        """Remove the callback that `attach` registered under `key`."""
        with LOCK:
            self._callbacks.pop(key, None)

    def _watch(self) -> None:
        while True:
            if self.stop.wait(_LINGER_SECONDS):
                self.cancel()
            with LOCK:
                if not self._callbacks:
                    self._watcher = None
                    return


_RUNS_ELSEWHERE = "run the pool with `poolctl start`, or Pool(…, runner=poolctl.ProcessRunner())"


def _keys_of_supervisor(config: ServerConfig) -> list[str]:
    """The configured keys that need a supervisor, whatever the runner."""
    uses = {
        "limits.memory": config.limits.memory is not None,
        "mandatory": config.mandatory,
        "reload_signal": config.reload_signal is not None,
        "recovery": config.recovery != Recovery() and config.recovery.strategy != "none",
        "scale.max": config.scale.max > config.workers,
    }
    return [key for key, used in uses.items() if used]


@dataclass(slots=True, eq=False)
class Shared:
    """The settings that all servers of one pool share."""

    context: PoolContext | None = None
    runner: Runner | None = None
    handler: Handler | None = None
    tls: TLSConfig | None = None

    @property
    def values(self) -> Mapping[str, object]:
        """The values that applications find in ``scope["state"]``."""
        return self.context.values if self.context is not None else {}

    def startable_config(self, config: ServerConfig) -> ServerConfig:
        """Complete `config` for a start: unescape literals, add the handler's app and the default TLS if needed.

        Raises ServerError if the server cannot be started, for example because it is disabled.
        """
        if self.context is not None and self.context.cancelled:
            raise error_about(config, "its context was cancelled", "make a new PoolContext")
        if config.disabled:
            raise error_about(config, "is disabled", "take `disabled = true` out of its configuration")
        if config.every is not None and self.runner is None:
            # Fail now: otherwise the job's first run would fail, perhaps hours later.
            raise error_about(config, "`every` cannot be honoured inside this process", _RUNS_ELSEWHERE)
        if used := _keys_of_supervisor(config):
            keys = ", ".join(f"`{key}`" for key in used)
            hint = "run the pool with `poolctl start`, or remove what only its supervisor does"
            raise error_about(config, f"{keys} cannot be honoured inside a Python program", hint)
        # A server that was never in a pool may refer to others; in a pool only literals `$${server.` are left.
        for finding in wrong_references([config]).get(0, ()):
            raise error_about(config, finding.message, finding.hint)
        (config,) = with_resolved_references([config])
        updates: dict[str, object] = {}
        if config.tls is True:
            if self.tls is None:
                hint = "set_default_tls(TLSConfig(…))"
                raise error_about(config, "asks for TLS, and there is no default", hint)
            updates["tls"] = self.tls
        if config.app is None and not config.command:
            app = self._app_of(config)
            if app is not None:
                updates["app"] = app
        return config.model_copy(update=updates) if updates else config

    def _app_of(self, config: ServerConfig) -> object:
        key = config.handler_key
        if self.handler is None:
            if config.handlers:
                return None  # named in the file: the server's worker imports it
            raise error_about(
                config, "has no app, no command and no handler", "give it an `app`, or the pool a handler"
            )
        try:
            handlers = self.handler()
        except (Exception, SystemExit) as error:  # an exit would end the loop of the other servers
            raise error_about(config, f"the handler failed: {type(error).__name__}: {error}", "") from error
        if not isinstance(handlers, Mapping):
            problem = f"the handler gives no mapping of applications, but {handlers!r}"
            raise error_about(config, problem, "have it return {key: application}")
        for name in (key,) if key else _DEFAULT_KEYS:
            if name in handlers:
                return handlers[name]
        if not key and len(handlers) == 1:
            return next(iter(handlers.values()))
        known_keys = ", ".join(repr(name) for name in handlers) or "none"
        raise error_about(config, f"the handler has nothing under {key!r}", f"it has: {known_keys}")


def error_about(config: ServerConfig, message: str, hint: str = "") -> ServerError:
    """An error that names the server with this configuration."""
    return ServerError(message, name=config.name, bind=config.key, hint=hint)
