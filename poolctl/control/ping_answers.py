"""The answer of a supervisor to `ping`."""

from __future__ import annotations

from dataclasses import dataclass

from poolctl.control.answers import ErrorEntry, Item
from poolctl.control.pool_identity import About
from poolctl.control.protocol import SCHEMA


@dataclass(frozen=True, kw_only=True)
class PingResult(About):
    """Of `ping`; `build` is a digest of the supervisor's code, "" if unknown (see bootstrap.installed_build).

    `reading`: the first supervisor of the pool is still reading its files, and other commands wait.
    """

    build: str = ""
    reading: bool | None = None
    schema: int = SCHEMA
    items: tuple[Item, ...] = ()
    errors: tuple[ErrorEntry, ...] = ()
    exit_code: int = 0
    warnings: tuple[str, ...] = ()
