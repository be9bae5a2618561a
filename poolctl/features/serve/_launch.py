"""Prepares the process of `poolctl serve`: opens its listeners, and collects its settings and probes."""

from __future__ import annotations

import socket
from typing import NoReturn

from poolctl.address import AddressError, parse
from poolctl.cli.foreground_server import ForegroundServer, prepare_single_server
from poolctl.cli.options import Selection
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import print_diagnostics
from poolctl.config import Probe, ServerConfig
from poolctl.exit_codes import FAILED
from poolctl.json_form import Table
from poolctl.listeners.listen_errors import ListenError, name_holders
from poolctl.listeners.open_listener import open_listener


def become_server(
    place: Place, selection: Selection, *, listen: str | None, health: str | None, stop_delay: float
) -> NoReturn:
    """Replace this process by the selected server (exec). Raises UsageError and Failure."""
    server = prepare_single_server(selection, find_pool(place), "poolctl serve")
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
    foreground.spec.update(
        expose=server.expose,
        stop_delay_seconds=stop_delay,
        probes={} if server.command else http_probes(server),
    )
    foreground.become("features.serve", more=listeners)


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


def http_probes(server: ServerConfig) -> Table:
    """The settings of the server's HTTP probes, by kind: startup, readiness, liveness."""
    probes = {kind: getattr(server.health, kind) for kind in ("startup", "readiness", "liveness")}
    return {
        kind: {name: dict(value) if isinstance(value, dict) else value for name, value in vars(probe).items()}
        for kind, probe in probes.items()
        if isinstance(probe, Probe) and probe.http is not None
    }
