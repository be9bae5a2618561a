"""`poolctl run --debug NAME`: runs a server in this process, so that breakpoints work."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from poolctl import bootstrap
from poolctl.cli.command import ENDED
from poolctl.cli.command_line import CommandRequest
from poolctl.cli.offline import choose, load, servers_of
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.config import ServerConfig, enter_as, interpreter, with_addresses
from poolctl.control.answers import Result, item
from poolctl.control.client import Client
from poolctl.control.pool_paths import state_dir
from poolctl.errors import ControlError, PoolValidateError, ServerError
from poolctl.exit_codes import CONFLICT, FAILED
from poolctl.listeners.listen_errors import ListenError, explained
from poolctl.listeners.open_listener import inherited_descriptors, open_listener
from poolctl.platform import sealed_file
from poolctl.runners import withheld_variables
from poolctl.runners.worker_spec import Spec, argument_vector, spec_file, tls_contents, worker_spec
from poolctl.states import in_words
from poolctl.worker.process_setup import SPEC_FD, SetupFailed, become_program

if TYPE_CHECKING:
    from poolctl.listeners.port_ledger import PortLedger

# Options about a pool, or about waiting for one.
_NOT_WITH = {
    "command": "a command", "watch": "--watch", "output": "-o", "log_format": "--log-format",
    "stop_timeout": "--stop-timeout", "timeout": "--timeout", "no_wait": "--no-wait", "no_deps": "--no-deps",
}  # fmt: skip
_FIRST_INHERITED_FD = 3  # sd_listen_fds(3)


def perform(request: CommandRequest) -> NoReturn:
    """Run the selected server in this process, as its user and with its environment, until Ctrl-C.

    No supervisor is involved, dependencies are not started, and there is one worker. Raises Failure with the reason.
    """
    for option, said in _NOT_WITH.items():
        if request.get(option):
            raise UsageError(f"--debug and {said} cannot be combined", hint="poolctl run --debug NAME")
    pool = find_pool(request)
    server = _server(request, pool)
    _refuse_running(pool, server)
    try:
        listeners = _listeners(server)
        contents = tls_contents(server)
        spec = worker_spec(
            server,
            interpreter=interpreter(server.python, server.base_dir, os.environ),
            listeners=len(listeners),
            tls_files=len(contents),
            open_files=resource.getrlimit(resource.RLIMIT_NOFILE),
        )
    except ServerError as problem:
        raise Failure(Outcome.failed(FAILED, f"{server.name}: {problem.message}", problem.hint)) from None
    spec["index"] = 0
    # Developers want to see requests, in uvicorn's own format.
    spec["uvicorn"]["access_log"] = not request.get("no_access_log")
    for name in withheld_variables.present():
        del os.environ[name]
    if not request.quiet:
        print(_announcement(server), file=sys.stderr, flush=True)
    try:
        _become(server, spec, listeners, [sealed_file("poolctl", content) for content in contents])
    except (SetupFailed, OSError) as error:
        raise Failure(Outcome.failed(FAILED, f"{server.name}: {error}")) from None


def _server(request: CommandRequest, pool: PoolRef) -> ServerConfig:
    config = load(pool)
    withheld_variables.withhold(config.pool_variables, only=True)
    servers = servers_of(config, pool)
    names = [each.name for each in choose([item(each) for each in servers], request)]
    if len(names) != 1:
        raise UsageError(
            f"--debug runs one server, and {len(names)} are selected", hint="poolctl run --debug NAME"
        )
    problems = config.outside(names=names)
    if problems:
        raise PoolValidateError("the server cannot run", problems)
    if any(each.address.auto for each in servers):
        from poolctl.listeners.port_ledger import PortLedger

        path = f"{state_dir(os.environ, pool.key, create=True)}/ports.json"
        ledger = PortLedger(path, *config.settings.port_range, key=pool.key)
        taken = {each.address.port or 0 for each in servers}
        servers = [_with_port(each, ledger, taken) for each in servers]
    (server,) = [each for each in with_addresses(servers) if each.name == names[0]]
    return server


def _with_port(server: ServerConfig, ledger: PortLedger, taken: set[int]) -> ServerConfig:
    if not server.address.auto:
        return server
    port = ledger.port(server.name, server.address, avoid=taken)
    taken.add(port)
    return server.at(server.address.with_port(port))


def _refuse_running(pool: PoolRef, server: ServerConfig) -> None:
    try:
        found = Client(pool.socket).ask(Result, "list", {"selector": {"targets": [server.name]}})
    except ControlError:
        return
    for each in found.items:
        if each.state not in ENDED:
            raise ControlError(
                f"{server.name} is {in_words(each.state)} in this pool",
                exit_code=CONFLICT,
                hint=f"poolctl stop {server.name}",
            )


def _listeners(server: ServerConfig) -> list[socket.socket]:
    if not server.listens or server.binds_itself:
        return []
    try:
        return open_listener(server.address, inherited=inherited_descriptors(os.environ))
    except ListenError as error:
        raise explained([error])[0] from error


def _announcement(server: ServerConfig) -> str:
    where = f" on {server.expose}" if server.expose else ""
    needed = ", ".join(each.name for each in server.depends_on)
    alone = f"; dependencies not started: {needed}" if needed else ""
    return f"{server.name}{where} runs in this terminal, Ctrl-C stops it{alone}"


def _become(server: ServerConfig, spec: Spec, listeners: list[socket.socket], tls_fds: list[int]) -> NoReturn:
    if server.command:
        spec["argv"] = argument_vector(server)
        for listener in listeners:
            listener.setblocking(True)  # as expected by programs (sd_listen_fds(3))
        _move_descriptors([listener.fileno() for listener in listeners], _FIRST_INHERITED_FD)
        become_program(spec, len(listeners))
    fds = [spec_file(spec), *(listener.fileno() for listener in listeners), *tls_fds]
    _move_descriptors(fds, SPEC_FD)
    argv = bootstrap.command(spec["python"], "worker", "debug", str(len(fds) - 1))
    entered_as = enter_as(spec["python"], spec["user"], os.environ)
    if entered_as is not None:
        argv = bootstrap.as_user(*entered_as, argv)
    os.execve(argv[0], argv, dict(os.environ))


def _move_descriptors(fds: Iterable[int], first: int) -> None:
    """Move the descriptors to `first` and the following numbers, and make them inheritable."""
    given = list(fds)
    lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first + len(given)) for fd in given]
    for number, fd in enumerate(lifted, first):
        os.dup2(fd, number)
