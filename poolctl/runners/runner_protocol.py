"""The interface through which core, supervisor and gateway use a runner, which creates and ends workers.

A worker need not be a process of this machine: a placement describes in words where it runs, and has a pid only if
there is one. Everything beyond serving is optional (see Capabilities). Standard library only.
"""

from __future__ import annotations

import math
import signal
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from poolctl.config import ServerConfig
    from poolctl.json_form import Table
    from poolctl.worker.tally import Counts

    from .process_link import HasDescriptor
    from .stack_report import Stacks


# More concurrent imports would only wait for each other.
IMPORTS_PER_CPU = 2

# Figures of memory and processor time are measured again after this time.
USAGE_SECONDS = 8.0

# The values of a pool's context for scope["state"], set around `place`. Another process gets only JSON values.
app_state: ContextVar[Mapping[str, object]] = ContextVar("poolctl_app_state", default=MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Placement:
    """One created worker: its server, generation and index, and where it runs."""

    id: str
    server: str
    generation: int
    index: int
    where: str
    pid: int | None = None
    certificate_ends: float | None = None  # when its certificate ends, in seconds since the epoch

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
        return cls(signal=number, message=f"killed by {name}")


class WorkerFailed(Exception):
    """A worker did not become ready; ``exit`` says how it ended, if it did."""

    def __init__(self, message: str, *, hint: str = "", exit: Exit | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit = exit

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), hint=self.hint, exit=self.exit), (self.message,)


class SleepCapability(Protocol):
    """Optional ability: a server can sleep, that is, have no workers until a request wakes it."""

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

    def watch_idleness(self, placement: Placement, seconds: float) -> None:
        """Call RunnerEventHandler.idle_changed whenever the worker has had no traffic for `seconds`; 0 ends this."""


class Heartbeats(Protocol):
    """Optional ability: a worker answers requests for a heartbeat while its event loop runs. No method blocks."""

    def request_beat(self, placement: Placement, asked_ns: int) -> bool:
        """Request a heartbeat from a worker at the time `asked_ns`. Returns False if it cannot be asked now."""

    def last_beat_ns(self, placement: Placement) -> int:
        """The `asked_ns` of the heartbeat that the worker answered last; 0 if it does not answer heartbeats (yet)."""

    def idle_since_answer(self, placement: Placement) -> bool:
        """Whether the worker has only waited in its event loop since its last heartbeat; False if that is unknown."""


class Counters(Protocol):
    """Optional ability: counts of requests, connections and latencies of workers (see poolctl.worker.tally)."""

    # Called for each worker that has ended, with a unique name, its server's name and its final counts.
    add_up: Callable[[str, str, Counts], None] | None

    def counts(self, placement: Placement) -> Counts | None:
        """The worker's counts so far; None if it does not count, or has ended. Does not block."""

    @property
    def unsaved_workers(self) -> list[str]:
        """The names of ended workers whose counts are not saved yet; the next supervisor reports them again."""

    def discard_saved_counts(self) -> None:
        """Tell the runner that all counts passed to `add_up` so far are saved, so that it can drop them."""


class Backlogs(Protocol):
    """Optional ability: the number of connections that no worker has accepted yet."""

    def queued_connections(self, server: ServerConfig) -> int:
        """The number of connections in listen backlogs, or handed over but not yet taken by a worker. Never blocks."""


class Usage(NamedTuple):
    """What a worker uses of memory and processor, with all of its processes; None for a figure that is unknown.

    `memory_bytes` is PSS: shared pages are divided among the processes that share them. `cpu_seconds` is the processor
    time since its start, measured at the monotonic time `measured_at`, and `cpu_percent` the recent share of a core.
    """

    memory_bytes: int | None = None
    cpu_seconds: float | None = None
    cpu_percent: float | None = None
    measured_at: float = -math.inf


class Usages(Protocol):
    """Optional ability: the memory and processor time of workers, by their pids. None for a pid is ignored."""

    def of(self, pid: int | None) -> Usage:
        """The newest measured figures of a worker; all are None if it was not measured. Does not block."""

    async def measure(
        self, pids: Iterable[int | None], *, memory: bool = True, max_age_seconds: float = USAGE_SECONDS
    ) -> None:
        """Return when no figure of these workers is older than `max_age_seconds`; measure them if necessary.

        Without `memory`, only processor time, which costs much less. If the kernel does not answer, returns after some
        seconds without having measured.
        """

    def measure_now(self, pids: Iterable[int | None]) -> None:
        """Do the same as `measure` with its defaults, but block meanwhile. Called from any thread."""


class Logs(Protocol):
    """Optional ability: the output of workers, for reports of failures."""

    async def logs(self, name: str, lines: int, since: float = 0.0) -> list[str]:
        """The last lines that the server wrote since a time (seconds since the epoch), oldest first.

        May take time; the caller waits for LOGS_SECONDS at most.
        """


class Hooks(Protocol):
    """Optional ability: hooks, commands that run before a server's first worker starts or after its last one ends."""

    async def begin_hook(self, server: ServerConfig, hook: str) -> Placement:
        """Start the command with this name in the server's `hooks`; it is watched and stopped like a worker.

        Its output goes to the same place as the workers' output. Raises ServerError or WorkerFailed.
        """


class LogReopenCapability(Protocol):
    """Optional ability of a runner: workers' output is in files of this machine, which `poolctl logs` reads."""

    async def reopen_logs(self) -> None:
        """Reopen the log files. On return, files that were moved away are no longer written to."""


@dataclass(frozen=True, slots=True)
class AdoptedWorker:
    """A worker that a previous supervisor started, with the state that the worker has reported."""

    placement: Placement
    server: ServerConfig
    ready_at: float | None = None  # on the system's monotonic clock
    leaving: bool = False  # it was asked to drain or to stop
    idle: bool = False
    resting: str = ""  # why it does not accept: "new" (never ordered to) or "told" (ordered not to)
    expired: bool = False  # it has served its `max_requests`


@dataclass(frozen=True, slots=True)
class AdoptionResult:
    """The processes and listeners taken over from an earlier supervisor.

    `hooks` has an item for each server whose hook is running: the name of the hook, and the placement of its process.
    `endpoints` maps the key of a server to the addresses of its open listeners.
    """

    workers: Sequence[AdoptedWorker] = ()
    hooks: Mapping[str, tuple[str, Placement]] = field(default_factory=dict)
    endpoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Takeover(Protocol):
    """Optional ability: workers outlive their supervisor, as children of the pool's keeper."""

    async def adopt_workers_and_end_others(
        self, servers: Mapping[str, ServerConfig], placed: Mapping[str, ServerConfig] = MappingProxyType({})
    ) -> AdoptionResult:
        """Adopt the workers and listeners of these servers, and end all other workers that the keeper holds.

        `placed` are the configurations, by worker id, of workers whose configuration differs from their server's.
        Called once, before a listener is opened or a worker is started.
        """

    async def rescue_orphans_and_check_outdated(
        self, servers: Mapping[str, ServerConfig], *, late: bool = False
    ) -> dict[str, bool]:
        """Put orphans, workers whose keeper has died, under this pool's keeper. Stop those of unknown servers.

        This supervisor's call of `adopt` then adopts the orphans. Set `late` if that call has already been made: the
        next supervisor adopts the orphans instead. Returns, by name of each server with orphans, whether one of its
        orphans has an outdated configuration.
        """

    def handle_exit_report(self, report: Table) -> None:
        """Handle the keeper's report that a child has exited, or that the rest of its process group has."""

    async def end_left_groups(self) -> None:
        """End the processes that programs have left behind in their process groups, each within its stop_timeout."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The optional abilities of a runner; an ability that is missing is None.

    Without `sleep`, a server with `scale.min = 0` always has workers. Without `takeover`, workers do not survive
    their supervisor. A runner without pids creates placements without a pid.
    """

    sleep: SleepCapability | None = None
    heartbeats: Heartbeats | None = None
    stacks: Stacks | None = None
    counters: Counters | None = None
    backlogs: Backlogs | None = None
    usages: Usages | None = None
    logs: Logs | None = None
    hooks: Hooks | None = None
    log_files: LogReopenCapability | None = None
    takeover: Takeover | None = None
    routing: Routing | None = None


class RunnerEventHandler:
    """Receives the reports of a runner except exits (see `Runner.wait_for_exit`), and ignores them by default."""

    def expired(self, placement: Placement) -> None:
        """Handle that the worker has served its `max_requests` and should be replaced."""

    def idle_changed(self, placement: Placement, idle: bool) -> None:
        """Handle that the worker is idle: it had no traffic for the time set by `watch_idleness`.

        Called with False when it has traffic again.
        """

    def closing(self) -> None:
        """Handle that the runner is being closed by the program that made it: its workers end, and are not replaced."""

    def output_lost(self, name: str, count: int, path: str, reason: str) -> None:
        """Handle that `count` bytes of the server's output could not be written to `path`."""

    def record_impossible_counts_event(self, server: str, worker: str, reason: str) -> None:
        """Handle impossible counts of a worker, whose further counts are ignored. Called once per worker."""


class Runner(Protocol):
    """Creates and ends the workers of servers. Used from one event loop, which no method may block.

    `events`, which gets the runner's reports, is set before the first server is opened.
    """

    events: RunnerEventHandler

    @property
    def capabilities(self) -> Capabilities:
        """The optional abilities; the same object on each access."""

    async def open(self, server: ServerConfig) -> tuple[str, ...]:
        """Open the server's listeners, unless they are open; returns their addresses.

        Raises ServerError, which names the holder of an address in use, if known.
        """

    def change_socket_access(self, server: ServerConfig) -> None:
        """Give the file of the server's open Unix socket its configured mode and owner. Raises ServerError.

        Open and waiting connections stay. No effect for other addresses.
        """

    async def close(self, key: str) -> None:
        """Close the listeners of the server with this key; returns when they are closed. Ignores an unknown key."""

    async def preload_application(self, server: ServerConfig, since: float) -> str:
        """Import the application of a `preload` server, before `place` creates its workers.

        Returns "", or the reason why the application cannot be preloaded. An import that began before the monotonic
        time `since` is not used for later workers: its code may be outdated. Raises ServerError or WorkerFailed.
        """

    async def check_startable(self, server: ServerConfig) -> None:
        """Check whether a worker of the server could be started now, as far as possible without starting one.

        Raises ServerError or WorkerFailed with the obstacle.
        """

    async def place(self, server: ServerConfig, generation: int, index: int) -> Placement:
        """Create a worker, without waiting for it to become ready. Raises ServerError or WorkerFailed."""

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

    def force_certificate(self, name: str, generation: int) -> None:
        """Give workers of this generation of server `name` the certificate in its files, even if it has expired.

        By default, an expired certificate is not used while the previous certificate is still valid.
        """

    async def set_accepting(self, placement: Placement, accepting: bool) -> None:
        """Let the worker accept connections or, with False, leave them to the server's other workers where possible.

        A worker of a server with a startup or readiness probe accepts nothing until this is called.
        """

    async def connect_for_probe(
        self, placement: Placement, kind: str, plain: bool, *, own: bool = False
    ) -> socket.socket:
        """A non-blocking connection to this worker for a probe, not counted as traffic; the caller closes it.

        With `kind` "http" the application answers, with "echo" poolctl's code in the worker. `plain`: without TLS. If
        workers share a listener, any of them may answer; with `own`, this one has accepted the connection, for which
        the call may wait without a time limit. Raises OSError.
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


@dataclass(frozen=True, slots=True)
class WorkerRouteTables:
    """The route tables for workers, and the socket through which workers return connections to the gateway.

    `tables` maps server names to in-memory files (see `route_table`); the entry "" is for servers that no longer have a
    route. The publisher closes old files after publishing new ones. A worker sends a connection through `give_back` if
    the connection's next request is for another server. A proxied request names its route, and a worker trusts the name
    only if it is authenticated with a secret key: the key of the worker's server in `context_keys`.
    """

    generation: int
    tables: Mapping[str, HasDescriptor]
    give_back: socket.socket
    context_keys: Mapping[str, str] = field(default_factory=dict)


class Gateway(Protocol):
    """The gateway as seen by a runner: it passes accepted connections to workers of servers that have a route."""

    def use_passing_socket(self, server: str, give: socket.socket) -> None:
        """Let the gateway send the server's connections to its workers through the socket `give`. Repeatable."""

    async def withdraw_passing_socket(self, server: str, give: socket.socket) -> None:
        """Have the gateway stop using the socket `give`; return when it has, or after a time limit."""

    async def announce_workers_exit(self, server: str) -> None:
        """Tell the gateway that workers of the server will exit; return when it has confirmed, or after a time limit.

        Returns at once if other workers take over the waiting connections.
        """


class Routing(Protocol):
    """The interface by which a gateway tells a runner which servers have routes, and the workers' route tables."""

    def publish(
        self, servers: Collection[ServerConfig], routes: WorkerRouteTables | None, gateway: Gateway
    ) -> None:
        """Send the workers of these servers their route tables. `routes` is None if the gateway has ended.

        Workers started or adopted later get their table too, and workers of servers that no longer have a route are
        updated. The gateway is given a socket for each server, to pass connections to its workers (see
        Gateway.use_passing_socket). A server whose listeners are not open yet gets its socket when they are opened.
        Does not block.
        """

    def set_releasing_servers(self, servers: Collection[str]) -> None:
        """Set the servers whose workers return each connection to the gateway before the connection's next request.

        Workers of all other servers keep their connections. The gateway must not pass connections to the given servers.
        Does not block; `list_unconfirmed_servers_after` waits for the workers.
        """

    def return_queued_connections(self, servers: Collection[str]) -> None:
        """Give the gateway back all connections that wait for a worker of the named servers. Does not block."""

    async def list_unconfirmed_servers_after(self, limit_seconds: float) -> list[str]:
        """Wait until all workers have confirmed their latest routes; returns the servers whose workers have not."""
