"""PoolConfig: the servers of a pool, from files or from Python, and the way to the pool itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from poolctl.config import (
    Configuration,
    Finding,
    Problem,
    ServerConfig,
    TLSConfig,
    conflicts,
    dependency_findings,
    load,
    problem_of,
    shown,
)  # fmt: skip
from poolctl.errors import PoolAddError, PoolParamError, PoolValidateError, ServerError

from .pool import Pool, Servers, configurations, with_ports
from .pool_context import Handler, PoolContext

if TYPE_CHECKING:
    from poolctl.runners.runner_protocol import Runner


class PoolConfig(Configuration):
    """The valid servers in their order; `.problems` are the problems of the others. The constructor never raises."""

    def __init__(self, servers: Servers = ()) -> None:
        super().__init__()
        self._context: PoolContext | None = None
        self._servers = self._valid(self._made(servers))

    @classmethod
    def load(
        cls,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
    ) -> PoolConfig:
        """The configuration of files and directories; later files override earlier files.

        `env` (default: the process's) resolves `${VAR}`. Blocks on the disk. Raises PoolValidateError when a file
        cannot be read or parsed; problems of single servers are in `.problems`.
        """
        if env is not None and not isinstance(env, Mapping):
            raise PoolParamError(
                f"an environment is a mapping, and this is {env!r}", hint="load([one, other])"
            )
        config = cls()
        # A configuration of files has the same state, and no context.
        vars(config).update(vars(load(paths, env)))
        return config

    def _made(self, servers: Servers) -> list[ServerConfig]:
        try:
            made, self._problems = configurations(servers)
        except TypeError:
            made = []
            self._problems.append(Problem(f"{shown(servers)} is no list of servers", hint="give it a list"))
        return made

    def _valid(self, servers: list[ServerConfig]) -> list[ServerConfig]:
        out: set[int] = set()
        for index, _, finding in conflicts([(server.name, server.address) for server in servers]):
            out.add(index)
            self._problems.append(_problem(servers[index], finding))
        kept = [server for index, server in enumerate(servers) if index not in out]
        failed = [problem.name for problem in self._problems]
        for server, finding in dependency_findings(kept, failed):
            out.update(index for index, other in enumerate(servers) if other is server)
            self._problems.append(_problem(server, finding))
        self._excluded = [servers[index] for index in sorted(out)]
        return [server for index, server in enumerate(servers) if index not in out]

    def set_handler(self, handler: Handler | None) -> None:
        """Let `handler` provide the applications of servers without one, as `{handler_key: ASGI app}`."""
        if handler is not None and not callable(handler):
            raise PoolParamError(
                f"{shown(handler)} is no handler", hint="give it a function: () -> {key: app}"
            )
        self._handler = handler

    def set_default_tls(self, tls: TLSConfig | Mapping[str, Any] | None) -> None:
        """Use these certificates for the servers that ask for TLS without their own (`tls=True`)."""
        if isinstance(tls, Mapping):
            tls = TLSConfig(**tls)
        if tls is not None and not isinstance(tls, TLSConfig):
            raise PoolParamError(f"{shown(tls)} is no TLSConfig", hint="write TLSConfig(cert=…, key=…)")
        self._tls = tls

    def set_context(self, context: PoolContext | None) -> None:
        """Use this PoolContext for the pool's servers; cancelling it stops them."""
        if context is not None and not isinstance(context, PoolContext):
            raise PoolParamError(f"{shown(context)} is no PoolContext", hint="write PoolContext(values={…})")
        self._context = context

    def walk(self, fn: Callable[[ServerConfig], bool | None]) -> bool:
        """Call `fn` with each server in order until it returns False. Returns whether all were visited."""
        return all(fn(server) is not False for server in list(self._servers))

    def validate(self, *, import_apps: bool = True) -> None:
        """Check everything, the outside world too: files, certificates, interpreters, importable apps.

        Blocks for as long as the apps take to import, each in its own interpreter, never in this process. Raises
        PoolValidateError with every problem of every server.
        """
        unserved = [] if self.files else self._unserved()
        problems = [*self.problems, *unserved, *self.outside(import_apps=import_apps)]
        if problems:
            count = len(problems)
            raise PoolValidateError(f"the configuration has {count} problem{'s' * (count > 1)}", problems)

    def pool(
        self,
        *,
        handler: Handler | None = None,
        context: PoolContext | None = None,
        runner: Runner | None = None,
    ) -> Pool:
        """Create a pool of the valid servers, without starting them.

        Raises PoolAddError with every problem; its `.pool` holds the valid servers.
        """
        pool = Pool(handler=handler or self._handler, context=context or self._context, runner=runner)
        pool._shared.tls = self._tls
        servers, errors = with_ports(self, {})
        for server in servers:
            try:
                pool.store_new(server)
            except PoolAddError as error:
                errors += error.exceptions
            except ServerError as error:
                errors.append(error)
        if errors:
            raise pool._not_added(errors)
        return pool


def _problem(server: ServerConfig, finding: Finding) -> Problem:
    return problem_of(finding, name=server.name, bind=server.bind)
