"""The desired state of a server: one value, and the table of allowed changes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Desired(StrEnum):
    """`wanted`: commands want it to run, whether it does or not. `rests`: no worker of it should run now."""

    wanted: bool
    rests: bool

    def __new__(cls, word: str, wanted: bool = False, rests: bool = True) -> Desired:
        """The case with its properties; or the case for its value."""
        case = str.__new__(cls, word)
        case._value_, case.wanted, case.rests = word, wanted, rests
        return case

    # Not started yet, or stopped because it was disabled: it starts when it is enabled.
    IDLE = "idle", False, True
    # By a command, and stays so when it is enabled.
    STOPPED = "stopped", False, True
    RUN = "run", True, False
    # It is started again after a pause; with REFUSING the pause is so long that the listener is closed.
    BACKOFF = "backoff", True, False
    REFUSING = "refusing", True, False
    # It ended by itself with 0, and is not started again.
    COMPLETED = "completed", True, True
    # Given up until a command starts it.
    FAILED = "failed", True, True
    # It leaves the pool, and is forgotten when its last worker has ended.
    REMOVED = "removed", False, True


IN_BACKOFF = (Desired.BACKOFF, Desired.REFUSING)

_ORDERED = {
    Desired.IDLE,
    Desired.STOPPED,
    Desired.RUN,
    Desired.REMOVED,
}  # what commands may want of any server
_ENDED = {Desired.COMPLETED, Desired.FAILED}
FOLLOWS = MappingProxyType(
    {
        Desired.IDLE: _ORDERED,
        Desired.STOPPED: _ORDERED,
        Desired.RUN: _ORDERED | _ENDED | {Desired.BACKOFF},
        Desired.BACKOFF: _ORDERED | _ENDED | {Desired.BACKOFF, Desired.REFUSING},
        Desired.REFUSING: _ORDERED | _ENDED | {Desired.BACKOFF},
        # Another worker of it may still fail.
        Desired.COMPLETED: _ORDERED | _ENDED,
        Desired.FAILED: _ORDERED | {Desired.FAILED},
        # A server of that name is added again.
        Desired.REMOVED: {Desired.REMOVED, Desired.IDLE},
    }
)


class ImpossibleChange(Exception):
    """The desired state cannot change in this way."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """Live changes, which override the configuration until a reload returns to it."""

    workers: int | None = None
    disabled: bool | None = None
    out: bool = False  # out of rotation


NO_OVERRIDES = Overrides()
