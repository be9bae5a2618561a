"""Pools for tests: on free ports, in this process or in separate processes."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from poolctl.address import parse
from poolctl.cli.output import lines_without_commands
from poolctl.config import (
    ConfigNotFound,
    Problem,
    Recovery,
    ServerConfig,
    find_config,
    with_resolved_references,
)
from poolctl.config.values.plain import PLACEHOLDERS, placeholders
from poolctl.errors import PoolError, PoolValidateError
from poolctl.logs.log_line import stamp
from poolctl.logs.log_tail import tail
from poolctl.pool.loop_thread import run_sync
from poolctl.pool.pool import Pool, PoolConfig
from poolctl.pool.server import Server
from poolctl.runners.embedded_runner import ProcessRunner

Source = str | os.PathLike[str] | Iterable[ServerConfig | Mapping[str, Any]]
LOOPBACK = "127.0.0.1"
QUIET_SECONDS, MOST_LOGGER_SECONDS = 0.1, 2.0
MOST_LINES = 50  # lines per server in a report
_PLACEHOLDERS = (*PLACEHOLDERS, "{fd}")


class PoolUnderTest:
    """A running pool. `pool` is the `poolctl.Pool` itself."""

    def __init__(self, pool: Pool, runner: ProcessRunner | None, logs_directory: str) -> None:
        self.pool = pool
        self._runner = runner
        self._logs_directory = logs_directory
        self._servers = {server.name: server for _, server in pool.items()}

    def __repr__(self) -> str:
        return f"<PoolUnderTest {', '.join(self._servers)}>"

    def server(self, name: str) -> Server:
        """The server of this name. Raises KeyError for an unknown one."""
        if name not in self._servers:
            raise KeyError(f"no server is named {name!r}; there are {', '.join(self._servers)}")
        return self._servers[name]

    def url(self, name: str, path: str = "") -> str:
        """The URL of a server followed by this path. Raises KeyError for an unknown server."""
        config = self.server(name).config
        if config.address.kind != "tcp":
            return f"{config.expose}{path}"
        return f"{'https' if config.tls else 'http'}://{config.address.connect_address.key}{path}"

    def log(self, name: str, since: float = 0.0) -> list[str]:
        """The last lines printed by a server, since a time.time() value. Empty for a pool in this process."""
        path = self._log_path(name)
        return (
            [line.text for line in tail(path, MOST_LINES, since=stamp(since) if since else "")]
            if path
            else []
        )

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
        self.pool.stop_sync()
        if self._runner is not None:
            run_sync(self._runner.aclose())

    def _await_logger(self) -> None:
        """Wait, at most two seconds, until the logs no longer grow: they then have the output up to now."""
        paths = [path for path in map(self._log_path, self._servers) if path]
        sizes, deadline = [-1], time.monotonic() + MOST_LOGGER_SECONDS
        while paths and time.monotonic() < deadline:
            before, sizes = sizes, [os.path.getsize(path) if os.path.exists(path) else 0 for path in paths]
            if sizes == before:
                return
            time.sleep(QUIET_SECONDS)

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
        files = self._find_config_files(source) if not servers and _names_files(source) else None
        processes = files is not None if processes is None else processes
        key = (tuple(files), processes) if files else object()
        if key not in self._started:
            self._started[key] = self._start(self._config(files, source, servers), processes)
        return self._started[key]

    def stop(self) -> None:
        """Stop all pools. Raises PoolStopError."""
        try:
            for started in self._started.values():
                started.stop()
        finally:
            for claim in self._claims:
                claim.close()
            if self._directory:
                shutil.rmtree(self._directory, ignore_errors=True)

    def sections(self, since: float) -> list[tuple[str, str]]:
        """Titles and texts for a test report: the log of each server of all pools, if it has output."""
        return [section for started in self._started.values() for section in started.sections(since)]

    def _find_config_files(self, source: Any) -> list[str]:
        paths = [] if source is None else [os.fspath(source)]
        try:
            return find_config(paths, cwd=self._root)
        except ConfigNotFound as missing:
            raise _failure("there is no pool", [missing]) from None

    def _config(self, files: list[str] | None, source: Any, servers: Mapping[str, Any]) -> list[ServerConfig]:
        try:
            if files:
                config = PoolConfig.load(files)
            else:
                tables = [*(source or ()), *(_table(name, given) for name, given in servers.items())]
                config = PoolConfig([self._with_free_port_if_unset(table) for table in tables])
        except PoolValidateError as invalid:
            raise _failure("the configuration is not valid", invalid.exceptions) from None
        if config.problems:
            raise _failure("the configuration is not valid", config.problems)
        return (
            with_resolved_references([_without_supervision(self._at_free_address(each)) for each in config])
            if files
            else [*config]
        )

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
            raise _failure("the pool did not start", failed.exceptions) from None
        return pool

    def _at_free_address(self, server: ServerConfig) -> ServerConfig:
        """Return the server, moved, if it listens, to an address that no other test and no running pool uses."""
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
        """Return a free port, which the kernel assigns only once: a socket that never listens stays bound to it."""
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
    """The server of a file without the keys that only the supervisor acts on, which a Pool refuses."""
    limits = server.limits.model_copy(update={"memory": None})
    scale = server.scale.model_copy(update={"max": server.workers})
    kept = {
        "limits": limits, "scale": scale, "mandatory": False, "recovery": Recovery(), "reload_signal": None,
    }  # fmt: skip
    return server.model_copy(update=kept)


def _names_files(source: Any) -> bool:
    return source is None or isinstance(source, (str, os.PathLike))


def _table(name: str, given: Any) -> dict[str, Any]:
    return {"name": name, **(given if isinstance(given, Mapping) else {"app": given})}


def _failure(what: str, errors: Iterable[Exception]) -> BaseException:
    """The exception that fails the test with every error and its hint, without a traceback through the plugin."""
    lines = [what]
    for error in errors:
        name, message = getattr(error, "name", ""), getattr(error, "message", "") or str(error)
        place = str(error.place) if isinstance(error, Problem) and error.file else name
        lines.append(f"{place}: {message}" if place else message)
        lines += [f"  hint: {hint}"] if (hint := getattr(error, "hint", "")) else []
    return pytest.fail.Exception(lines_without_commands("\n".join(lines)), pytrace=False)
