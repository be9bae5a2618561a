"""Tries a takeover by another version of poolctl on a small temporary pool, before the real pool is changed.

The small pool has its own directory. Its servers have the interpreters, users and protocols of the real servers, and an
application that answers every request. If its takeover fails, the real one would probably fail, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import glob
import importlib
import json
import os
import pkgutil
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import poolctl
from poolctl.config import Configuration, ServerConfig, interpreter, load
from poolctl.control import pool_paths
from poolctl.control.answers import ErrorEntry, PingResult, Result, UpgradeResult
from poolctl.control.client import Client, failure_reason, upgrade_options, wait_for_exit
from poolctl.control.protocol import TRIED
from poolctl.errors import ControlError, PoolError
from poolctl.feature import features
from poolctl.http.http_client import exchange
from poolctl.http.messages import BadMessage
from poolctl.json_form import Table, from_json, to_json
from poolctl.keeper.reap import children, wait_or_kill_children
from poolctl.platform import become_subreaper
from poolctl.runners.worker_spec import added_environment
from poolctl.worker.process_setup import START_VARIABLES

from .launch import launch
from .takeover.state_store import NotUnderstood, decoded
from .verbs.upgrade import TakeoverCheckReport

LIMIT_SECONDS = 60
_SHOWN = 500  # the number of an error's characters that are shown
_ANSWER_SECONDS = 10.0
_END_SECONDS = 5.0
_LONGEST = 60  # the longest directory name: a socket's path has at most 107 bytes
# The only variables passed on: those that an interpreter and its libraries need, without secrets.
_VARIABLES = ("PATH", "HOME", "LANG", "LC_", "TZ", "TMPDIR", *START_VARIABLES)
_PROTOCOLS = {"implementation", "loop", "websocket"}
_FILE = "pool.json"
_PREFIX = "poolctl-trial-"
_APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
"""


class TrialFailed(Exception):
    """The trial takeover of a small temporary pool has failed."""


def print_takeover_check(files: list[str]) -> str | None:
    """Print a TakeoverCheckReport: can this version run this pool on this host? Return the error of a failed trial.

    Reads the active configuration from stdin. If it has no errors, imports every module, and tries a takeover of a
    small temporary pool. If the environment variable TRIED is set, does not try the takeover, because the caller tries
    the takeover itself. Raises the exceptions of the imports.
    """
    problem, errors = "", []
    servers: Sequence[ServerConfig]
    try:
        stored = decoded(sys.stdin.buffer.read(), validate=True)
        servers = stored.servers
        errors = [each.to_dict() for each in Configuration(servers, stored.tables).startup_problems()]
    except NotUnderstood as unsupported:
        problem, servers = str(unsupported), []
        try:
            servers = config = load(files, os.environ)
            errors = [each.to_dict() for each in config.problems or config.startup_problems()]
        except PoolError as error:
            errors = error.to_list()
    if not errors:
        _import_everything()
        try:
            logs = _logs_of(files)
            if TRIED not in os.environ:
                try_takeover(servers, upgrade_options(), logs)
        except ControlError as refused:
            return f"{refused.message} ({refused.hint})"
        except TrialFailed as failed:
            return str(failed)
    entries = tuple(from_json(ErrorEntry, each) for each in errors)
    print(json.dumps(to_json(TakeoverCheckReport(problem=problem, errors=entries))))
    return None


def _import_everything() -> None:
    """Import every module of poolctl that runs in this interpreter. Raises the exceptions of the imports."""
    for module in pkgutil.walk_packages(poolctl.__path__, "poolctl."):
        name = module.name
        # Workers have interpreters of their own.
        if name.endswith(".__main__") or name.startswith("poolctl.worker."):
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as missing:
            # A feature that this pool does not use may need a library that is not installed. For one in use, the
            # checks of its tables have reported that.
            if not name.startswith("poolctl.features.") or str(missing.name).startswith("poolctl"):
                raise


def try_takeover_by(options: str, *files: str) -> str | None:
    """Let another version take over a small temporary pool of this version; return the error, or None.

    `options` (JSON) describes how to start that version. Reads the active configuration from stdin.
    """
    try:
        servers = decoded(sys.stdin.buffer.read()).servers
        try_takeover(servers, json.loads(options), _logs_of(files))
    except TrialFailed as failed:
        return str(failed)
    return None


def try_takeover(servers: Iterable[ServerConfig], options: Table, logs: str) -> None:
    """Let another version take over a small temporary pool of this version, and replace all of that pool's processes.

    `options` are the options of the verb `upgrade`. If the takeover fails, the temporary pool's logs are kept in the
    directory `logs`. Blocks. Raises TrialFailed.
    """
    with _small_pool(servers, logs) as pool:
        # Not an error yet: servers that fail to start under this version may start under the other version.
        pool.ask(Result, "start")
        before, helpers = pool.pids(), pool.logger_and_feature_pids()
        pid = pool.run_verb_or_raise(UpgradeResult, "upgrade", {**options, "tried": True}).upgraded_from
        assert pid is not None
        wait_for_exit(pid, _ANSWER_SECONDS)
        if pool.ask(PingResult, "ping").version != options["version"]:
            raise TrialFailed(f"the takeover failed: {pool.failure_reason()}")
        if pool.pids() != before:
            raise TrialFailed("the takeover did not keep the workers")
        pool.kill_earlier_helpers_and_clear_logs(helpers)
        pool.run_verb_or_raise(Result, "restart")
        for feature in features():
            if feature.trial is not None:
                pool.run_verb_or_raise(Result, feature.trial.verb)
        pool.check_answers()
        pool.run_verb_or_raise(Result, "stop")
        pool.check_logs()


Answer = TypeVar("Answer", Result, PingResult, UpgradeResult)


class _SmallPool:
    """A small temporary pool whose takeover is tried."""

    def __init__(self, place: str, env: Mapping[str, str], names: Iterable[str]) -> None:
        self._sockets = {name: f"{place}/{number}.sock" for number, name in enumerate(names)}
        self._directory = pool_paths.pool_dir(env, pool_paths.pool_key(f"{place}/{_FILE}"))
        self._client = Client(pool_paths.control_socket_path(self._directory))

    def ask(self, kind: type[Answer], verb: str, options: Table | None = None) -> Answer:
        try:
            return self._client.ask(kind, verb, {"options": options or {}})
        except ControlError as error:
            raise TrialFailed(f"no supervisor answers {verb!r}: {self.failure_reason()}") from error

    def run_verb_or_raise(self, kind: type[Answer], verb: str, options: Table | None = None) -> Answer:
        """Send a command to the temporary pool's supervisor; return its answer. Raises TrialFailed if it has errors."""
        answer = self.ask(kind, verb, options)
        if answer.errors:
            error = answer.errors[0]
            where = f"{error.name}: " if error.name else ""
            # A hint that refers to the small pool itself is of no use.
            hint = "" if error.hint.startswith(("poolctl ", "see ")) else f"; {error.hint}"
            raise TrialFailed(f"{where}{error.message}{hint}")
        return answer

    def pids(self) -> dict[str, tuple[int, ...]]:
        return {item.name: item.pids for item in self.ask(Result, "list").items}

    def check_answers(self) -> None:
        """Send a request to each application. Raises TrialFailed unless each answers with status 200."""
        for name, path in self._sockets.items():
            try:
                status = asyncio.run(_request_status(path))
            except (OSError, BadMessage) as error:
                why = str(error) or f"nothing within {_ANSWER_SECONDS:g} s"
                raise TrialFailed(f"{name}: its worker does not answer: {why}") from error
            if status != 200:
                raise TrialFailed(f"{name}: its worker answers with status {status}")

    def logger_and_feature_pids(self) -> set[int]:
        """Return the pids of the temporary pool's logger and of its processes of features, such as the gateway."""
        found = set()
        for pid in children(self.ask(PingResult, "ping").keeper_pid):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as file:
                if any(word == "logs" or word.startswith("features.") for word in file.read().split("\0")):
                    found.add(pid)
        return found

    def kill_earlier_helpers_and_clear_logs(self, before: set[int]) -> None:
        """Kill all helpers whose pid is in `before`; empty the workers' logs, so that `check_logs` sees new lines."""
        for pid in self.logger_and_feature_pids() & before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in self._logs():
            os.truncate(path, 0)

    def check_logs(self) -> None:
        if not any(map(os.path.getsize, self._logs())) and self._sockets:
            raise TrialFailed("the output of workers is not logged")

    def _logs(self) -> list[str]:
        return glob.glob(f"{glob.escape(self._directory)}/state/logs/*.log")

    def failure_reason(self) -> str:
        """Return the reason for a failure, from the log of the temporary pool's supervisor."""
        return failure_reason(f"{self._directory}/supervisor.log") or "it left no log"


@contextlib.contextmanager
def _small_pool(servers: Iterable[ServerConfig], logs: str) -> Iterator[_SmallPool]:
    """Run a small temporary pool like the real one until the `with` block ends; then all of its processes have exited.

    If the trial fails, the temporary pool's logs are kept in the directory `logs`. Raises TrialFailed.
    """
    # The processes of the small pool become our children if its keeper dies.
    become_subreaper()
    signal.signal(signal.SIGALRM, _too_late)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    signal.alarm(LIMIT_SECONDS)
    _remove_abandoned()
    place, lock = _make_locked_directory()
    lifeline = -1
    shutil.rmtree(logs, ignore_errors=True)
    try:
        env = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
        env[pool_paths.RUNTIME_VARIABLE] = place
        kinds = _representative_server_tables(servers)
        _write(f"{place}/trial.py", _APP, 0o644)
        _write(f"{place}/{_FILE}", _configuration(place, kinds), 0o600)
        pool = _SmallPool(place, env, kinds)
        lifeline = launch([f"{place}/{_FILE}"], env, lifeline=True).lifeline
        yield pool
    except (ControlError, TrialFailed) as failed:
        _keep_logs(place, logs)
        raise TrialFailed(f"{' '.join(str(failed).split())[:_SHOWN]} (its logs are in {logs})") from failed
    finally:
        signal.alarm(0)
        if lifeline >= 0:
            os.close(lifeline)
        wait_or_kill_children(_END_SECONDS)
        shutil.rmtree(place, ignore_errors=True)
        os.close(lock)


def _logs_of(files: Sequence[str]) -> str:
    """The directory, next to the real pool's logs, for the logs of a failed trial."""
    return f"{pool_paths.state_dir(os.environ, pool_paths.pool_key(files[0]), create=True)}/upgrade-trial"


def _keep_logs(place: str, logs: str) -> None:
    with contextlib.suppress(OSError):
        os.mkdir(logs, 0o700)
    for path in glob.iglob(f"{glob.escape(place)}/**/*.log", recursive=True):
        with contextlib.suppress(OSError):
            shutil.copyfile(path, os.path.join(logs, os.path.basename(path)))


def _writable_temporary_directories() -> list[str]:
    roots = ("/tmp", "/var/tmp", pool_paths.ensure_runtime_root(os.environ))
    usable = [each for each in roots if len(each) < _LONGEST and os.access(each, os.W_OK | os.X_OK)]
    return usable or [roots[-1]]


def _make_locked_directory() -> tuple[str, int]:
    """Create a directory for sockets, with a short path, that the servers' users can enter.

    Returns the path, and a descriptor that locks the directory until it is closed.
    """
    place = tempfile.mkdtemp(prefix=_PREFIX, dir=_writable_temporary_directories()[0])
    lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.chmod(place, 0o755)
    return place, lock


def _remove_abandoned() -> None:
    """Remove directories that killed trials of this user have left behind."""
    for place in [
        each
        for root in _writable_temporary_directories()
        for each in glob.iglob(f"{glob.escape(root)}/{_PREFIX}*")
    ]:
        with contextlib.suppress(OSError):
            lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                status = os.fstat(lock)
                # A new directory may not be locked yet.
                if status.st_uid == os.geteuid() and time.time() - status.st_mtime > LIMIT_SECONDS:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(lock)


def _too_late(number: int, frame: object) -> None:
    raise TrialFailed(f"it did not end within {LIMIT_SECONDS} s")


def _representative_server_tables(servers: Iterable[ServerConfig]) -> dict[str, Table]:
    """Return a server table for each combination of interpreter, user and protocol that `servers` have.

    The key is the name of the first server with the combination.
    """
    found: dict[str, tuple[str, Table]] = {}
    for server in servers:
        if server.command:
            continue
        kind: Table = {
            "python": interpreter(server.python, server.base_dir, os.environ),
            "preload": server.preload,
            "env": {
                name: each
                for name, each in added_environment(server).items()
                if name.startswith(START_VARIABLES)
            },
            "http": {key: value for key, value in server.http.as_given().items() if key in _PROTOCOLS},
        } | ({} if server.user is None else {"user": server.user})
        found.setdefault(json.dumps(kind, sort_keys=True), (server.name, kind))
    return dict(found.values())


def _configuration(place: str, kinds: Mapping[str, Table]) -> str:
    """Return the temporary pool's file as JSON: a server for each of `kinds`, a job, and the features' test tables."""
    shared = {"app": "trial:app", "app_dir": place, "cwd": "/"}
    apps = [
        {"name": name, **kind, **shared, "bind": f"unix:{place}/{number}.sock"}
        for number, (name, kind) in enumerate(kinds.items())
    ]
    name = "a-program"
    while name in kinds:
        name += "-2"
    program = {"name": name, "job": True, "command": [sys.executable, "-I", "-c", ""], "cwd": "/"}
    tables = {name: table for each in features() if each.trial for name, table in each.trial.tables.items()}
    return json.dumps({"server": [*apps, program], **tables})


def _write(path: str, text: str, mode: int) -> None:
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, mode)


async def _request_status(socket_path: str) -> int:
    """The status code of the application's answer on this Unix socket. Raises OSError, BadMessage."""
    fields = [("Host", "trial"), ("Connection", "close")]
    async with asyncio.timeout(_ANSWER_SECONDS), exchange(socket_path, "GET", "/", fields) as response:
        return response.status
