"""The interface through which the core and a Python pool use a runner, which creates and ends workers.

There are two runners: `local.local_runner` makes each worker a process of this machine, and `inline_runner` a task of
this process. A supervisor always has the local runner, and uses more of it than this interface. Standard library only.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from poolctl.config import ServerConfig
    from poolctl.worker.tally import Counts

    from .process_usage import ProcessUsages
    from .stack_report import WorkerStacks


# More concurrent imports would only wait for each other.
IMPORTS_PER_CPU = 2

# The values of a pool's context for scope["state"], set around `place`. Another process gets only JSON values.
app_state: ContextVar[Mapping[str, object]] = ContextVar("poolctl_app_state", default=MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Placement:
    """A worker: its server, generation and index, and where it runs.

    `address` is the private address of a process of a proxied server; "" for other servers.
    """

    id: str
    server: str
    generation: int
    index: int
    where: str
    pid: int | None = None
    address: str = ""

    def __repr__(self) -> str:
        return f"<Placement {self.id} in {self.where}>"

    @classmethod
    def of(
        cls, server: str, generation: int, index: int, *, where: str = "this process", pid: int | None = None
    ) -> Placement:
        """A placement whose id is ``server.generation.index``."""
        return cls(f"{server}.{generation}.{index}", server, generation, index, where, pid)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker ended: with a status, by a signal, or unknown (both None).

    `group_left`: other processes of its process group still ran at that time.
    """

    status: int | None = None
    signal: int | None = None
    message: str = ""
    group_left: bool = False

    @property
    def ok(self) -> bool:
        """Whether the worker ended by itself with status 0."""
        return self.status == 0

    def message_before_ready(self, reason: str) -> str:
        """The error message for a worker that ended before it was ready. It includes `reason` unless that is ""."""
        message = f"{self.message} before it was ready"
        return f"{message}: {reason}" if reason else message

    @classmethod
    def from_returncode(cls, status: int) -> Exit:
        """The exit for a status as subprocess reports it; negative values are signals."""
        if status < 0:
            return cls.from_signal(-status)
        return cls(status=status, message=f"exited with status {status}")

    @classmethod
    def from_report(cls, status: int | None, number: int | None) -> Exit:
        """Return the exit for a keeper's report. Both arguments are None if the keeper was not the worker's parent."""
        if number is not None:
            return cls.from_signal(number)
        if status is not None:
            return cls.from_returncode(status)
        return cls(message="exit status unknown, because the keeper that had started it was killed")

    @classmethod
    def from_signal(cls, number: int) -> Exit:
        """The exit for the signal that ended the worker."""
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        meaning = _SIGNAL_MEANINGS.get(number)
        return cls(signal=number, message=f"killed by {name}{f' ({meaning})' if meaning else ''}")


# What the kernel means by a signal that it alone sends for this reason (signal(7), seccomp(2)).
_SIGNAL_MEANINGS: dict[int, str] = {
    signal.SIGXCPU: "limit of CPU time reached",
    signal.SIGSYS: "system call forbidden by seccomp",
}


class WorkerFailed(Exception):
    """A worker did not become ready; ``exit`` says how it ended, if it did."""

    def __init__(self, message: str, *, hint: str = "", exit: Exit | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit = exit


class RunnerEventHandler:
    """Receives the reports of a runner except exits (see `Runner.wait_for_exit`), and ignores them by default."""

    def expired(self, placement: Placement) -> None:
        """Handle that the worker has served its `max_requests` and should be replaced."""

    def idle_changed(self, placement: Placement, idle: bool) -> None:
        """Handle that the worker is idle: it had no traffic for the time set by `watch_idleness`.

        Called with False when it has traffic again.
        """

    def closing(self) -> None:
        """Handle that the program closes this runner: its workers end, and are not replaced."""

    def output_lost(self, name: str, count: int, path: str, reason: str) -> None:
        """Handle that `count` bytes of the server's output could not be written to `path`."""

    def add_up_counts(self, server: str, worker: str, counts: Counts) -> None:
        """Handle the final counts of a worker that has ended; `worker` is a name that no other worker gets."""


class Runner(Protocol):
    """Creates and ends the workers of servers. Used from one event loop, which no method may block.

    `events`, which gets the runner's reports, is set before the first server is opened. `in_this_process`: workers are
    tasks of this process. Otherwise `usages` measures their memory and processor time.
    """

    events: RunnerEventHandler
    in_this_process: bool
    usages: ProcessUsages

    async def open(self, server: ServerConfig, beside: Sequence[str] = ()) -> tuple[str, ...]:
        """Open the server's listeners that are not open yet; returns their addresses.

        `beside` are the keys of open listeners at overlapping addresses, which keep their connections until a worker
        accepts from the new ones, or `close` is called for all of them.

        Raises ServerError, which names the holder of an address in use, if known.
        """

    def change_socket_access(self, server: ServerConfig) -> None:
        """Give the file of the server's open Unix socket its configured mode and owner. Raises ServerError.

        Open and waiting connections stay. No effect for other addresses.
        """

    def close_unneeded(self, server: ServerConfig) -> tuple[str, ...]:
        """Close open listeners with the server's key that its address does not need; returns the addresses that stay.

        `:8080` has the key of `0.0.0.0:8080`, and needs a listener for IPv6, too.
        """

    async def close(self, key: str) -> None:
        """Close the listeners of the server with this key; returns when they are closed. Ignores an unknown key."""

    def arm(self, server: ServerConfig, on_request: Callable[[], None]) -> None:
        """Watch the open listener of a server without workers; `on_request` is called once, at the first request.

        A connection on which no data is sent is not a request. Workers that are started later get the listener and the
        connections.
        """

    def disarm(self, key: str) -> None:
        """Stop watching the listener for a request. Workers that start later get the listener and its connections."""

    def close_waiting(self, key: str) -> None:
        """Close the connections that were accepted for the server, but not taken by a worker."""

    def close_arriving(self, server: ServerConfig) -> None:
        """Close each connection that arrives at the server's inherited socket, until `open` is called for the server.

        Closing our listener does not refuse connections: the process that opened the socket holds it.
        """

    async def begin_hook(self, server: ServerConfig, hook: str) -> Placement:
        """Start the command with this name in the server's `hooks`; it is watched and stopped like a worker.

        Its output goes to the same place as the workers' output. Raises ServerError or WorkerFailed.
        """

    async def preload_application(self, server: ServerConfig, since: float) -> str:
        """Import the application of a `preload` server, before `place` creates its workers.

        Returns "", or the reason why the application cannot be preloaded. An import that began before the monotonic
        time `since` is not used for later workers: its code may be outdated. Raises ServerError or WorkerFailed.
        """

    async def check_startable(self, server: ServerConfig) -> None:
        """Check whether a worker of the server could be started now, as far as possible without starting one.

        Raises ServerError or WorkerFailed with the obstacle.
        """

    async def place(
        self, server: ServerConfig, generation: int, index: int, *, resting: bool = False
    ) -> Placement:
        """Create a worker, without waiting for it to become ready. Raises ServerError or WorkerFailed.

        With `resting`, it accepts no connections until `set_accepting` is called. No effect for a command.
        """

    async def wait_for_begin_or_exit(self, placement: Placement) -> None:
        """Wait until the worker begins to load its application (others may have to load first) or has ended."""

    async def wait_until_ready(self, placement: Placement) -> None:
        """Wait until the worker is ready. Raises WorkerFailed, with the reason, if it ends or gives up before.

        A worker may have ended, and `wait_for_exit` returned, even before this is called.
        """

    async def begin_drain(self, placement: Placement, *, replaced: bool = True) -> None:
        """Stop the worker from accepting; return when that is done, or after drain_timeout. `replaced`: see `drain`.

        A worker that has not begun to accept ends instead.
        """

    async def drain(self, placement: Placement, *, replaced: bool = True) -> None:
        """Stop the worker from accepting; return when its connections are closed, or after drain_timeout.

        `replaced`: another worker of the server takes over idle connections; otherwise they are closed.
        """

    async def set_in_rotation(self, placement: Placement, in_rotation: bool) -> None:
        """Put the worker into rotation or, if `in_rotation` is False, take it out.

        Out of rotation, it closes each connection after the next response.
        """

    async def reload_tls(self, placement: Placement, server: ServerConfig) -> None:
        """Use the server's current certificate files for new handshakes; open connections are kept.

        Raises ServerError for a file that cannot be read.
        """

    async def set_accepting(self, placement: Placement, accepting: bool) -> None:
        """Let the worker accept connections or, with False, leave them to the server's other workers where possible.

        A worker of a server with a startup or readiness probe accepts nothing until this is called.
        """

    async def connect_for_probe(
        self, placement: Placement, kind: str, plain: bool, *, exact: bool = False
    ) -> socket.socket:
        """A non-blocking connection to this worker for a probe, not counted as traffic; the caller closes it.

        With `kind` "http" the application answers, with "echo" poolctl's code in the worker. `plain`: without TLS. If
        workers share a listener, any of them may answer. With `exact`, the call waits, without a time limit, until this
        worker has accepted the connection. Raises OSError.
        """

    def watch_idleness(self, placement: Placement, seconds: float) -> None:
        """Call RunnerEventHandler.idle_changed whenever the worker has had no traffic for `seconds`; 0 ends this."""

    def counts(self, placement: Placement) -> Counts | None:
        """The worker's counts of requests, connections and latencies so far (see poolctl.worker.tally).

        None if it does not count, or has ended. Does not block.
        """

    async def stacks(self, worker: str, seconds: float) -> WorkerStacks | None:
        """The stacks of the worker with this id, which continues to run. None `in_this_process`.

        If it did not answer in time, the report says so.
        """

    async def logs(self, name: str, lines: int, since: float = 0.0, worker: str = "") -> list[str]:
        """The last lines that the server wrote since a time (seconds since the epoch), oldest first.

        With the id of a `worker` that has just exited, only its lines, if they are still known. Empty
        `in_this_process`. May take time; the caller waits for LOGS_SECONDS at most.
        """

    async def stop(self, placement: Placement, timeout_seconds: float, *, replaced: bool = False) -> Exit:
        """Ask the worker to end, kill it after the timeout, and return its exit.

        Raises TimeoutError if it does not end even when killed. `replaced`: a replacement takes over its connections if
        possible.
        """

    async def wait_for_exit(self, placement: Placement) -> Exit:
        """Wait until the worker has ended for any reason; returns its exit."""

    async def aclose(self) -> None:
        """End every worker and close every listener of this runner."""
