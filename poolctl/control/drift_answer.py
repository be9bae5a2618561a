"""The part of an answer that says that the files differ from what the pool has read."""

from __future__ import annotations

from dataclasses import dataclass

from poolctl.control.answers import ErrorEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedFiles:
    """The files that have changed, and how many servers and tables a reload would add, remove and change.

    The numbers are None while they are not known. `problem` is the first of `problems` of files that are not valid.
    `applied`: no server ran, and the command has read the files again.
    """

    files: tuple[str, ...]
    added: int | None = None
    removed: int | None = None
    changed: int | None = None
    problem: ErrorEntry | None = None
    problems: int | None = None
    applied: bool | None = None
