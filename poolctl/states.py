"""The states of a server and its status."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class State(StrEnum):
    """The state of a server's processes."""

    DISABLED = "disabled"
    STOPPED = "stopped"
    COMPLETED = "completed"  # a job that exited with 0
    SLEEPING = "sleeping"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


# Without a process, and not about to get one.
ENDED = (State.STOPPED, State.COMPLETED, State.DISABLED, State.FAILED)


def in_words(state: str) -> str:
    """The state in words that fit after "is"."""
    return "in backoff" if state == State.BACKOFF else state


TRANSITIONAL = frozenset({State.STARTING, State.DRAINING, State.STOPPING, State.BACKOFF})


class Status(StrEnum):
    """The result of a server's probes."""

    UNKNOWN = "unknown"
    OK = "ok"
    WARN = "warn"
    KO = "ko"

    @classmethod
    def common_or_warn(cls, statuses: Iterable[Status]) -> Status | None:
        """The common status of several workers: WARN if their known statuses differ; None without workers."""
        distinct = set(statuses)
        if len(distinct) > 1:
            distinct.discard(cls.UNKNOWN)
        return cls.WARN if len(distinct) > 1 else next(iter(distinct), None)
