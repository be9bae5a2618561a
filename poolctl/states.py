"""The words for what a server does and how it is."""

from __future__ import annotations

from enum import StrEnum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class State(StrEnum):
    """What the processes of a server do."""

    DISABLED = "disabled"
    STOPPED = "stopped"
    SLEEPING = "sleeping"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


# On the way from one state that lasts to another.
PASSING = frozenset({State.STARTING, State.DRAINING, State.STOPPING, State.BACKOFF})


class Status(StrEnum):
    """What the probes of a server say."""

    UNKNOWN = "unknown"
    OK = "ok"
    WARN = "warn"
    KO = "ko"

    @classmethod
    def of_all(cls, found: Iterable[Status]) -> Status | None:
        """The status of several workers together: warn when they differ, of those that are known; None for none."""
        statuses = set(found)
        if len(statuses) > 1:
            statuses.discard(cls.UNKNOWN)
        return cls.WARN if len(statuses) > 1 else next(iter(statuses), None)


class Field(StrEnum):
    """The field of a server that a filter looks at."""

    NAME = "name"
    BIND = "bind"
    EXPOSE = "expose"
