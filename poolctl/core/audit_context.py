"""Who ordered what is being done, for the journal: known to whatever a command does itself, and to nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any, NamedTuple


class Ordered(NamedTuple):
    """A command or a decision, and who it came from: {"uid", "pid", "user", "command"}, None for the pool itself."""

    cause: str
    by: Mapping[str, Any] | None = None


CURRENT: ContextVar[Ordered | None] = ContextVar("ordered", default=None)
# The engine decides in this context: what it begins there outlasts whoever has set it off.
NOBODYS = Context()


@contextmanager
def ordered(cause: str, by: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Within this block everything that the engine is told has this cause."""
    token = CURRENT.set(Ordered(cause, by))
    try:
        yield
    finally:
        CURRENT.reset(token)
