"""The desired state of a server, its listener and its hooks: what decisions about it and its entry share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from poolctl.config import ServerConfig
from poolctl.json_form import Table
from poolctl.runners.runner_protocol import Placement

from .worker import Worker


class Desired(StrEnum):
    """The desired state of a server.

    `wanted`: commands want it to run, even if it has failed or completed. `wants_no_worker`: none should run now.
    """

    wanted: bool
    wants_no_worker: bool

    def __new__(cls, word: str, wanted: bool = False, wants_no_worker: bool = True) -> Desired:
        """Create a desired state with the value `word` and the properties that the class describes."""
        state = str.__new__(cls, word)
        state._value_, state.wanted, state.wants_no_worker = word, wanted, wants_no_worker
        return state

    # Not started yet, or stopped because it was disabled: it starts when it is enabled.
    IDLE = "idle", False, True
    # Stopped by a command: enabling the server does not start it.
    STOPPED = "stopped", False, True
    RUN = "run", True, False
    # Waits for its next scheduled run; during a run the state is RUN.
    SCHEDULED = "scheduled", True, True
    # Ended by itself with status 0, and is not started again.
    COMPLETED = "completed", True, True
    # Given up: only a command starts it again.
    FAILED = "failed", True, True
    # Removed from the pool, and forgotten once its last worker has ended.
    REMOVED = "removed", False, True


# The states that commands can request.
_BY_COMMAND = {Desired.IDLE, Desired.STOPPED, Desired.RUN, Desired.SCHEDULED, Desired.REMOVED}
_ENDED = {Desired.COMPLETED, Desired.FAILED}
ALLOWED_CHANGES = MappingProxyType(
    {
        Desired.IDLE: _BY_COMMAND,
        Desired.STOPPED: _BY_COMMAND,
        Desired.RUN: _BY_COMMAND | _ENDED,
        Desired.SCHEDULED: _BY_COMMAND,
        Desired.COMPLETED: _BY_COMMAND | _ENDED,
        Desired.FAILED: _BY_COMMAND | {Desired.FAILED},
        # IDLE when a server of the same name is added again.
        Desired.REMOVED: {Desired.REMOVED, Desired.IDLE},
    }
)


class ImpossibleChange(Exception):
    """The desired state cannot be changed in this way."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """Changes made by commands, which override the configuration until a reload removes them."""

    workers: int | None = None
    disabled: bool | None = None
    out: bool = False  # out of rotation


NO_OVERRIDES = Overrides()


class ListenerState(StrEnum):
    """The state of the server's listening sockets."""

    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"


class Cause(NamedTuple):
    """Why a server changes: a command or an automatic decision, and its author.

    `by` is {"uid", "pid", "user", "command"}, or None for the pool itself.
    """

    cause: str
    by: Mapping[str, object] | None = None


def persisted(default: Any = MISSING, *, factory: Any = MISSING) -> Any:
    """A field that is part of the entry's record for the next supervisor (see `record_of`)."""
    return field(default=default, default_factory=factory, metadata={"persisted": True})


def transient(default: Any = MISSING, *, factory: Any = MISSING) -> Any:
    """A field that is not part of the entry's record, because the next supervisor can derive it or does not need it."""
    return field(default=default, default_factory=factory, metadata={"persisted": False})


class StartAfterStop(NamedTuple):
    """A start that follows the stop in progress (see `Core.start`)."""

    ignore_dependencies: bool
    retries: bool


@dataclass(slots=True)
class DesiredState:
    """The desired state of a server, as set by commands and scaling triggers."""

    state: Desired = persisted(Desired.IDLE)
    overrides: Overrides = persisted(NO_OVERRIDES)
    automatic: int | None = persisted(None)  # the number of workers set by its triggers
    scaling: Table = transient(factory=dict)  # the figures of the triggers' last decision
    # The table of a server that was added live, and the directory that its paths are relative to.
    source: tuple[Mapping[str, object], str] | None = persisted(None)
    ignore_dependencies: bool = persisted(False)
    stopped_with: list[str] = persisted(factory=list)  # disabled dependencies; enabling them starts it again
    retries: bool = transient(True)  # a failed start is retried, as the restart policy says
    final: bool = transient(False)  # a worker that ends is not replaced, whatever the restart policy says
    stop_seconds: float | None = transient(None)  # the time limit given by a stop command
    queued_start: StartAfterStop | None = transient(None)
    # The values that a Python pool gives to its applications.
    app_state: Mapping[str, object] = transient(factory=dict)
    cause: Cause | None = transient(None)  # the command or decision that causes its changes

    generation: int = persisted(1)  # the generation that should serve
    newest: int = persisted(1)
    # By worker index (as text), for workers that were replaced individually: the generation of the replacement.
    renewed: dict[str, int] = persisted(factory=dict)
    restarting: int = persisted(0)  # the generation of a restart by command that is not counted yet
    # A generation that must pass a test request before it replaces the running one (see HealthChecks.prove); 0 if none.
    unproven: int = persisted(0)
    # The previous configuration, until a worker is ready with the new one. If a rollback has no old workers to return
    # to, this becomes `config` again; `fallback is config` then lasts until a worker is ready.
    fallback: ServerConfig | None = transient(None)
    # When the last command that may bring new code arrived, in monotonic seconds.
    code_since: float = persisted(0.0)

    def generation_at(self, index: int) -> int:
        """The generation of the worker that should serve with this index."""
        return self.renewed.get(str(index), self.generation)

    def is_current(self, worker: Worker) -> bool:
        """Whether the worker is of the generation that should serve with its index."""
        return worker.generation == self.generation_at(worker.index)


@dataclass(slots=True)
class ServerListener:
    """The listener of a server.

    After a change of address, previous listeners also stay open while workers are being replaced.
    """

    state: ListenerState = transient(ListenerState.CLOSED)
    bound: ServerConfig | None = transient(None)  # the configuration that it was opened with
    # Configurations of listeners that stay open for workers being replaced.
    previous_configs: list[ServerConfig] = transient(factory=list)
    releasing: list[ServerConfig] = transient(factory=list)  # previous addresses that are being closed
    returned: bool = transient(False)  # it comes back from an earlier run of the pool
    must_reopen: bool = transient(False)  # its workers must end before it can be opened again
    armed: ServerConfig | None = transient(None)  # the configuration of a listener watched for a request


@dataclass(slots=True)
class RunningHook:
    """A running command of the server's `hooks`; `placement` is None while it is being started."""

    name: str
    placement: Placement | None = None
    ends: bool = False  # the hook has been asked to end
    unstoppable: bool = False  # not even SIGKILL has ended it


@dataclass(slots=True)
class HookState:
    """The hooks of a server. A hook that is due stays due until it has run, even under another supervisor."""

    before_start_due: bool = persisted(False)  # a command has started the server
    after_stop_due: bool = persisted(False)  # a command has stopped the server
    running: RunningHook | None = transient(None)

    @property
    def cleans_up(self) -> bool:
        """Whether a hook is running, or a stop hook is due."""
        return self.after_stop_due or self.running is not None

    @property
    def awaited(self) -> bool:
        """Whether the next worker has to wait for a hook."""
        return self.before_start_due or self.cleans_up
