"""The words for what a server does and how it is."""

from __future__ import annotations

from enum import StrEnum


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


class Status(StrEnum):
    """What the probes of a server say."""

    UNKNOWN = "unknown"
    OK = "ok"
    WARN = "warn"
    KO = "ko"


class Field(StrEnum):
    """The field of a server that a filter looks at."""

    NAME = "name"
    BIND = "bind"
    EXPOSE = "expose"
