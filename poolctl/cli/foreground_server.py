"""Runs a server in the command's own process, without a supervisor: `run --debug NAME` and `serve NAME`."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from poolctl import bootstrap
from poolctl.cli.offline import choose, load, servers_with_chosen_ports
from poolctl.cli.options import Filters
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.config import ServerConfig, ids_to_start_interpreter_as, interpreter, with_resolved_references
from poolctl.config.values.path_variables import with_absolute_paths
from poolctl.control.answers import Result, item_from_config
from poolctl.control.client import Client
from poolctl.errors import ControlError, PoolValidateError, ServerError
from poolctl.exit_codes import CONFLICT, FAILED
from poolctl.listeners.listen_errors import ListenError, name_holders
from poolctl.listeners.open_listener import inherited_descriptors, open_listener
from poolctl.platform import memory_file
from poolctl.runners.socket_access import server_socket_access
from poolctl.runners.withheld_variables import withheld_variables, withhold_variables
from poolctl.runners.worker_spec import Spec, argument_vector, spec_file, tls_contents, worker_spec
from poolctl.states import ENDED, in_words
from poolctl.worker.process_setup import SPEC_FD, SetupFailed


def prepare_single_server(selection: Filters, pool: PoolRef, command: str) -> ServerConfig:
    """The configuration of the only selected server. `command` is the command name for messages.

    Raises UsageError if several servers are selected, Failure if the configuration is invalid or no server is selected,
    PoolValidateError if this machine cannot run the server, and ControlError (exit 8) if it already runs in the pool.
    """
    server = single_server(selection, pool, command, check=True)
    _refuse_running(pool, server)
    return server


def single_server(selection: Filters, pool: PoolRef, command: str, *, check: bool = False) -> ServerConfig:
    """The only selected server in the files; with `check`, also check that this machine can run it.

    Raises the errors of `prepare_single_server` except ControlError.
    """
    config = load(pool)
    withhold_variables(config.secret_variable_names, only=True)
    servers = servers_with_chosen_ports(config, pool)
    names = [item.name for item in choose([item_from_config(server) for server in servers], selection)]
    if len(names) != 1:
        raise UsageError(
            f"{command.split()[-1]} runs one server, and {len(names)} are selected", hint=f"{command} NAME"
        )
    if check and (problems := config.check_external(names=names)):
        raise PoolValidateError("the server cannot run", problems)
    servers = servers_with_chosen_ports(config, pool, choose_ports=True)
    (server,) = [server for server in with_resolved_references(servers) if server.name == names[0]]
    return server


def _refuse_running(pool: PoolRef, server: ServerConfig) -> None:
    try:
        answer = Client(pool.socket).ask(Result, "list", {"selector": {"targets": [server.name]}})
    except ControlError:
        return
    for item in answer.items:
        if item.state not in ENDED:
            raise ControlError(
                f"{server.name} is {in_words(item.state)} in this pool",
                exit_code=CONFLICT,
                hint=f"poolctl stop {server.name}",
            )


@dataclass(frozen=True)
class ForegroundServer:
    """A server to run in this process: configuration, worker specification, open listeners, contents of TLS files."""

    config: ServerConfig
    spec: Spec
    listeners: list[socket.socket]
    tls: list[bytes]

    @classmethod
    def with_open_listeners(cls, server: ServerConfig) -> ForegroundServer:
        """Open the server's listeners, and read its TLS files. Raises Failure."""
        try:
            listeners = _open_listeners(server)
            contents = tls_contents(server)
            spec = worker_spec(
                server,
                interpreter=interpreter(server.python),
                listeners=len(listeners),
                tls_files=len(contents),
                open_files=resource.getrlimit(resource.RLIMIT_NOFILE),
            )
        except ServerError as problem:
            raise Failure(Outcome.failed(FAILED, f"{server.name}: {problem.message}", problem.hint)) from None
        spec["index"] = 0
        return cls(server, spec, listeners, contents)

    def become(self, part: str, *role: str, more: Iterable[socket.socket] = ()) -> NoReturn:
        """Replace this process (exec) with poolctl's package `part` or, for a command, with a small parent process.

        The application's Python interpreter runs the package. Descriptor SPEC_FD is the worker specification. The next
        descriptors are the listeners, the TLS files and the sockets `more`, in this order. The package's arguments are
        the strings `role`, followed by the number of descriptors after SPEC_FD. Raises Failure.
        """
        for name in withheld_variables():
            del os.environ[name]
        os.environ.update(with_absolute_paths(os.environ))
        try:
            if self.config.command:
                self._become_command()
            sockets = [*self.listeners, *more]
            files = [memory_file("poolctl", content) for content in self.tls]
            numbers = [listener.fileno() for listener in sockets]
            count = len(self.listeners)
            self._become_part(part, role, [*numbers[:count], *files, *numbers[count:]])
        except (SetupFailed, OSError) as error:
            raise Failure(Outcome.failed(FAILED, f"{self.config.name}: {error}")) from None

    def _become_command(self) -> NoReturn:
        config, fds = self.config, [listener.fileno() for listener in self.listeners]
        self.spec["argv"] = argument_vector(config)
        for listener in self.listeners:
            listener.setblocking(True)  # as expected by programs (sd_listen_fds(3))
        self.spec.update(
            stop_group=config.stop_group,
            stop_signal=int(config.stop_signal_number),
            stop_seconds=config.stop_timeout,
            ends_with_parent=True,
        )
        _move_descriptors([spec_file(self.spec), *fds], SPEC_FD)
        argv = bootstrap.command(sys.executable, "worker", "command", str(len(fds)), isolated=True)
        os.execve(argv[0], argv, dict(os.environ))

    def _become_part(self, part: str, role: Iterable[str], fds: list[int]) -> NoReturn:
        python = self.spec["python"]
        _move_descriptors([spec_file(self.spec), *fds], SPEC_FD)
        argv = bootstrap.command(python, part, *role, str(len(fds)))
        ids = ids_to_start_interpreter_as(python, self.spec["user"], os.environ)
        if ids is not None:
            argv = bootstrap.as_user(*ids, argv)
        os.execve(argv[0], argv, dict(os.environ))


def _open_listeners(server: ServerConfig) -> list[socket.socket]:
    if not server.listens or server.binds_itself:
        return []
    try:
        inherited = inherited_descriptors(os.environ)
        return open_listener(server.address, inherited=inherited, access=server_socket_access(server))
    except ListenError as error:
        raise name_holders([error])[0] from error


def _move_descriptors(fds: Iterable[int], first: int) -> None:
    """Move the descriptors to `first` and the following numbers, and make them inheritable."""
    originals = list(fds)
    duplicates = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first + len(originals)) for fd in originals]
    for number, fd in enumerate(duplicates, first):
        os.dup2(fd, number)


def run_server_in_foreground(place: Place, selection: Filters, *, access_log: bool) -> NoReturn:
    """Run the selected server alone in this process, as the user in its configuration, until Ctrl-C.

    Raises the exceptions of `prepare_single_server` and `ForegroundServer`.
    """
    server = prepare_single_server(selection, find_pool(place), "poolctl run --debug")
    foreground = ForegroundServer.with_open_listeners(server)
    foreground.spec.pop("stdin", None)  # the terminal has no end either, and can be read
    # Developers want to see requests, in uvicorn's own format.
    foreground.spec["uvicorn"]["access_log"] = access_log
    if not place.quiet:
        print(_announcement(server), file=sys.stderr)
    foreground.become("worker", "debug")


def _announcement(server: ServerConfig) -> str:
    where = f" on {server.expose}" if server.expose else ""
    dependencies = ", ".join(dependency.name for dependency in server.depends_on)
    note = f"; dependencies not started: {dependencies}" if dependencies else ""
    return f"{server.name}{where} runs in this terminal, Ctrl-C stops it{note}"
