"""The content of configuration files: the servers of a pool, and the problems of invalid servers."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, overload

from poolctl.config.model.pool_tables import PoolSettings, Tables, rules_of, secret_variable_names
from poolctl.config.model.server_keys import ServerConfig
from poolctl.config.model.server_tables import TLSConfig
from poolctl.config.rules.conflicts import shared_users, with_resolved_references
from poolctl.config.values.normalise import misspelt_placeholders
from poolctl.config.values.plain import OPEN_FILES_OF_POOL
from poolctl.config.values.problems import Finding, Place, Problem, Tree, problem_of
from poolctl.config.values.secrets import MASK
from poolctl.errors import ServerError
from poolctl.units import format_duration, format_size

if TYPE_CHECKING:
    from poolctl.config.files.assemble import Origins


class Configuration(Sequence[ServerConfig]):
    """The valid servers, in the order of the files. `problems` lists the problems of all other servers and tables."""

    def __init__(self, servers: Iterable[ServerConfig] = (), tables: Tables | None = None) -> None:
        self.settings = PoolSettings()
        self.tables = tables or Tables()  # other than [[server]]
        self.defaults: dict[str, Tree] = {}  # as the files have them
        self.files: list[str] = []
        self._servers = list(servers)
        # Servers that conflict with others: the address is taken, or the dependencies form a cycle.
        self._excluded: list[ServerConfig] = []
        self._problems: list[ServerError] = []
        self._origins: Origins | None = None
        self._external_warnings: list[Problem] = []
        # The middleware of WSGI applications, by server; known once the apps have been imported.
        self.wsgi_middleware: dict[str, str] = {}
        # Only set from Python.
        self._handler: Tree = None
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
    def is_empty(self) -> bool:
        """Whether the configuration has no server, route or stream, so that nothing can be started."""
        return not (self._servers or self.tables.routes)

    @property
    def problems(self) -> list[ServerError]:
        """The problems that make servers or tables invalid.

        A server in a file must have an app, a command or handlers. A server made in Python need not: its handler may be
        set later.
        """
        return self._problems + (self._missing_settings() if self.files else [])

    @property
    def warnings(self) -> list[ServerError]:
        """Return the problems that do not prevent a start.

        Warnings about files, users and programs are included only after `check_external` was called.
        """
        findings: list[tuple[ServerConfig | None, Finding]] = [*shared_users(self._servers)]
        disabled = {server.name for server in self._servers if server.disabled}
        for server in self._servers:
            ignored = self._ignored_log_keys(server)
            warnings = _warnings_of(server, disabled, self._origins, ignored)
            findings += [(server, finding) for finding in warnings]
        problems = self.located(findings)
        labels = (name for server in self._servers for name in server.labels)
        for rules in rules_of(self.tables.by_name(), labels):
            problems += self.located(rules.warnings(self._servers, self.tables, complete=not self._problems))
        return [*problems, *self._external_warnings]

    def located(self, findings: Iterable[tuple[ServerConfig | None, Finding]]) -> list[Problem]:
        """Convert findings to problems, with file and line if known.

        A finding comes with its server, or with None if it concerns a table other than a server.
        """
        return [self._located(server, finding) for server, finding in findings]

    def origin_of(self, server: ServerConfig) -> dict[str, str] | None:
        """`{"http.loop": "/etc/pool.toml:7", …}` for the keys of a server that files set; None if it is in no file."""
        if self._origins is None:
            return None
        ignored = self._ignored_log_keys(server)
        return {key: place for key, place in self._origins.of(server.name).items() if key not in ignored}

    def server_places(self) -> dict[str, Place]:
        """The place of each server's table in the files, by the server's name; empty without files."""
        return self._origins.server_places() if self._origins is not None else {}

    def file_of_each_server(self) -> dict[str, str]:
        """Each server's file, by the server's name; empty if all servers are in one file."""
        if self._origins is None or len(self._origins.documents) < 2:
            return {}
        return {server.name: self._origins.file_of(server.name) for server in self._servers}

    def _ignored_log_keys(self, server: ServerConfig) -> tuple[str, ...]:
        """The keys of the server's log that files set, but that have no effect because the log is printed."""
        log = server.log
        if self._origins is None or log.path is not None or not {"max_size", "keep"} <= log.model_fields_set:
            return ()
        origin = self._origins.of(server.name)
        return tuple(key for key in ("log.max_size", "log.keep") if "log.path" in origin and key in origin)

    @property
    def secret_variable_names(self) -> frozenset[str]:
        """The names of the environment variables with the pool's own secrets; passed only to servers that ask."""
        return secret_variable_names(self._servers, self.tables, self.defaults)

    def check_external(
        self, *, import_apps: bool = False, names: Container[str] | None = None
    ) -> list[ServerError]:
        """Check the files, certificates and interpreters that servers and tables refer to; returns problems. Blocks.

        With `import_apps`, each app is imported as a test. With `names`, only servers with these names are checked for
        problems, and `startup_problems` is skipped. Warnings about all servers are stored for `warnings`.
        """
        from poolctl.config.checks.external_checks import JOURNAL_PATH, ExternalChecks, check_tables

        checks = ExternalChecks(os.environ, self._tls, self.secret_variable_names)
        servers = with_resolved_references(self._servers)
        if names is None:
            checks.check([*servers, *self._excluded], import_apps=import_apps)
        else:
            checks.check([server for server in servers if server.name in names], import_apps=import_apps)
            checks.collect_warnings([server for server in servers if server.name not in names])
        table_findings = check_tables(self.tables, os.environ, self._servers)
        warnings = [
            finding
            for finding in table_findings
            # The servers of a running pool run without a journal, too.
            if finding.is_warning or (names is not None and finding.path == JOURNAL_PATH)
        ]
        self._external_warnings = _distinct(self.located(checks.warnings))
        self.wsgi_middleware = {server.name: middleware for server, middleware in checks.wsgi}
        self._external_warnings += self.located((None, finding) for finding in warnings)
        problems = _distinct(self.located(checks.problems))
        problems += self.located((None, finding) for finding in table_findings if finding not in warnings)
        if names is None:
            # Skip another program's complaint about a place that a check above has explained.
            explained = {
                problem.place for problem in [*self._problems, *problems] if isinstance(problem, Problem)
            }
            problems += [problem for problem in self.startup_problems() if problem.place not in explained]
        return [*problems]

    def startup_problems(self) -> list[Problem]:
        """Problems that prevent the pool from starting here, such as a missing program. Blocks on the disk."""
        rules = rules_of(self.tables.by_name())
        findings = (rule.startup_problems(self._servers, self.tables) for rule in rules)
        return self.located(chain.from_iterable(findings))

    def env_file_problems(self) -> list[ServerError]:
        """The problems of the env files of servers that are not disabled. Blocks on the disk."""
        with_files = [server for server in self._servers if server.env_file and not server.disabled]
        if not with_files:
            return []
        from poolctl.config.checks.external_checks import ExternalChecks

        checks = ExternalChecks(os.environ)
        for server in with_files:
            checks.check_env_files(server)
        return [*_distinct(self.located(checks.problems))]

    def _missing_settings(self) -> list[ServerError]:
        handler, tls = self._handler is not None, self._tls is not None
        return [
            self._located(server, finding)
            for server in [*self._servers, *self._excluded]
            for finding in missing_settings(server, handler, tls)
        ]

    def _located(self, server: ServerConfig | None, finding: Finding) -> Problem:
        if server is None:
            return problem_of(finding, self._origins.place_in_table(finding.path) if self._origins else None)
        place = self._origins.place(server.name, finding.path) if self._origins else None
        return problem_of(finding, place, name=server.name, bind=server.bind)


BINDS_ITSELF = (
    "the program binds its address itself, so a restart cannot overlap: connections are refused meanwhile"
)
# Programs that listen with any arguments.
LISTENING = frozenset(
    {
        "caddy",
        "daphne",
        "granian",
        "gunicorn",
        "http.server",
        "hypercorn",
        "nginx",
        "uvicorn",
        "waitress-serve",
    }
)

# Programs that with --watch run until the end of their input.
WATCHING = ("esbuild", "tailwindcss", "@tailwindcss/cli")


def missing_settings(server: ServerConfig, handler: bool = False, tls: bool = False) -> Iterator[Finding]:
    """The problems of a server that has no app, command or handlers, or has `tls = true` without a certificate.

    `handler` is true if Python code has set a handler for the pool, `tls` if it has set a default certificate.
    """
    if not (handler or server.app is not None or server.command or server.handlers):
        hint = 'add app = "module:attribute", command = […], or [pool] handlers = "module:function"'
        yield Finding(("app",), "nothing to serve: neither 'app' nor 'command' nor handlers", hint)
    if server.tls is True and not tls:
        yield no_certificate()


def no_certificate() -> Finding:
    hint = "add [defaults.tls] with cert and key, or call set_default_tls"
    return Finding(("tls",), "tls = true, and there is no default certificate", hint)


def _warnings_of(
    server: ServerConfig, disabled: Container[str], origins: Origins | None, ignored: Iterable[str]
) -> Iterator[Finding]:
    for index, dependency in enumerate(server.depends_on):
        if dependency.name in disabled and not server.disabled:
            message = f"{dependency.name!r} is disabled, and this server waits for it"
            yield Finding(("depends_on", index), message, "enable it, or take it out")
    if server.binds_itself and server.socket != "program" and not server.job:
        hint = (
            'write socket = "proxied", or let it take the socket ({fd}, LISTEN_FDS) if it can, '
            'or write socket = "program" to accept that'
        )
        yield Finding(("command",), BINDS_ITSELF, hint)
    env = server.env if server.command else {}
    yield from misspelt_placeholders(server.command or (), env, server.probe_and_hook_commands.items())
    if ignored and origins is not None:
        origin = origins.of(server.name, inherited=False)
        # In the defaults, a size may be meant for the logs of other servers.
        for key in (key for key in ignored if key in origin or "log.path" not in origin):
            _, name = path = tuple(key.split("."))
            yield Finding(path, f"{name} has no effect: a log that is printed keeps 2 MiB", "take it out")
    for name, value in server.env.items():
        if value == MASK:
            message = f"{MASK} is a secret that `poolctl config` has masked, not its value"
            hint = "write the value or a reference to a variable; poolctl config --reveal shows the value"
            yield Finding(("env", name), message, hint)
    if not server.job and "stdin" not in server.model_fields_set:
        written = " ".join(server.command or ()).split()
        programs = (name for word in written[:4] for name in WATCHING if f"/{word}".endswith(f"/{name}"))
        if "--watch" in written and (program := next(programs, "")):
            message = f"{program} --watch ends at the end of its input, and that is /dev/null"
            yield Finding(("command",), message, 'add stdin = "open"')
    words = list(map(os.path.basename, server.command or ()))
    if not server.listens and not server.job:
        # As in `uv run gunicorn` and `python3 -m gunicorn`.
        for program in LISTENING.intersection((*words[:1], *(server.command or ())[1:3])):
            message = f"{program} listens on a port, which the pool does not know without 'bind'"
            yield Finding(("command",), message, 'add bind = "127.0.0.1:8080"')

    ends_by_term = any(word == "--die-on-term" or "unix_signal:15" in word for word in server.command or ())
    if "uwsgi" in words[:3] and not ends_by_term and "stop_signal" not in server.model_fields_set:
        message = "uWSGI reloads at SIGTERM instead of ending, unless it is told die-on-term"
        yield Finding(("command",), message, 'add stop_signal = "SIGINT"')
    yield from _implausible_values(server)


_MIN_MEMORY_BYTES = 16 * 1024**2
_LONG_START_SECONDS = 3600.0


def _implausible_values(server: ServerConfig) -> Iterator[Finding]:
    """Warnings about values that were probably meant in another unit."""
    memory, seconds = server.limits.memory, server.start_timeout
    if memory is not None and memory < _MIN_MEMORY_BYTES:
        message = f"every worker exceeds a limit of {format_size(memory)}, and is replaced again and again"
        suggestion = f'write "{memory}MiB"' if 16 <= memory <= 2**20 else "allow at least 16MiB"
        yield Finding(("limits", "memory"), message, f"{suggestion}; a number without a unit is bytes")
    if seconds > _LONG_START_SECONDS:
        message = f"a server that hangs is given up only after {format_duration(seconds)}"
        suggestion = f'write "{format_duration(seconds / 1000)}"; ' if seconds % 1000 == 0 else ""
        yield Finding(("start_timeout",), message, f"{suggestion}a number without a unit is seconds")


def _distinct(problems: Iterable[Problem]) -> list[Problem]:
    """The problems without repetitions: a missing certificate of [defaults] is one problem, not one for each server."""
    distinct = {
        (problem.place if problem.file else id(problem), problem.message): problem for problem in problems
    }
    return list(distinct.values())


_DESCRIPTORS_PER_PAIR = 2
# For each worker: its control socket or NOTIFY_SOCKET, its tally page, the pipe for its output. A keeper that replaced
# an earlier one is not the parent of its workers, and also holds a pidfd of each, if there is room.
_DESCRIPTORS_PER_WORKER = 3
_DESCRIPTORS_PER_PROGRAM = 2
# Number of workers that may be replaced at once; further replacements wait for free descriptors.
REPLACED_AT_ONCE = 16


def open_files_per_pool_process(servers: Iterable[tuple[ServerConfig, int]]) -> int:
    """The number of open files that keeper and supervisor each need; `servers` has pairs (server, number of workers).

    A sleeping server has no workers, but its listening socket stays open.
    """
    workers, total = 0, OPEN_FILES_OF_POOL
    for server, count in servers:
        workers += count
        if server.listens and not server.binds_itself:
            # One listener each for IPv4 and IPv6.
            total += 2 if server.address.dual or server.address.host == "localhost" else 1
        total += count * (_DESCRIPTORS_PER_PROGRAM if server.command else _DESCRIPTORS_PER_WORKER)
        total += _DESCRIPTORS_PER_PAIR * bool(count and not server.command) + server.health.probed
    return total + _DESCRIPTORS_PER_WORKER * min(workers, REPLACED_AT_ONCE)


@dataclass(frozen=True)
class Surroundings:
    """What a server added at runtime inherits: [defaults], [pool] handlers, and the directory of the first file."""

    defaults: dict[str, Tree] = field(default_factory=dict)
    base_dir: str = ""
    handlers: str | None = None
