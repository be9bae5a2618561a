"""Servers that may be without a process while nobody asks for them: pure, a part of the decision in `reconcile`.

Asleep, a server is its listener and a bell. It is woken by a request (`called`), or by what depends on it and is up
(`needed`); it falls asleep when all of its workers have had no traffic for its `scale.idle`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .decide import View


@dataclass(frozen=True, slots=True)
class Arm:
    """Watch the listener for the first request."""


@dataclass(frozen=True, slots=True)
class Disarm:
    """Leave the listener, and everybody who is connected, to the workers that come."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Drain every worker, and want none until somebody asks; what comes then is another generation."""


def asleep(view: View) -> bool:
    """Whether no worker is to be there: nobody asks for one, and none stays."""
    return view.sleepy and not view.called and not view.needed and not view.staying


def tired(view: View) -> bool:
    """Whether it is to fall asleep now: it is complete, and every worker has been without traffic for long enough."""
    return (
        view.sleepy
        and not view.needed
        and not view.out
        and {worker.index for worker in view.staying}.issuperset(range(view.count))
        and all(worker.idle and worker.generation == view.generation for worker in view.staying)
    )
