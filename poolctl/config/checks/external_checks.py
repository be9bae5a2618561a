"""Checks the files, directories, programs, users, certificates and apps that servers and tables refer to.

Apps are imported by the server's interpreter in a subprocess, never in this process.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import NamedTuple

from poolctl.bootstrap import MIN_PYTHON, uvicorn_problem
from poolctl.config.checks import interpreter
from poolctl.config.files.read_file import EnvFileError, read_env_file, read_env_files
from poolctl.config.model.pool_tables import EventsTable, Tables, rules_of
from poolctl.config.model.server_keys import ServerConfig
from poolctl.config.model.server_tables import EnvFile, TLSConfig
from poolctl.config.values.path_variables import with_absolute_paths
from poolctl.config.values.problems import Finding, KeyPath
from poolctl.errors import ServerError
from poolctl.installation import install_command
from poolctl.safe_open import UnsafePath, check_appendable

_LOG_PATH = ("log", "path")
JOURNAL_PATH = ("events", "path")


class ExternalChecks:
    """Collects (server, finding) pairs in `problems` and `warnings`. A path that many servers share is checked once.

    `wsgi` collects servers with an imported WSGI application, each with the middleware that will serve it.

    `default_tls` is the certificate of servers with `tls = true`. Variables in `withheld` are removed from the
    environment in which apps are imported.
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
        self.problems: list[tuple[ServerConfig, Finding]] = []
        self.warnings: list[tuple[ServerConfig, Finding]] = []
        self.wsgi: list[tuple[ServerConfig, str]] = []
        self._seen: dict[Hashable, list[Finding]] = {}

    def check(self, servers: Sequence[ServerConfig], *, import_apps: bool = False) -> None:
        """Check everything the servers refer to; with `import_apps` also import their apps. Blocks until done."""
        for server in servers:
            self._check_server(server)
            self._check_programs(server)
        self._check_interpreters(servers)
        if import_apps:
            with_problems = {id(server) for server, _ in self.problems}
            self._check_imports([server for server in servers if id(server) not in with_problems])

    def check_env_files(self, server: ServerConfig) -> None:
        """Check the server's env files and nothing else; add the findings to `problems` and `warnings`."""
        environment = frozenset({**server.address_variables, **server.env}.items())
        self._check_once(server, self._check_env_files, server.env_file, environment, bool(server.user))

    def collect_warnings(self, servers: Sequence[ServerConfig]) -> None:
        """Add the servers' warnings and unwritable log files to `warnings`; discard all other problems."""
        count = len(self.problems)
        for server in servers:
            self._check_server(server)
        # The server still runs, but its log would be lost silently.
        self.warnings += [problem for problem in self.problems[count:] if problem[1].path == _LOG_PATH]
        del self.problems[count:]

    def _check_server(self, server: ServerConfig) -> None:
        self._check_once(server, _check_directory, "cwd", server.cwd)
        if server.app_dir != server.cwd:
            self._check_once(server, _check_import_path, "app_dir", server.app_dir)
        self.check_env_files(server)
        if server.user:
            self._check_once(server, check_user, ("user",), server.user)
        if server.socket_owner:
            self._check_once(server, check_socket_owner, ("socket_owner",), server.socket_owner)
        if runs_python_as_root(server):
            self._check_once(server, self._check_trust, server.python or sys.executable)
        if tls := server.tls if server.tls is not True else self.default_tls:
            self._check_once(server, self._check_certificates, tls)
        if server.log.path:
            self._check_once(server, unwritable_file_findings, _LOG_PATH, server.log.path)
        if server.limits.open_files:
            self._check_once(server, _check_open_files, server.limits.open_files)
        if isinstance(server.app, str):
            self._check_once(server, _check_patching, server.app_dir, server.app.partition(":")[0])

    def _check_programs(self, server: ServerConfig) -> None:
        commands: dict[KeyPath, tuple[str, ...]] = {("command",): server.command} if server.command else {}
        commands |= server.probe_and_hook_commands
        if not commands:
            return
        env = self._environment_of(server)
        if (environment := interpreter.virtual_environment(server)) and interpreter.runs_as_root(server.user):
            self._check_once(server, _check_environment, environment)
        for path, words in commands.items():
            if finding := interpreter.missing_program(server, env, path, words):
                self.problems.append((server, finding))

    def _environment_of(self, server: ServerConfig) -> dict[str, str]:
        try:
            variables = {**read_env_files(server, {**self.env, **server.env}), **server.env}
        except ServerError:  # reported by `check_env_files`
            variables = {**server.env}
        return {**self.env, **interpreter.with_virtual_environment(server, variables, self.env)}

    def _check_once(
        self, server: ServerConfig, check: Callable[..., Iterable[Finding]], *at: Hashable
    ) -> None:
        key = (check.__name__, *at)  # the method itself would keep this object alive
        if key not in self._seen:
            self._seen[key] = [*check(*at)]
        for finding in self._seen[key]:
            (self.warnings if finding.is_warning else self.problems).append((server, finding))

    def _inherited_environment(self) -> dict[str, str]:
        return {name: value for name, value in self.env.items() if name not in self.withheld}

    def _check_env_files(
        self,
        files: tuple[str | EnvFile, ...],
        environment: frozenset[tuple[str, str]],
        for_another_user: bool,
    ) -> Iterator[Finding]:
        lookup = {**self._inherited_environment(), **dict(environment)}
        variables: dict[str, str] = {}
        for index, file in enumerate(files):
            key = ("env_file", index)
            path = file if isinstance(file, str) else file.path
            try:
                variables, unset = read_env_file(file, lookup, variables, for_another_user=for_another_user)
            except EnvFileError as problem:
                fix = "fix the file, or take it out; env_file = [] is none"
                yield Finding(key, str(problem), fix, path)
                continue
            for line, name in unset:
                message = f"{path}:{line}: {name} is not set, so ${{{name}}} is empty"
                fix = f"set it, or give a default: ${{{name}:-…}}; single quotes keep the text"
                yield Finding(key, message, fix, path, is_warning=True)

    def _check_trust(self, python: str) -> Iterator[Finding]:
        message, fix = interpreter.root_trust_problem(python, self.env)
        if message:
            yield Finding(("python",), message, fix, python, is_warning=True)

    def _check_certificates(self, tls: TLSConfig) -> list[Finding]:
        from poolctl.config.checks.certificate_checks import check_certificates

        return check_certificates(tls, self.env, self.now)

    def _check_interpreters(self, servers: Sequence[ServerConfig]) -> None:
        user_by_python: dict[str, str | None] = {}
        for server in servers:
            if server.python and not server.command and not callable(server.app):
                # None (this process's user) if any server with this interpreter has no user.
                user_by_python[server.python] = (
                    server.user if user_by_python.get(server.python, "") is not None else None
                )
        user_by_python.pop(sys.executable, None)  # poolctl's own interpreter has uvicorn, which poolctl needs
        apps = [server for server in servers if not server.command]
        for python, finding in check_interpreters(user_by_python):
            self.problems += [(app, finding) for app in apps if app.python == python]

    def _check_imports(self, servers: Sequence[ServerConfig]) -> None:
        env = with_absolute_paths(self._inherited_environment())
        jobs: dict[ImportJob, list[ServerConfig]] = {}
        for server in servers:
            target = server.handlers if server.app is None else server.app
            if not isinstance(target, str) or server.command:
                continue
            variables = read_env_files(server, {**env, **server.env}) | server.env
            job = ImportJob(
                python=interpreter.interpreter(server.python),
                target=target,
                factory=server.factory or server.app is None,
                interface=server.interface,
                app_dir=server.app_dir,
                cwd=server.cwd,
                env=tuple(sorted(with_absolute_paths(variables, server.cwd).items())),
                user=server.user if os.geteuid() == 0 else None,
                timeout_seconds=server.start_timeout,
                new_environment_in=interpreter.directory_for_environment(server),
            )
            jobs.setdefault(job, []).append(server)
        for job, finding, middleware in check_imports(list(jobs), env):
            self.wsgi += [(server, middleware) for server in jobs[job] if middleware]
            if finding is None:
                continue
            if middleware:
                self.warnings += [(server, finding) for server in jobs[job]]
                continue
            if jobs[job][0].app is None:
                # Its handlers are configured in [pool], not in a key of the server.
                finding = finding._replace(
                    path=("handler_key",), message=f"[pool] handlers: {finding.message}"
                )
            self.problems += [(server, finding) for server in jobs[job]]


def runs_python_as_root(server: ServerConfig) -> bool:
    """Whether root runs the interpreter of the server's application; False for a command, or an unknown user."""
    return not server.command and not callable(server.app) and interpreter.runs_as_root(server.user)


def _check_environment(environment: str) -> Iterator[Finding]:
    if path := interpreter.find_program_others_may_change(f"{environment}/bin"):
        who, fix = interpreter.who_may_change(path)
        message = f"{who} can modify {path}, so {environment}/bin is at the end of root's PATH"
        yield Finding(("python",), message, fix, environment, is_warning=True)


def _check_directory(key: str, path: str) -> Iterator[Finding]:
    if not os.path.isdir(path):
        what = "is not a directory" if os.path.exists(path) else "is not there"
        yield Finding((key,), f"{path} {what}", f"create it, or fix {key}", path)


def _check_import_path(key: str, path: str) -> Iterator[Finding]:
    if not (os.path.isdir(path) or _is_in_archive(path)):
        yield from _check_directory(key, path)


def _check_open_files(limit: int) -> Iterator[Finding]:
    """A warning if the kernel refuses this limit: setrlimit(2), RLIMIT_NOFILE."""
    with contextlib.suppress(OSError, ValueError), open("/proc/sys/fs/nr_open") as file:
        maximum = int(file.read())
        if limit > maximum:
            message = f"{limit} is above the kernel's limit of {maximum} open files (fs.nr_open)"
            fix = f"write {maximum}, or raise it: sysctl fs.nr_open={limit}"
            yield Finding(("limits", "open_files"), message, fix, is_warning=True)


_PATCHES = r"(?m)^\s*(?:from gevent import .*\bmonkey\b|(?:import|from) gevent\.monkey\b)"


def _check_patching(app_dir: str, module: str) -> Iterator[Finding]:
    """A warning if the application's module applies gevent's monkey patches, which break asyncio."""
    path = os.path.join(app_dir, *module.split("."))
    for file in (f"{path}.py", f"{path}/__init__.py"):
        with contextlib.suppress(OSError, UnicodeDecodeError), open(file, encoding="utf-8") as source:
            if re.search(_PATCHES, source.read()):
                message = f"{file} patches the standard library for gevent, and an app is served by asyncio"
                fix = f'run it as a program: command = ["gunicorn", "-k", "gevent", "{module}:…"]'
                yield Finding(("app",), message, fix, is_warning=True)
                return


def _is_in_archive(path: str) -> bool:
    """Whether modules can be imported from this path because it is a ZIP archive, or a directory in one (zipimport)."""
    import zipfile
    import zipimport

    try:
        importer = zipimport.zipimporter(path)
        with zipfile.ZipFile(importer.archive) as archive:
            return any(name.startswith(importer.prefix) for name in archive.namelist())
    except (ImportError, OSError, zipfile.BadZipFile):
        return False


def check_user(path: KeyPath, user: str) -> list[Finding]:
    """The findings about the user, or user and group, that a program should run as."""
    missing = _missing_accounts(path, user)
    if missing or os.geteuid() in (0, interpreter.ids_of(user)[0]):
        return missing
    message = f"only root can run it as {user.partition(':')[0]!r}"
    return [Finding(path, message, "start the pool as root", user, is_warning=True)]


def check_socket_owner(path: KeyPath, owner: str) -> list[Finding]:
    """The findings about the user, or user and group, that the file of a Unix socket should belong to."""
    missing = _missing_accounts(path, owner)
    if missing or os.geteuid() == 0:
        return missing
    uid, gid = interpreter.ids_of(owner)
    if uid == os.geteuid() and gid in (os.getegid(), *os.getgroups()):
        return []
    fix = "start the pool as root, or name its own user and one of its groups"
    return [Finding(path, f"only root can give the socket to {owner!r}", fix, owner, is_warning=True)]


def _missing_accounts(path: KeyPath, account: str) -> list[Finding]:
    """The problems of USER or USER:GROUP that this machine does not know."""
    import grp
    import pwd

    name, _, group = account.partition(":")
    missing: list[Finding] = []
    hint = "create it, or name another"
    try:
        pwd.getpwnam(name)
    except KeyError:
        missing.append(Finding(path, f"there is no user {name!r}", hint, account))
    try:
        _ = group and grp.getgrnam(group)
    except KeyError:
        missing.append(Finding(path, f"there is no group {group!r}", hint, account))
    return missing


def check_tables(tables: Tables, env: Mapping[str, str], servers: Sequence[ServerConfig]) -> list[Finding]:
    """The findings of all tables except servers. The path of a finding begins with the table's name.

    Blocks on the disk.
    """
    findings: list[Finding] = []
    for rules in rules_of(tables.by_name()):
        findings += rules.check(servers, tables, env, datetime.now(UTC))
    if (events := tables.get(EventsTable)) and events.path:
        findings += unwritable_file_findings(JOURNAL_PATH, events.path)
    names = tables.by_name().keys()
    for path, table in tables:
        findings += [finding._replace(path=(*path, *finding.path)) for finding in table.check(env, names)]
    return findings


def unwritable_file_findings(key: tuple[str | int, ...], path: str) -> list[Finding]:
    """A list with the problem if this process cannot append to the file at `path`, else an empty list.

    `key` is the configuration key that names the file. Changes nothing.
    """
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
            ancestor = path
            while not os.path.lexists(ancestor):
                ancestor = os.path.dirname(ancestor)
            reason = f"{ancestor} is not a directory"
        return [Finding(key, f"{path} cannot be written: {reason}", fix, path)]
    return []


IMPORT_APP = os.path.join(os.path.dirname(__file__), "import_app.py")
PROBE_SECONDS = 10.0
# Prints the interpreter's version and its uvicorn's, without importing its packages.
PROBE = (
    "import sys, importlib.util as u, importlib.metadata as m; sys.path[:1] = [];"
    "v = u.find_spec('uvicorn') and ([d.version for d in m.distributions(name='uvicorn')] or ['unknown'])[0];"
    "print('poolctl', sys.version_info[0], sys.version_info[1], v)"
)
# Prefixes of variables that affect the interpreter's startup, before it drops root's privileges.
READ_AT_START = ("PYTHON", "LD_", "MALLOC_")
MAX_ANSWER_BYTES = 65536
_WITHOUT_A2WSGI = (
    "uvicorn's own middleware serves it, which is deprecated, and keeps whole requests in memory"
)
MAX_MESSAGE_LENGTH = 300


class ImportJob(NamedTuple):
    """An app (`target`) to import on trial, and the interpreter, user, directories and variables for the import."""

    python: str
    target: str
    factory: bool
    interface: str
    app_dir: str
    cwd: str
    env: tuple[tuple[str, str], ...]
    user: str | None
    timeout_seconds: float
    new_environment_in: str = ""  # see interpreter.missing_module


def check_interpreters(pythons: Mapping[str, str | None]) -> list[tuple[str, Finding]]:
    """The interpreters that cannot run a server, each with the reason.

    `pythons` maps each interpreter to the user that its server runs as, None for this process's user.
    Blocks; the interpreters are checked in parallel.
    """
    with ThreadPoolExecutor(max_workers=max(1, min(len(pythons), os.cpu_count() or 1))) as threads:
        answers = list(threads.map(_probe_interpreter, pythons, pythons.values()))
    return [(python, finding) for python, finding in zip(pythons, answers, strict=True) if finding]


def _probe_interpreter(python: str, user: str | None) -> Finding | None:
    problem: tuple[str, str] | None
    fix = "name an interpreter or a virtual environment"
    try:
        done = subprocess.run(
            [python, "-c", PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            cwd="/",
            check=False,
            **interpreter.start_options(python, user, os.environ),
        )
    except FileNotFoundError:
        problem = "is not there", fix
    except PermissionError:
        problem = "is not executable", fix
    except subprocess.TimeoutExpired:
        problem = f"did not answer within {PROBE_SECONDS:.0f} s", "is it a Python interpreter?"
    except OSError as error:
        problem = f"cannot be run: {error.strerror}", fix
    else:
        words = done.stdout.split()
        if len(words) != 4 or words[0] != "poolctl":
            problem = "is no Python interpreter", fix
        elif (int(words[1]), int(words[2])) < MIN_PYTHON:
            problem = f"is Python {words[1]}.{words[2]}", "servers need Python 3.11 or newer"
        else:
            problem = uvicorn_problem(python, None if words[3] == "None" else words[3])
    return Finding(("python",), f"{python} {problem[0]}", problem[1], python) if problem else None


def check_imports(
    jobs: Sequence[ImportJob], env: Mapping[str, str]
) -> Iterator[tuple[ImportJob, Finding | None, str]]:
    """Import the apps; yields each job with the reason for a failure. As many imports run at once as there are CPUs.

    For a WSGI application the last member is the middleware that will serve it (else ""), and the finding, if any, a
    warning about that. Blocks until the last import is done or has timed out.
    """
    with ThreadPoolExecutor(max_workers=max(1, min(len(jobs), os.cpu_count() or 1))) as threads:
        for job, answer in zip(
            jobs, threads.map(lambda job: _import_in_subprocess(job, env), jobs), strict=True
        ):
            middleware = str(answer.get("wsgi", ""))
            finding = None
            if middleware == "uvicorn":
                message = (
                    f"{job.target} is a WSGI application, and {job.python} has no a2wsgi: {_WITHOUT_A2WSGI}"
                )
                fix = f"install it there: {install_command(job.python, 'a2wsgi')}"
                finding = Finding(("app",), message, fix, job.target)
            elif answer and not middleware:
                finding = Finding(("app",), *message_and_fix(job, answer), found=job.target)
            yield job, finding, middleware


def _import_in_subprocess(job: ImportJob, env: Mapping[str, str]) -> dict[str, object]:
    environment = {**env, **dict(job.env)}
    options = {"env": environment, **interpreter.start_options(job.python, job.user, environment)}
    if job.user is not None and any(name.startswith(READ_AT_START) for name, _ in job.env):
        options |= interpreter.user_options(job.user, environment)
    options["env"] = {_encoded(name): _encoded(value) for name, value in options["env"].items()}
    # The environment may hold secrets, so it is not passed as an argument, which every user can read.
    request = {key: getattr(job, key) for key in ("target", "factory", "interface", "app_dir", "cwd", "user")}
    try:
        process = subprocess.Popen(
            [job.python, "-P", IMPORT_APP, json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **options,
        )
    except OSError as error:
        return {"kind": "raised", "message": f"{job.python} cannot be run: {error.strerror}"}
    assert process.stdout
    try:
        output = _read_pipe(process.stdout.fileno(), job.timeout_seconds)
    finally:
        process.stdout.close()
        # Kill the group before reaping the leader, while the group id cannot be reused; this also ends processes that
        # the import started.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    if output is None:
        return {"kind": "timeout"}
    try:
        answer: dict[str, object] = json.loads(output)
    except ValueError:
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        return {"kind": "ended", "message": how}
    return answer


def _encoded(text: str) -> bytes:
    # As in the worker: the locale may have no encoding for this text.
    return text.encode("utf-8", "surrogateescape")


def _read_pipe(descriptor: int, timeout_seconds: float) -> bytes | None:
    """Everything written to a pipe, up to the maximum size of an answer; None if it does not end within the timeout."""
    deadline = time.monotonic() + timeout_seconds
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    written = b""
    while len(written) <= MAX_ANSWER_BYTES:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
        data = os.read(descriptor, MAX_ANSWER_BYTES)
        if not data:
            break
        written += data
    return written


def message_and_fix(job: ImportJob, answer: dict[str, object]) -> tuple[str, str]:
    """Why the import has failed, and the fix."""
    module, _, attribute = job.target.partition(":")
    message = " ".join(str(answer.get("message", "")).split())
    message = message[:MAX_MESSAGE_LENGTH] + ("…" if len(message) > MAX_MESSAGE_LENGTH else "")
    where = f" ({answer['where']})" if answer.get("where") else ""
    kind, missing, near = answer["kind"], str(answer.get("missing")), answer.get("near")
    if kind == "no module":
        problem, fix = interpreter.missing_module(
            missing, module, job.app_dir, job.python, job.new_environment_in
        )
        return f"{problem}{where}", fix
    if kind == "no attribute":
        return f"{module} has no {attribute!r}", f"did you mean {near!r}?" if near else "check app"
    if kind == "not callable":
        hint = "name the application, or set factory = true"
        return f"{job.target} is {message}, not an ASGI or WSGI application", hint
    if kind == "mismatch":
        return f"{job.target} {message}", "correct interface, or leave it out"
    if kind == "timeout":
        hint = "start nothing at import, or raise start_timeout"
        return f"{module} was not imported within {job.timeout_seconds:g} s", hint
    if kind == "ended":
        message = f"the process ended while it imported {module}: {message}"
        return message, "a module must not end its process"
    return f"{module} cannot be imported: {message}{where}", f"fix it: {job.python} -c 'import {module}'"
