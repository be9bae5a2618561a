"""Which of a server's workers accept connections: pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

W = TypeVar("W")


class Attending(NamedTuple):
    """How one worker that is ready is: `ko`, and whether it leaves the accepting to others already."""

    ko: bool
    resting: bool


def attendance(workers: Iterable[tuple[W, Attending]]) -> list[tuple[W, bool]]:
    """The workers that are to accept from now on (True), or to rest.

    Who is ko leaves the accepting to those that are not; while all are, somebody accepts all the same.
    """
    there = list(workers)
    if any(not each.ko for _, each in there):
        return [(worker, not each.ko) for worker, each in there if each.resting is not each.ko]
    if all(each.resting for _, each in there):
        return [(worker, True) for worker, _ in there]
    return []
