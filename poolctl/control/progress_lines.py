"""The lines of an answer that come before its result."""

from __future__ import annotations

from dataclasses import dataclass

from poolctl.json_form import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStep:
    """The present state of a server that a command waits for."""

    name: str
    bind: str
    state: str
    ready: bool
    message: str
    done: bool | None = None  # it has reached the goal of the command, or has failed


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressLine:
    """A line that comes before the result: one of these. With the notice of a rollout comes its canary's generation."""

    progress: ServerStep | None = None
    warning: str | None = None
    notice: str | None = None
    event: Table | None = None
    generation: int | None = None
