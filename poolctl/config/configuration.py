"""What configuration files say: the servers of a pool, and what is wrong with those that are not among them."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Sequence
from typing import Any, overload

from poolctl.config.files.origins import Origins
from poolctl.config.model.conflicts import shared_users
from poolctl.config.model.problems import Finding, Problem, problem_of
from poolctl.config.model.secrets import MASK
from poolctl.config.model.sections import TLSConfig
from poolctl.config.model.server import ServerKeys
from poolctl.config.model.settings import PoolSettings
from poolctl.config.model.tables import Tables, pool_variables
from poolctl.config.server_config import ServerConfig
from poolctl.errors import ServerError


class Configuration(Sequence[ServerConfig]):
    """The valid servers in their order; `problems` are those of the other servers and of the pool."""

    def __init__(
        self,
        servers: Iterable[ServerConfig] = (),
        *,
        problems: Iterable[ServerError] = (),
        settings: PoolSettings | None = None,
        tables: Tables | None = None,
        defaults: dict[str, Any] | None = None,
        files: Iterable[str] = (),
        origins: Origins | None = None,
    ) -> None:
        self.settings = settings or PoolSettings()
        self.tables = tables or Tables()  # metrics, dashboard, notify, events
        self.defaults = defaults or {}  # as the files have them
        self.files = list(files)
        self._servers = list(servers)
        self._problems = list(problems)
        self._origins = origins
        self._outside_warnings: list[Problem] = []
        # What only Python can give to a pool.
        self._handler: Any = None
        self._tls: TLSConfig | None = None

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
        more = f", {problems} problem{'s' * (problems > 1)}" if problems else ""
        return f"<{type(self).__name__} {len(self)} server{'s' * (len(self) != 1)}{more}>"

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

    def outside(self, *, import_apps: bool = False, names: Container[str] | None = None) -> list[ServerError]:
        """What is wrong with what the servers refer to: files, certificates, interpreters; on request their apps.

        Only of the servers with these names, if any are given; what there is to warn of is found for all of them.
        """
        from poolctl.config.checks.external_checks import JOURNAL_PATH, ExternalChecks, check_tables

        checks = ExternalChecks(os.environ, self._tls, self.pool_variables)
        checks.check([each for each in self if names is None or each.name in names], import_apps=import_apps)
        if names is not None:
            checks.look([each for each in self if each.name not in names])
        of_tables, warnings = check_tables(self.tables, os.environ)
        if names is not None:
            # The servers of the pool run without a journal, too.
            warnings += [each for each in of_tables if each.path == JOURNAL_PATH]
            of_tables = [each for each in of_tables if each.path != JOURNAL_PATH]
        self._outside_warnings = _distinct(self._located(*each) for each in checks.warnings)
        self._outside_warnings += map(self._of_table, warnings)
        found = _distinct(self._located(*each) for each in checks.problems)
        return [*found, *map(self._of_table, of_tables)]

    def _unserved(self) -> list[ServerError]:
        found: list[ServerError] = []
        for server in self._servers:
            if server.app is None and not server.command and not server.handlers and self._handler is None:
                hint = 'add app = "module:attribute", command = […], or [pool] handlers = "module:function"'
                message = "nothing to serve: neither 'app' nor 'command' nor handlers"
                found.append(self._located(server, Finding(("app",), message, hint)))
            if server.tls is True and self._tls is None:
                found.append(self._located(server, no_certificate()))
        return found

    def _located(self, server: ServerKeys, finding: Finding) -> Problem:
        place = self._origins.place(server.name, finding.path) if self._origins else None
        return problem_of(finding, place, name=server.name, bind=server.bind)

    def _of_table(self, finding: Finding) -> Problem:
        return problem_of(finding, self._origins.of_table(finding.path) if self._origins else None)


def _distinct(problems: Iterable[Problem]) -> list[Problem]:
    """One missing certificate of [defaults] is one problem, however many servers use it."""
    found = {(each.place if each.file else id(each), each.message): each for each in problems}
    return list(found.values())


def no_certificate() -> Finding:
    hint = "add [defaults.tls] with cert and key, or call set_default_tls"
    return Finding(("tls",), "tls = true, and there is no default certificate", hint)
