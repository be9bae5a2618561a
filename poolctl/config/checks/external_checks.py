"""Checks of the objects that servers and tables refer to: files, directories, programs, users, certificates, apps."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from datetime import UTC, datetime

from poolctl.config.checks.import_check import Import, check_imports, check_interpreters
from poolctl.config.checks.interpreter import ids_of, missing_program, trusted_by_root
from poolctl.config.files.read_file import EnvFileError, read_env_file, variables_of
from poolctl.config.model.pool_tables import Tables
from poolctl.config.model.server_keys import ServerKeys
from poolctl.config.model.server_sections import TLSConfig
from poolctl.config.rules.table_rules import rules_of
from poolctl.config.values.problems import Finding
from poolctl.safe_open import UnsafePath, check_appendable

# Problems and warnings.
Found = tuple[list[Finding], list[Finding]]
_LOG_PATH = ("log", "path")
JOURNAL_PATH = ("events", "path")


class ExternalChecks:
    """Collects `(server, finding)` pairs. A path that many servers share is checked once.

    Apps are imported without the variables `withheld`.
    """

    def __init__(
        self,
        env: Mapping[str, str],
        default_tls: TLSConfig | None = None,
        withheld: Container[str] = (),
    ) -> None:
        self.env = env
        self.withheld = withheld
        self.default_tls = default_tls
        self.now = datetime.now(UTC)
        self.problems: list[tuple[ServerKeys, Finding]] = []
        self.warnings: list[tuple[ServerKeys, Finding]] = []
        self._seen: dict[Hashable, Found] = {}

    def check(self, servers: Sequence[ServerKeys], *, import_apps: bool = False) -> None:
        """Check everything the servers refer to. Blocks; with `import_apps` until all apps are imported."""
        for server in servers:
            self._server(server)
        self._interpreters(servers)
        if import_apps:
            troubled = {id(server) for server, _ in self.problems}
            self._imports([server for server in servers if id(server) not in troubled])

    def check_env_files(self, server: ServerKeys) -> None:
        """Check only the server's env files."""
        for index, path in enumerate(server.env_file):
            self._look(server, _variables, path, index, bool(server.user))

    def look(self, servers: Sequence[ServerKeys]) -> None:
        """Collect only the warnings about these servers."""
        known = len(self.problems)
        for server in servers:
            self._server(server)
        # Every server still runs, but the loss of its log should not come as a surprise.
        self.warnings += [each for each in self.problems[known:] if each[1].path == _LOG_PATH]
        del self.problems[known:]

    def _server(self, server: ServerKeys) -> None:
        self._look(server, _directory, "cwd", server.cwd)
        if server.app_dir != server.cwd:
            self._look(server, _directory, "app_dir", server.app_dir)
        self.check_env_files(server)
        if server.user:
            self._look(server, _user, server.user)
        if runs_python_as_root(server):
            self._look(server, self._trusted, server.python or sys.executable)
        if tls := server.tls if server.tls is not True else self.default_tls:
            self._look(server, self._certificates, tls)
        hooks = [(("hooks", hook), words) for hook, words in server.hooks or ()]
        for path, words in ((("command",), server.command), *hooks):
            if words and (finding := missing_program(server, {**self.env, **server.env}, path, words)):
                self.problems.append((server, finding))
        if server.log.path:
            self._look(server, _log, server.log.path)

    def _look(self, server: ServerKeys, look: Callable[..., Found], *at: Hashable) -> None:
        key = (look.__name__, *at)  # the method itself would keep this object alive
        if key not in self._seen:
            self._seen[key] = look(*at)
        problems, warnings = self._seen[key]
        self.problems += [(server, finding) for finding in problems]
        self.warnings += [(server, finding) for finding in warnings]

    def _trusted(self, python: str) -> Found:
        message, fix = trusted_by_root(python, self.env)
        return [], [Finding(("python",), message, fix, python)] if message else []

    def _certificates(self, tls: TLSConfig) -> Found:
        from poolctl.config.checks.certificate_checks import check_certificates

        return check_certificates(tls, self.env, self.now)

    def _interpreters(self, servers: Sequence[ServerKeys]) -> None:
        using: dict[str, str | None] = {}
        for server in servers:
            if server.python and not server.command and not callable(server.app):
                # A server of root runs it as root in any case.
                using[server.python] = server.user if using.get(server.python, "") is not None else None
        using.pop(sys.executable, None)  # poolctl's own has uvicorn: it depends on it
        apps = [each for each in servers if not each.command]
        zttp = {
            each.python or sys.executable: each.user for each in apps if each.http.implementation == "zttp"
        }
        for python, finding in check_interpreters(zttp | using, zttp):
            for each in apps:
                concerned = finding.path == ("python",) or each.http.implementation == "zttp"
                if concerned and (each.python or sys.executable) == python:
                    self.problems.append((each, finding))

    def _imports(self, servers: Sequence[ServerKeys]) -> None:
        jobs: dict[Import, list[ServerKeys]] = {}
        for server in servers:
            target = server.handlers if server.app is None else server.app
            if not isinstance(target, str) or server.command:
                continue
            job = Import(
                python=server.python or sys.executable,
                target=target,
                app_dir=server.app_dir,
                cwd=server.cwd,
                env=tuple(sorted(variables_of(server).items())),
                user=server.user if os.geteuid() == 0 else None,
                timeout_seconds=server.start_timeout,
            )
            jobs.setdefault(job, []).append(server)
        env = {name: value for name, value in self.env.items() if name not in self.withheld}
        for job, finding in check_imports(list(jobs), env):
            if jobs[job][0].app is None:
                # They are configured in [pool] handlers, which is not a key of a server.
                finding = finding._replace(
                    path=("handler_key",), message=f"[pool] handlers: {finding.message}"
                )
            self.problems += [(server, finding) for server in jobs[job]]


def runs_python_as_root(server: ServerKeys) -> bool:
    """Whether root runs the interpreter of the server's application."""
    if os.geteuid() != 0 or server.command or callable(server.app):
        return False
    try:
        return server.user is None or ids_of(server.user)[0] == 0
    except KeyError:
        return False


def _directory(key: str, path: str) -> Found:
    if os.path.isdir(path):
        return [], []
    what = "is not a directory" if os.path.exists(path) else "is not there"
    return [Finding((key,), f"{path} {what}", f"create it, or fix {key}", path)], []


def _variables(path: str, index: int, another: bool) -> Found:
    try:
        read_env_file(path, for_another_user=another)
    except EnvFileError as problem:
        return [
            Finding(
                ("env_file", index), str(problem), "fix the file, or take it out; env_file = [] is none", path
            )
        ], []
    return [], []


def _user(user: str) -> Found:
    import grp
    import pwd

    name, _, group = user.partition(":")
    missing: list[Finding] = []
    hint, uid = "create it, or name another", -1
    try:
        uid = pwd.getpwnam(name).pw_uid
    except KeyError:
        missing.append(Finding(("user",), f"there is no user {name!r}", hint, user))
    try:
        _ = group and grp.getgrnam(group)
    except KeyError:
        missing.append(Finding(("user",), f"there is no group {group!r}", hint, user))
    if missing or os.geteuid() in (0, uid):
        return missing, []
    return [], [Finding(("user",), f"only root can run it as {name!r}", "start the pool as root", user)]


def check_tables(
    tables: Tables, env: Mapping[str, str], servers: Sequence[ServerKeys]
) -> tuple[list[Finding], list[Finding]]:
    """Problems and warnings of the tables besides the servers; paths begin with the table. Blocks on the disk."""
    problems: list[Finding] = []
    warnings: list[Finding] = []
    for rules in rules_of(tables.by_name()):
        wrong, doubtful = rules.check(servers, tables, env, datetime.now(UTC))
        problems += wrong
        warnings += doubtful
    if tables.events and tables.events.path:
        problems += unwritable(JOURNAL_PATH, tables.events.path)
    names = tables.by_name().keys()
    for path, table in tables:
        wrong, doubtful = table.check(env, names)
        problems += [each._replace(path=(*path, *each.path)) for each in wrong]
        warnings += [each._replace(path=(*path, *each.path)) for each in doubtful]
    return problems, warnings


def _log(path: str) -> Found:
    return unwritable(_LOG_PATH, path), []


def unwritable(key: tuple[str | int, ...], path: str) -> list[Finding]:
    """The problem if this user cannot append to the file of the key, else an empty list. Changes nothing."""
    try:
        check_appendable(path)
    except UnsafePath as refused:
        reason, _, fix = str(refused.strerror).partition("; ")
        return [Finding(key, f"{path} cannot be written: {reason}", fix or "name another file", path)]
    except IsADirectoryError:
        return [Finding(key, f"{path} is a directory", "name a file in it", path)]
    except OSError as error:
        reason, fix = error.strerror or str(error), "name another file"
        if error.errno == errno.EACCES:
            fix = f"let the pool's user (uid {os.geteuid()}) write there, or name another file"
        elif error.errno == errno.ENOTDIR:
            above = path
            while not os.path.lexists(above):
                above = os.path.dirname(above)
            reason = f"{above} is not a directory"
        return [Finding(key, f"{path} cannot be written: {reason}", fix, path)]
    return []
