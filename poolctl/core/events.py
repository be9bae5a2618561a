"""Events that the core reports about servers, and their cause: a command, or a decision of the pool's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a server: of its health, or its certificate has expired."""

    kind: str
    event: str
    server: str
    bind: str
    message: str = ""
    cause: str = ""
    before: str | None = None
    after: str | None = None
    worker: str | None = None
    pid: int | None = None
    severity: str | None = None


class Recorder(Protocol):
    """Takes the core's events."""

    def emit(self, event: Event) -> None:
        """Record the event; never raises, never blocks."""
        ...


class Cause(NamedTuple):
    """A command or a decision, and its author: {"uid", "pid", "user", "command"}, None for the pool itself."""

    cause: str
    by: Mapping[str, Any] | None = None


CURRENT_CAUSE: ContextVar[Cause | None] = ContextVar("cause", default=None)
# The core decides in this context: work that begins there outlasts the command that caused it.
NO_CAUSE = Context()


@contextmanager
def caused_by(cause: str, by: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Within this block every change of a server has this cause."""
    token = CURRENT_CAUSE.set(Cause(cause, by))
    try:
        yield
    finally:
        CURRENT_CAUSE.reset(token)
