"""The typed answers of a supervisor's verbs, which commands print.

A verb has a subclass of `Result` if its answer has further fields. Classes of related verbs are in separate modules,
because creating a class takes a millisecond: a command imports only what it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from poolctl.control.protocol import SCHEMA
from poolctl.errors import PoolError, ServerError
from poolctl.json_form import Table, from_json
from poolctl.selection.selector import ENDED

if TYPE_CHECKING:
    from poolctl.config import ServerConfig


@dataclass(frozen=True, kw_only=True)
class Item:
    """The current state of one server, as every command prints it."""

    name: str
    bind: str
    expose: str
    state: str
    ready: bool
    health: str
    pids: tuple[int, ...]
    workers: int
    uptime_seconds: float
    restarts: int
    tags: tuple[str, ...]
    address: str | None = None  # the address of an inherited socket
    on_demand: bool | None = None  # True if started only by name or for a dependent; otherwise omitted
    ended: Table | None = None  # status, signal and time, if it ended by itself
    last_line: str | None = None  # the last output line of a server that has ended; omitted if blank
    flapping: bool | None = (
        None  # True while its workers exit soon after they become ready; otherwise omitted
    )
    kept: str | None = None  # "awake" or "asleep" while a window requires it
    kept_until: str | None = None  # ISO 8601
    next_run_at: str | None = None  # ISO 8601; only for a job with a schedule that is in force
    last_run: Table | None = (
        None  # its last run that has ended: result, started_at, ended_at, status, signal, message
    )

    @property
    def shown_state(self) -> str:
        """The state as displayed: `ended` for a stopped server that ended by itself."""
        return ENDED if self.ended else self.state

    @property
    def end_text(self) -> str:
        """How the server ended by itself, with its last line of output; "" if it has not."""
        return ended_text(self.ended["status"], self.last_line or "") if self.ended else ""

    def finish_json(self, table: Table) -> None:
        """Set `expose` to null for a program without a port."""
        if table.get("expose") == "" and self.bind.startswith("process:"):
            table["expose"] = None


def ended_text(status: int | None, last_line: str, then: str = "") -> str:
    """How a server ended by itself, then the consequence `then` and its last output line, if any."""
    last_output = f'last line: "{last_line}"' if last_line else ""
    return "; ".join(filter(None, [f"ended with status {status}", then, last_output]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorEntry:
    """One error in the result of a command: about a server, the pool, or a place in a file."""

    code: int
    error: str
    name: str = ""
    bind: str = ""
    message: str
    hint: str = ""
    file: str | None = None
    line: int | None = None
    column: int | None = None
    key: str | None = None
    found: str | None = None
    allowed: str | None = None

    @classmethod
    def of(cls, problem: ServerError) -> ErrorEntry:
        """Convert the exception `problem` to an ErrorEntry."""
        return from_json(cls, problem.to_dict())

    def to_error(self) -> ServerError:
        """Convert this ErrorEntry to a ServerError, one of the exceptions that a PoolError groups."""
        # A code up to 255 is the command's exit code, which the PoolError carries.
        code, error = (self.code, self.error) if self.code > 255 else (0, "")
        return ServerError(
            self.message, name=self.name, bind=self.bind, hint=self.hint, code=code, error=error
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The last line of a verb's answer; some verbs use a subclass with more fields.

    `PRINTED` names the fields that the command's JSON document has besides the servers and the errors.
    """

    PRINTED: ClassVar[tuple[str, ...]] = ()

    schema: int = SCHEMA
    items: tuple[Item, ...] = ()
    errors: tuple[ErrorEntry, ...] = ()
    exit_code: int = 0
    warnings: tuple[str, ...] = ()
    # Set if the supervisor exits after this answer; `keeper_pid` is the last process to exit.
    ended: bool | None = None
    keeper_pid: int | None = None
    dependents: tuple[str, ...] | None = None  # unselected servers that were also stopped or started again
    # Skipped servers: not running (stop), not disabled (enable), or, unless named, scheduled jobs and sleeping
    # on-demand servers (restart).
    unchanged: tuple[str, ...] | None = None
    without_servers: bool | None = None  # in the answer of start: the pool has routes and no server
    gateway: Table | None = None  # a GatewayStatus, if a whole pool is started, listed or measured
    changed: Table | None = None  # a ChangedFiles: the files that have changed since the pool read them


@dataclass(frozen=True, kw_only=True)
class SupervisorIdentity:
    """The identity of a supervisor and its pool.

    A `calm` supervisor takes no automatic actions. `not_served` has a message for each table ([gateway], [metrics] …)
    whose address cannot be served or whose process keeps exiting, and for [events] if its file cannot be written.
    """

    name: str
    files: tuple[str, ...]
    version: str
    protocol: int
    python: str
    supervisor_pid: int
    keeper_pid: int
    calm: bool | None = None
    not_served: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class PingResult(SupervisorIdentity):
    """The answer of `ping`.

    `build` is a digest of the supervisor's code, "" if unknown (see bootstrap.installed_build). `reading`: the first
    supervisor of the pool is still reading its files, and other commands wait.
    """

    build: str = ""
    reading: bool | None = None
    schema: int = SCHEMA
    items: tuple[Item, ...] = ()
    errors: tuple[ErrorEntry, ...] = ()
    exit_code: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnProcess:
    """A process of the pool itself, such as the keeper or a helper. `memory_bytes` is None if it cannot be read."""

    name: str
    pid: int
    memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Summary(SupervisorIdentity):
    """The pool, and the number of its servers in each state and health."""

    servers: int
    should_run: int
    ready: int
    states: dict[str, int]
    health: dict[str, int]
    processes: tuple[OwnProcess, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusResult(Result):
    """The answer of `status`."""

    PRINTED: ClassVar[tuple[str, ...]] = ("summary",)

    summary: Summary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeResult(Result):
    """The answer of `upgrade`: the pid of the replaced supervisor, 0 without one, None if it already has this build."""

    upgraded_from: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalPositionResult(Result):
    """The answer of `events`: the number of the newest event, and the journal's path."""

    seq: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChange:
    """A line of a reload's plan. `change` is a configuration_diff.Kind, such as add, remove or restart."""

    name: str
    bind: str
    change: str
    keys: tuple[str, ...] = ()
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadResult(Result):
    """The answer of `reload`: the planned `changes`, or None if the files have problems."""

    PRINTED: ClassVar[tuple[str, ...]] = ("changes",)

    changes: tuple[PlannedChange, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedFiles:
    """The files that have changed, and how many servers and tables a reload would add, remove and change.

    The numbers are None while unknown. If files are invalid, `problems` is the number of problems and `problem` the
    first one. `applied`: the command has applied the files itself, because no server ran.
    """

    files: tuple[str, ...]
    added: int | None = None
    removed: int | None = None
    changed: int | None = None
    problem: ErrorEntry | None = None
    problems: int | None = None
    applied: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProgress:
    """The present state of one server, sent while a command waits for the server."""

    name: str
    bind: str
    state: str
    ready: bool
    message: str
    done: bool  # it has reached the command's goal, or has failed


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressLine:
    """A message sent to the client before the result: a progress step, a warning, an event or a generation.

    Exactly one field is set.
    """

    progress: ServerProgress | None = None
    warning: str | None = None
    event: Table | None = None
    generation: int | None = None


def item_from_config(config: ServerConfig) -> Item:
    """The Item for a server in the files, as commands print it while no supervisor runs."""
    return Item(
        name=config.name,
        bind=config.key,
        expose=config.expose,
        state="disabled" if config.disabled else "stopped",
        ready=False,
        health="unknown",
        pids=(),
        workers=config.workers,
        uptime_seconds=0.0,
        restarts=0,
        tags=tuple(config.tags),
        on_demand=config.on_demand or None,
    )


def failure(kind: type[PoolError], message: str, hint: str = "") -> ErrorEntry:
    """The entry for an error of the pool as a whole, with the code and name of the class `kind`."""
    return ErrorEntry(code=kind.code, error=kind.error, message=message, hint=hint)


def error_entries(errors: PoolError) -> tuple[ErrorEntry, ...]:
    """An entry for each error in `errors`."""
    return tuple(from_json(ErrorEntry, error) for error in errors.to_list())
