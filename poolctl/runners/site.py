"""What a supervisor gives to the runner that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .link import KeeperLink
from .protocol import RunnerEvents


@dataclass(frozen=True, slots=True)
class RunnerSite:
    """The pool that a runner works for. `open_files` are the soft and the hard limit of its processes.

    `directory` is that of the pool's runtime files. `environments` holds, by server, the variables that replace the
    pool's own (`restart --env`); it changes while the pool runs.
    """

    keeper: KeeperLink
    keeper_pid: int
    open_files: tuple[int, int]
    directory: str
    logs_directory: str
    environments: Mapping[str, Mapping[str, str]]
    events: RunnerEvents
