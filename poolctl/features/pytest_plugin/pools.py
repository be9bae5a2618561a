"""Pools for tests: on free ports, in this process or in separate processes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from poolctl.address import parse
from poolctl.cli.output import lines_without_commands
from poolctl.config import ConfigNotFound, Problem, Recovery, ServerConfig, find_config
from poolctl.config.values.plain import PLACEHOLDERS, exposed_url, placeholders
from poolctl.errors import PoolError, PoolValidateError, ServerError
from poolctl.logs.log_line import stamp
from poolctl.logs.log_tail import tail
from poolctl.platform import is_exiting
from poolctl.pool.loop_thread import Limit, LoopBlocked, run_sync, submit
from poolctl.pool.pool import Pool, PoolConfig
from poolctl.pool.server import Server, handle_in_process, with_port
from poolctl.runners.embedded_runner import ProcessRunner
from poolctl.selection.url_of_server import unknown_server

Source = str | os.PathLike[str] | Iterable[ServerConfig | Mapping[str, Any]]
LOOPBACK = "127.0.0.1"
MAX_LOGGER_SECONDS, MAX_EXIT_SECONDS, LOOK_SECONDS = 2.0, 5.0, 0.01
# The stop timeout of servers without the key `stop_timeout`. An open request delays the stop for most of it.
STOP_TIMEOUT_SECONDS = 2.0
MAX_LINES = 50  # lines per server in a report
_PLACEHOLDERS = (*PLACEHOLDERS, "{fd}")


class PoolUnderTest:
    """A running pool. `pool` is the `poolctl.Pool` itself."""

    def __init__(self, pool: Pool, runner: ProcessRunner | None, logs_directory: str) -> None:
        self.pool = pool
        self._runner = runner
        self._logs_directory = logs_directory
        self._known: dict[str, Server] = {}  # including servers that a test has removed
        self._reported_exits: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<PoolUnderTest {', '.join(self._servers)}>"

    @property
    def _servers(self) -> dict[str, Server]:
        self._known |= {server.name: server for server in self.pool.values()}
        return self._known

    def server(self, name: str) -> Server:
        """The server of this name. Raises PoolParamError for an unknown one."""
        if name not in self._servers:
            raise unknown_server(name, [*self._servers])
        return self._servers[name]

    def url(self, name: str, path: str = "") -> str:
        """The URL of a server followed by this path. Raises PoolParamError if it is unknown or has none."""
        return self.pool.url(name, path)

    def log(self, name: str, since: float = 0.0) -> list[str]:
        """The last lines printed by a server, since a time.time() value. Empty for a pool in this process."""
        path = self._log_path(name)
        return (
            [line.text for line in tail(path, MAX_LINES, since=stamp(since) if since else "")] if path else []
        )

    def new_exits(self) -> list[tuple[str, str]]:
        """The servers that exited without being stopped since the last call, and how. Waits for exiting servers."""
        self.await_exits()
        exits = []
        for name, server in self._servers.items():
            if (handle := handle_in_process(server)) is None:
                continue
            count = handle.exits - self._reported_exits.get(name, 0)
            self._reported_exits[name] = handle.exits
            if count and (last := handle.last_exit) is not None:
                message = last.message if last.signal is None else f"was {last.message}"
                exits.append((name, f"{message}{f' ({count} times)' if count > 1 else ''}"))
        return exits

    def await_exits(self) -> None:
        """Wait, at most five seconds, until the pool has noticed all exits."""
        deadline = time.monotonic() + MAX_EXIT_SECONDS
        while time.monotonic() < deadline:
            if not any(is_exiting(pid) for server in self._servers.values() for pid in server.pids):
                return
            time.sleep(LOOK_SECONDS)

    def sections(self, since: float) -> list[tuple[str, str]]:
        """Titles and texts for a test report: each server's log since a time.time() value, if it has output."""
        self._await_logger()
        logs = {name: self.log(name, since) for name in self._servers}
        return [
            (f"Log of server {name}", lines_without_commands("\n".join(lines)))
            for name, lines in logs.items()
            if lines
        ]

    def stop(self) -> None:
        """Stop the pool with all its processes. Raises PoolStopError."""
        self.await_exits()  # record exits that were not caused by this stop
        try:
            self.pool.stop_sync()
        finally:
            if self._runner is not None:
                with suppress(LoopBlocked):  # the runner is closed once the loop runs again
                    run_sync(self._runner.aclose(), Limit(MAX_EXIT_SECONDS), stands=True)

    def _await_logger(self) -> None:
        """Wait, at most two seconds, until the logs have the output up to now."""
        if self._runner is not None and hasattr(self._runner, "output"):  # it has started
            stored = submit(self._runner.output.wait_until_all_stored(MAX_LOGGER_SECONDS))
            with suppress(TimeoutError):
                stored.result(MAX_LOGGER_SECONDS)

    def _log_path(self, name: str) -> str:
        config = self.server(name).config
        if self._runner is None:
            return ""
        return config.log.path or os.path.join(self._logs_directory, f"{name}.log")


class PoolFactory:
    """The value of the fixtures `poolctl_pool` and `poolctl_session_pool`: call it to start a pool."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._started: dict[object, PoolUnderTest] = {}
        self._claims: list[socket.socket] = []
        self._directory = ""

    def __repr__(self) -> str:
        return f"<PoolFactory {len(self._started)} started>"

    def __call__(
        self, source: Source | None = None, /, *, processes: bool | None = None, **servers: Any
    ) -> PoolUnderTest:
        """Start a pool and block until all servers are ready; the test fails if a server does not start.

        `source` is a file, by default the project's pool.toml, or a list of servers. Servers can also be keywords:
        `users=app`, `users="shop.users:app"`, `users={"command": […]}`. The servers of a file get free ports of
        127.0.0.1 instead of their addresses; other servers get a free port unless they have a `bind`. With
        `processes`, the default for a file, each server is a process; otherwise servers run in the test's process.
        Another call with the same file and the same `processes` returns the pool that already runs.
        """
        names_files = source is None or isinstance(source, (str, os.PathLike))
        files = self._find_config_files(source) if not servers and names_files else None
        processes = files is not None if processes is None else processes
        key = (tuple(files), processes) if files else object()
        if key not in self._started:
            config = self._config(files, source, servers)
            if processes and not files:
                config = [*map(_with_import_path, config)]
            self._started[key] = self._start(config, processes)
        return self._started[key]

    def stop(self) -> None:
        """Stop all pools; the test fails if a server does not stop."""
        errors: list[ServerError] = []
        for started in self._started.values():
            try:
                started.stop()
            except PoolError as failed:
                errors += failed.exceptions
        for claim in self._claims:
            claim.close()
        if errors:
            raise pool_failure("the pool did not stop", errors)

    def remove_files(self) -> None:
        """Remove the logs and sockets of all pools."""
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def new_exits(self) -> list[tuple[str, str]]:
        """Each server of all pools that has ended by itself since the last call, and how."""
        return [exit_ for started in self._started.values() for exit_ in started.new_exits()]

    def sections(self, since: float) -> list[tuple[str, str]]:
        """Titles and texts for a test report: the log of each server of all pools, if it has output."""
        return [section for started in self._started.values() for section in started.sections(since)]

    def _find_config_files(self, source: Any) -> list[str]:
        paths = [] if source is None else [os.fspath(source)]
        try:
            return find_config(paths, cwd=self._root)
        except ConfigNotFound as missing:
            raise pool_failure("there is no pool", [missing]) from None

    def _config(self, files: list[str] | None, source: Any, servers: Mapping[str, Any]) -> list[ServerConfig]:
        try:
            if files:
                config = PoolConfig.load(files)
            else:
                tables = [*(source or ()), *(_table(name, value) for name, value in servers.items())]
                config = PoolConfig([self._with_free_port_if_unset(table) for table in tables])
        except PoolValidateError as invalid:
            raise pool_failure("the configuration is not valid", invalid.exceptions) from None
        if config.problems:
            raise pool_failure("the configuration is not valid", config.problems)
        configs = [*config]
        if files:
            configs = [_without_supervision(self._at_free_address(server)) for server in config]
        return [*map(_for_tests, configs)]

    def _start(self, servers: list[ServerConfig], processes: bool) -> PoolUnderTest:
        logs_directory = os.path.join(self._private_directory(), f"logs{len(self._started)}")
        runner = ProcessRunner(logs_directory) if processes else None
        try:
            pool = PoolUnderTest(Pool(servers, runner=runner), runner, logs_directory)
            try:
                pool.pool.start_sync()
            except BaseException:
                pool.stop()
                raise
        except PoolError as failed:
            raise pool_failure("the pool did not start", failed.exceptions) from None
        return pool

    def _at_free_address(self, server: ServerConfig) -> ServerConfig:
        """Return the server; if it listens, at an address that no other test or pool uses."""
        address = server.address
        if not address.listens:
            return server
        if address.kind == "unix":
            directory = self._private_directory()
            return server.at(parse(f"unix:{directory}/{len(os.listdir(directory))}-{server.name[:20]}.sock"))
        return server.at(parse(f"{LOOPBACK}:{self._claim_port()}"))

    def _with_free_port_if_unset(self, table: Any) -> Any:
        if not isinstance(table, Mapping) or "bind" in table or "listen" in table or table.get("job"):
            return table
        texts = [*map(str, table.get("command", ())), *map(str, table.get("env", {}).values())]
        if "command" in table and not any(placeholders(text, _PLACEHOLDERS) for text in texts):
            return table  # a program without a port
        return {**table, "bind": f"{LOOPBACK}:{self._claim_port()}"}

    def _claim_port(self) -> int:
        """Return a free port. A socket that never listens stays bound to it, so the kernel does not assign it again."""
        claim = socket.socket()
        self._claims.append(claim)
        claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        claim.bind((LOOPBACK, 0))
        return int(claim.getsockname()[1])

    def _private_directory(self) -> str:
        # Paths of Unix sockets must be short, and pytest's own directories are not.
        self._directory = self._directory or tempfile.mkdtemp(prefix="poolctl-test-")
        return self._directory


def _without_supervision(server: ServerConfig) -> ServerConfig:
    """The server without the keys for the supervisor, which a Pool refuses."""
    limits = server.limits.model_copy(update={"memory": None})
    scale = server.scale.model_copy(update={"max": server.workers})
    changes = {
        "limits": limits, "scale": scale, "mandatory": False, "recovery": Recovery(), "reload_signal": None,
    }  # fmt: skip
    return server.model_copy(update=changes)


def _for_tests(server: ServerConfig) -> ServerConfig:
    """The server with a local address for clients and a short stop timeout."""
    server = with_port(server)
    changes: dict[str, Any] = {"expose": exposed_url(server.address, bool(server.tls))}
    if "stop_timeout" not in server.model_fields_set:
        changes["stop_timeout"] = STOP_TIMEOUT_SECONDS
    return server.model_copy(update=changes)


def _with_import_path(server: ServerConfig) -> ServerConfig:
    """The server with the import path of this process, after `app_dir`."""
    if server.app is None or server.python is not None:
        return server
    added = [os.path.abspath(path) for path in sys.path if path not in _initial_import_path()]
    current = server.env.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(dict.fromkeys([*current.split(os.pathsep), *added] if current else added))
    return server.replace(env={**server.env, "PYTHONPATH": path}) if added else server


@cache
def _initial_import_path() -> list[str]:
    """The import path with which this interpreter starts."""
    command = [sys.executable, "-P", "-c", "import sys; print(*sys.path, sep='\\0', end='')"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")


def _table(name: str, value: Any) -> dict[str, Any]:
    return {"name": name, **(value if isinstance(value, Mapping) else {"app": value})}


def pool_failure(what: str, errors: Iterable[Exception]) -> BaseException:
    """The exception that fails the test with every error and its hint, without a traceback through the plugin."""
    import pytest  # late, because the package exports this module's classes for annotations

    lines = [what]
    for error in errors:
        name, message = getattr(error, "name", ""), getattr(error, "message", "") or str(error)
        place = str(error.place) if isinstance(error, Problem) and error.file else name
        lines.append(f"{place}: {message}" if place else message)
        lines += [f"  hint: {hint}"] if (hint := getattr(error, "hint", "")) else []
    return pytest.fail.Exception(lines_without_commands("\n".join(lines)), pytrace=False)
