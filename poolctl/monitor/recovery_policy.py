"""What to do about unhealthy or hung workers: pure, the clock is an argument."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from poolctl.config import Recovery

_MOST_STEPS = 64  # past it every delay is the longest one, and a float would overflow


class Step(StrEnum):
    """The action to take now."""

    NOTHING = "nothing"
    TELL = "notify"
    RESTART = "restart"  # stop the unhealthy workers and start others in their place
    REPLACE = "replace"  # start a new generation; the old one is stopped once that is ready
    DISABLE = "disable"
    WAIT = "wait"
    GIVE_UP = "give up"  # for as long as the window is full


class Situation(NamedTuple):
    """One server with unhealthy workers.

    `histories` holds, for each of them, when it or the worker that it replaced was recovered, oldest first; `now` is of
    the same clock, in seconds. `jitter` is a random number from -1 to 1.
    """

    strategy: str
    histories: Sequence[Sequence[float]]
    ready: int  # how many of its workers are ready, including the unhealthy ones
    size: int  # how many it should have
    overlaps: bool = True  # two generations may run at once
    under_way: bool = False  # a recovery of it is still running
    now: float = 0.0
    jitter: float = 0.0


class Decision(NamedTuple):
    """The step, which of the unhealthy workers it is for, and in how many seconds to decide again (0: at a change)."""

    step: Step
    chosen: Sequence[int] = ()
    again_seconds: float = 0.0


def decide(policy: Recovery, situation: Situation) -> Decision:
    """What to do about the unhealthy workers.

    The last ready worker of several is never stopped: if the replacements are unhealthy too, it still serves as well
    as it can.
    """
    everyone = range(len(situation.histories))
    if not everyone or situation.strategy == "none":
        return Decision(Step.NOTHING)
    if situation.strategy in ("notify", "disable"):
        return Decision(Step(situation.strategy), everyone)
    if situation.under_way:
        return Decision(Step.WAIT)
    pauses = [_pause(policy, situation, history) for history in situation.histories]
    willing = [place for place in everyone if pauses[place] == 0]
    again = min((pause for pause in pauses if pause), default=0.0)
    if not willing:
        spent = all(_is_spent(policy, situation, history) for history in situation.histories)
        return Decision(Step.GIVE_UP if spent else Step.WAIT, everyone if spent else (), _finite(again))
    if situation.strategy == "replace" and situation.overlaps:
        return Decision(Step.REPLACE, willing, _finite(again))
    chosen = willing if situation.size == 1 else willing[: max(0, situation.ready - 1)]
    return Decision(Step.RESTART if chosen else Step.WAIT, chosen, _finite(again))


def within(times: Sequence[float], window_seconds: float, now: float) -> list[float]:
    """The times that lie within the window."""
    return [moment for moment in times if now - moment < window_seconds]


def _is_spent(policy: Recovery, situation: Situation, history: Sequence[float]) -> bool:
    return len(within(history, policy.window, situation.now)) >= policy.limit


def _pause(policy: Recovery, situation: Situation, history: Sequence[float]) -> float:
    """How long until the worker may be recovered; infinite without a limit that allows it at all."""
    recent = within(history, policy.window, situation.now)
    if len(recent) >= policy.limit:
        return max(0.001, recent[-policy.limit] + policy.window - situation.now) if policy.limit else math.inf
    if not recent:
        return 0.0
    backoff = policy.backoff
    delay = min(backoff.max, backoff.initial * backoff.factor ** min(len(recent) - 1, _MOST_STEPS))
    return max(0.0, recent[-1] + delay * (1 + backoff.jitter * situation.jitter) - situation.now)


def _finite(seconds: float) -> float:
    return seconds if seconds < math.inf else 0.0
