"""What a pool gives to each of its servers: the shared handler, default TLS, context, runner and clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from poolctl.clock import Clock
from poolctl.config import ServerConfig, TLSConfig
from poolctl.errors import ServerError
from poolctl.runners.protocol import Runner

if TYPE_CHECKING:
    from .context import PoolContext

Handler = Callable[[], Mapping[str, Any]]

# What golib, whose configurations load as they are, calls the handler that no key asks for.
_KEYLESS = ("", "default")


class Shared:
    """One pool's, and the same for all of its servers."""

    __slots__ = ("clock", "context", "handler", "runner", "tls")

    def __init__(
        self,
        *,
        handler: Handler | None = None,
        context: PoolContext | None = None,
        runner: Runner | None = None,
        tls: TLSConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.handler = handler
        self.context = context
        self.runner = runner
        self.tls = tls
        self.clock = clock or Clock()

    @property
    def values(self) -> Mapping[str, Any]:
        """What applications find in their state."""
        return self.context.values if self.context is not None else {}

    def prepare(self, config: ServerConfig) -> ServerConfig:
        """The configuration as it is to be started. Raises ServerError for what is not to be."""
        if self.context is not None and self.context.cancelled:
            raise _problem(config, "its context was cancelled", "make a new PoolContext")
        if config.disabled:
            raise _problem(config, "is disabled", "take `disabled = true` out of its configuration")
        return self.furnish(config)

    def furnish(self, config: ServerConfig) -> ServerConfig:
        """The configuration with the shared handler and the default TLS put in. Raises ServerError."""
        found: dict[str, Any] = {}
        if config.tls is True:
            found["tls"] = self._default_tls(config)
        if config.app is None and not config.command:
            app = self._handler(config)
            if app is not None:
                found["app"] = app
        return config.model_copy(update=found) if found else config

    def _default_tls(self, config: ServerConfig) -> TLSConfig:
        if self.tls is None:
            raise _problem(config, "asks for TLS, and there is no default", "set_default_tls(TLSConfig(…))")
        return self.tls

    def _handler(self, config: ServerConfig) -> Any:
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
