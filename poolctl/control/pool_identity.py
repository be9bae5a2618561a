"""The part of answers that describes a supervisor and its pool."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class About:
    """The identity of a supervisor and its pool; `calm`: it takes no action of its own.

    `keeper_problem` is what is wrong with its keeper, `not_served` names the tables (gateway, dashboard, metrics)
    whose addresses cannot be served, or whose process keeps ending, and [events] when its file cannot be written,
    each with the reason.
    """

    name: str
    files: tuple[str, ...]
    version: str
    protocol: int
    python: str
    supervisor_pid: int
    keeper_pid: int
    calm: bool | None = None
    keeper_problem: str | None = None
    not_served: tuple[str, ...] | None = None
