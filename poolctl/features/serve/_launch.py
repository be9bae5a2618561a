"""Prepares the process of `poolctl serve`: opens its listeners, and collects its settings and probes."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import NoReturn

from poolctl.address import AddressError, parse
from poolctl.cli.foreground_server import ForegroundServer, prepare_single_server
from poolctl.cli.options import Selection
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import print_diagnostics
from poolctl.config import Probe, ServerConfig
from poolctl.control.pool_paths import ensure_pool_dir
from poolctl.errors import ControlError
from poolctl.exit_codes import FAILED
from poolctl.json_form import Table
from poolctl.listeners.listen_errors import ListenError, name_holders
from poolctl.listeners.open_listener import open_listener

from ._stacks_client import socket_path


def become_server(
    place: Place, selection: Selection, *, listen: str | None, health: str | None, stop_delay: float
) -> NoReturn:
    """Replace this process by the selected server (exec). Raises UsageError and Failure."""
    pool = find_pool(place)
    server = prepare_single_server(selection, pool, "poolctl serve")
    if server.command:
        for option, value in (("--health", health), ("--stop-delay", stop_delay)):
            if value:
                hint = "leave it out; probe the command's own address, and delay its SIGTERM in the container"
                raise UsageError(f"{option} needs an app, and {server.name} is a command", hint=hint)
    if server.ready_line is not None:
        effect = "has no effect without a pool; a probe of the container can say when it is ready"
        print_diagnostics(Outcome(warnings=[f"{server.name}: ready_line {effect}"]))
    if listen:
        server = listening_on(server, listen)
    foreground = ForegroundServer.with_open_listeners(server)
    if server.scale.max > 1:
        del foreground.spec["index"]  # another container may run the same worker
    listeners = open_health_listeners(health or "")
    stacks = [] if server.command else _open_stacks_socket(pool)
    foreground.spec.update(
        expose=server.expose,
        stacks=bool(stacks),
        stop_delay_seconds=stop_delay,
        probes={} if server.command else http_probes(server),
    )
    foreground.become("features.serve", more=[*listeners, *stacks])


def listening_on(server: ServerConfig, address: str) -> ServerConfig:
    """A copy of the server's settings with another address. Raises UsageError."""
    if not server.listens or server.binds_itself:
        raise UsageError(f"--listen: {server.name} opens no listener that poolctl could move")
    try:
        return server.at(parse(address))
    except AddressError as error:
        raise UsageError(f"--listen: {error}") from None


def open_health_listeners(address: str) -> list[socket.socket]:
    """The listeners of `--health`; none if `address` is "". Raises UsageError and Failure."""
    if not address:
        return []
    try:
        return open_listener(parse(address))
    except AddressError as error:
        raise UsageError(f"--health: {error}") from None
    except ListenError as error:
        problem = name_holders([error])[0]
        raise Failure(Outcome.failed(FAILED, f"--health: {problem.message}", problem.hint)) from None


def _open_stacks_socket(pool: PoolRef) -> list[socket.socket]:
    """Return [socket] for `poolctl stacks`, in the pool's private directory; [] on failure."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        path = socket_path(ensure_pool_dir(os.environ, pool.key), os.getpid())
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # left by an earlier process: pids repeat in containers
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen()
    except (ControlError, OSError):
        listener.close()
        return []
    return [listener]


def http_probes(server: ServerConfig) -> Table:
    """The settings of the server's HTTP probes, by kind: startup, readiness, liveness."""
    probes = {kind: getattr(server.health, kind) for kind in ("startup", "readiness", "liveness")}
    return {
        kind: {name: dict(value) if isinstance(value, dict) else value for name, value in vars(probe).items()}
        for kind, probe in probes.items()
        if isinstance(probe, Probe) and probe.http is not None
    }
