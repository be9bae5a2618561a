"""Which of a server's workers accept connections: pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

W = TypeVar("W")


class RotationState(NamedTuple):
    """One ready worker: whether it is `ko`, and whether it is out of rotation already (`resting`)."""

    ko: bool
    resting: bool


def rotation_changes(workers: Iterable[tuple[W, RotationState]]) -> list[tuple[W, bool]]:
    """The workers that change: True to accept from now on, False to leave the rotation.

    A worker that is ko leaves the accepting to the others. Where all are ko, at least one of them accepts.
    """
    ready = list(workers)
    if any(not each.ko for _, each in ready):
        return [(worker, not each.ko) for worker, each in ready if each.resting is not each.ko]
    if all(each.resting for _, each in ready):
        return [(worker, True) for worker, _ in ready]
    return []
