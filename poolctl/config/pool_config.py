"""PoolConfig: the servers of a pool, and what is wrong with those that are not among them."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from poolctl.config.model.conflicts import conflicts, shared_users
from poolctl.config.model.dependencies import dependency_findings
from poolctl.config.model.problems import Finding, Place, Problem, dotted, shown
from poolctl.config.model.secrets import MASK, pool_variables
from poolctl.config.model.section import problem_of
from poolctl.config.model.sections import TLSConfig
from poolctl.config.model.server import ServerConfig
from poolctl.config.model.settings import PoolSettings
from poolctl.config.model.tables import Tables
from poolctl.errors import PoolParamError, PoolValidateError, ServerError

if TYPE_CHECKING:
    from poolctl.config.files.origins import Origins
    from poolctl.pool import Pool

Servers = Iterable[ServerConfig | Mapping[str, Any]]


class PoolConfig(Sequence[ServerConfig]):
    """The valid servers in their order; `.problems` tells of the others. Making one never raises."""

    def __init__(self, servers: Servers = ()) -> None:
        self.settings = PoolSettings()
        self.tables = Tables()  # metrics, dashboard, notify, events
        self.defaults: dict[str, Any] = {}  # as the files have them
        self.files: list[str] = []
        self._problems: list[ServerError] = []
        self._origins: Origins | None = None
        self._handler: Any = None
        self._context: Any = None
        self._tls: TLSConfig | None = None
        self._outside_warnings: list[Problem] = []
        self._servers = self._valid(self._made(servers))

    @classmethod
    def load(
        cls,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
    ) -> PoolConfig:
        """The configuration of a file, a directory, or several of them, later ones over earlier ones.

        `env` (default: the process's) is what `${VAR}` sees. Blocks on the disk. Raises PoolValidateError when
        a file cannot be read or parsed; what is wrong with single servers is in `.problems`.
        """
        from poolctl.config.loader import load

        if env is not None and not isinstance(env, Mapping):
            raise PoolParamError(
                f"an environment is a mapping, and this is {env!r}", hint="load([one, other])"
            )
        return load(paths, env)

    @classmethod
    def _loaded(
        cls,
        servers: list[ServerConfig],
        problems: Sequence[ServerError],
        settings: PoolSettings,
        files: list[str],
        origins: Origins,
    ) -> PoolConfig:
        config = cls()
        config._servers = servers
        config._problems = list(problems)
        config.settings = settings
        config.files = files
        config._origins = origins
        return config

    def _made(self, servers: Servers) -> list[ServerConfig]:
        made: list[ServerConfig] = []
        try:
            given = list(servers)
        except TypeError:
            given = []
            self._problems.append(Problem(f"{shown(servers)} is no list of servers", hint="give it a list"))
        for index, server in enumerate(given):
            if isinstance(server, ServerConfig):
                made.append(server)
            elif isinstance(server, Mapping):
                try:
                    made.append(ServerConfig(**{str(key): value for key, value in server.items()}))
                except PoolValidateError as error:
                    self._problems += error.exceptions  # type: ignore[arg-type]
            else:
                message = f"{shown(server)} is neither a ServerConfig nor a mapping"
                hint = "write ServerConfig(name=…, bind=…)"
                self._problems.append(Problem(message, place=Place(key=f"[{index}]"), hint=hint))
        return made

    def _valid(self, servers: list[ServerConfig]) -> list[ServerConfig]:
        out: dict[int, ServerConfig] = {}
        for later, _, finding in conflicts([(server.name, server.address) for server in servers]):
            out[later] = servers[later]
            self._problems.append(_problem(servers[later], finding))
        kept = [server for index, server in enumerate(servers) if index not in out]
        failed = [problem.name for problem in self._problems]
        for server, finding in dependency_findings(kept, failed):
            self._problems.append(_problem(server, finding))
            kept = [other for other in kept if other is not server]
        return kept

    @overload
    def __getitem__(self, index: int) -> ServerConfig: ...
    @overload
    def __getitem__(self, index: slice) -> list[ServerConfig]: ...
    def __getitem__(self, index: int | slice) -> ServerConfig | list[ServerConfig]:
        return self._servers[index]

    def __len__(self) -> int:
        return len(self._servers)

    def __repr__(self) -> str:
        problems = len(self.problems)
        told = f", {problems} problem{'s' * (problems > 1)}" if problems else ""
        return f"<PoolConfig {len(self)} server{'s' * (len(self) != 1)}{told}>"

    @property
    def problems(self) -> list[ServerError]:
        """What is wrong with what was given, in the files' order.

        A file has to say what each of its servers serves; a list made in Python may still get its handler, so
        that only `validate` asks for it.
        """
        return self._problems + (self._unserved() if self.files else [])

    @property
    def warnings(self) -> list[ServerError]:
        """What works, but perhaps not as expected; after `outside` or `validate` also what those saw."""
        found: list[ServerError] = [
            self._located(server, finding) for server, finding in shared_users(self._servers)
        ]
        disabled = {server.name for server in self._servers if server.disabled}
        for server in self._servers:
            for index, wanted in enumerate(server.depends_on):
                if wanted.name in disabled and not server.disabled:
                    message = f"{wanted.name!r} is disabled, and it is waited for"
                    path = ("depends_on", index)
                    found.append(self._located(server, Finding(path, message, "enable it, or take it out")))
            if server.binds_itself and not server.job:
                message = (
                    "the program binds its address itself, so a restart cannot overlap: it refuses meanwhile"
                )
                hint = "let it take the socket ({fd}, LISTEN_FDS) if it can"
                found.append(self._located(server, Finding(("command",), message, hint)))
            for name, value in server.env.items():
                if value == MASK:
                    message = f"{MASK} is a secret that `poolctl config` has masked, not its value"
                    hint = "write the value or a reference to a variable; poolctl config --reveal shows the value"
                    found.append(self._located(server, Finding(("env", name), message, hint)))
            words = list(map(os.path.basename, server.command or ()))
            if "gunicorn" in words and any("{fd}" in word for word in words):
                message = "gunicorn takes the socket from LISTEN_FDS; {fd} would pass it a second time"
                found.append(self._located(server, Finding(("command",), message, "leave out its --bind")))
        return [*found, *self._outside_warnings]

    @property
    def pool_variables(self) -> frozenset[str]:
        """The environment variables that hold secrets of the pool itself; no server is given them unasked."""
        return pool_variables(self._servers, self.tables, self.defaults)

    def set_handler(self, handler: Callable[[], Mapping[str, Any]] | None) -> None:
        """Serve the servers that have no app of their own by what `handler` returns: `{handler_key: ASGI app}`."""
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

    def set_context(self, context: Any) -> None:
        """Let the pool's servers run under this PoolContext; cancelling it ends them."""
        if context is not None and not callable(getattr(context, "attach", None)):
            raise PoolParamError(f"{shown(context)} is no PoolContext", hint="write PoolContext(values={…})")
        self._context = context

    def walk(self, fn: Callable[[ServerConfig], bool | None]) -> bool:
        """Call `fn` with every server in order until it returns False; whether all were visited."""
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

    def outside(self, *, import_apps: bool = False, names: Container[str] | None = None) -> list[ServerError]:
        """What is wrong with what the servers refer to: files, certificates, interpreters; on request their apps.

        Only of the servers with these names, if any are given; what there is to warn of is found for all of them.
        """
        from poolctl.config.checks.external_checks import Outside
        from poolctl.config.checks.table_checks import JOURNAL_PATH, outside_of

        outside = Outside(os.environ, self._tls, self.pool_variables)
        meant = [server for server in self._servers if names is None or server.name in names]
        outside.check(meant, import_apps=import_apps)
        if names is not None:
            outside.look([server for server in self._servers if server.name not in names])
        beside, warnings = outside_of(self.tables, os.environ)
        if names is not None:
            # The servers of the pool run without a journal, too.
            warnings += [each for each in beside if each.path == JOURNAL_PATH]
            beside = [each for each in beside if each.path != JOURNAL_PATH]
        self._outside_warnings = _distinct(
            self._located(server, finding) for server, finding in outside.warnings
        )
        self._outside_warnings += map(self._of_table, warnings)
        if self.tables.notify:
            from poolctl.config.model.table_rules import unknown_secrets

            findings = unknown_secrets(self.tables, os.environ)
            self._outside_warnings += map(self._of_table, findings)
        found = _distinct(self._located(server, finding) for server, finding in outside.problems)
        return [*found, *map(self._of_table, beside)]

    def pool(self, *, handler: Any = None, context: Any = None, runner: Any = None) -> Pool:
        """A pool of the valid servers, none of them started.

        Raises PoolAddError with every problem; its `.pool` holds the valid servers.
        """
        # The one import upwards: the seed asks for a pool from its configuration, and only this method needs it.
        from poolctl.pool.build import build

        lacking_tls = [server for server in self._servers if server.tls is True and self._tls is None]
        return build(
            [server for server in self._servers if server not in lacking_tls],
            problems=[*self._problems, *(self._located(s, _no_certificate()) for s in lacking_tls)],
            handler=handler if handler is not None else self._handler,
            context=context if context is not None else self._context,
            runner=runner,
            tls=self._tls,
            port_range="-".join(map(str, self.settings.port_range)),
        )

    def _unserved(self) -> list[ServerError]:
        found: list[ServerError] = []
        for server in self._servers:
            if server.app is None and not server.command and not server.handlers and self._handler is None:
                hint = 'add app = "module:attribute", command = […], or [pool] handlers = "module:function"'
                message = "nothing to serve: neither 'app' nor 'command' nor handlers"
                found.append(self._located(server, Finding(("app",), message, hint)))
            if server.tls is True and self._tls is None:
                found.append(self._located(server, _no_certificate()))
        return found

    def _located(self, server: ServerConfig, finding: Finding) -> Problem:
        if self._origins is None:
            return _problem(server, finding)
        return _problem(server, finding, self._origins.place(server.name, finding.path))

    def _of_table(self, finding: Finding) -> Problem:
        if self._origins is None:
            return problem_of(finding)
        place, hint = self._origins.of_table(finding.path), finding.hint
        return Problem(finding.message, place=place, hint=hint, found=finding.found, allowed=finding.allowed)


def _distinct(problems: Iterable[Problem]) -> list[Problem]:
    """One missing certificate of [defaults] is one problem, however many servers use it."""
    found = {(each.place if each.file else id(each), each.message): each for each in problems}
    return list(found.values())


def _no_certificate() -> Finding:
    hint = "add [defaults.tls] with cert and key, or call set_default_tls"
    return Finding(("tls",), "tls = true, and there is no default certificate", hint)


def _problem(server: ServerConfig, finding: Finding, place: Place | None = None) -> Problem:
    if place is None:
        return problem_of(finding, name=server.name, bind=server.bind)
    return Problem(
        finding.message,
        place=place._replace(key=place.key or dotted(finding.path)),
        name=server.name,
        bind=server.bind,
        hint=finding.hint,
        found=finding.found,
        allowed=finding.allowed,
    )
