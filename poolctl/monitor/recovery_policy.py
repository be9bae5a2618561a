"""Decides what to do about unhealthy or hung workers: pure, the time is an argument."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from poolctl.config import Recovery


class Step(StrEnum):
    """The action to take now."""

    NOTHING = "nothing"
    TELL = "notify"
    RESTART = "restart"  # stop the unhealthy workers and start replacements
    REPLACE = "replace"  # start a new generation, and stop the old one once the new one is ready
    DISABLE = "disable"
    WAIT = "wait"
    GIVE_UP = "give up"  # until recoveries leave the window


class Situation(NamedTuple):
    """One server with unhealthy workers.

    `histories` holds, for each of them, the times when it or its predecessor was recovered, oldest first, in
    seconds on the clock of `now`. `jitter` is a random number from -1 to 1.
    """

    strategy: str
    histories: Sequence[Sequence[float]]
    ready: int  # ready workers, including unhealthy ones
    size: int  # the number of workers it should have
    overlaps: bool = True  # whether two generations may run at once
    under_way: bool = False  # whether a recovery is still running
    now: float = 0.0
    jitter: float = 0.0


class Decision(NamedTuple):
    """The step, the indexes of the workers it is for, and the seconds to the next decision (0: at the next change)."""

    step: Step
    chosen: Sequence[int] = ()
    again_seconds: float = 0.0


def decide(policy: Recovery, situation: Situation) -> Decision:
    """Decide the next step for the unhealthy workers.

    The last ready worker of several is never stopped: if its replacements are unhealthy too, it may still serve
    some requests.
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
    """The times within the window."""
    return [moment for moment in times if now - moment < window_seconds]


def _is_spent(policy: Recovery, situation: Situation, history: Sequence[float]) -> bool:
    return len(within(history, policy.window, situation.now)) >= policy.limit


def _pause(policy: Recovery, situation: Situation, history: Sequence[float]) -> float:
    """The seconds until the worker may be recovered; infinite if its limit never allows it."""
    recent = within(history, policy.window, situation.now)
    if len(recent) >= policy.limit:
        return max(0.001, recent[-policy.limit] + policy.window - situation.now) if policy.limit else math.inf
    if not recent:
        return 0.0
    delay = policy.backoff.delay_seconds(len(recent), situation.jitter)
    return max(0.0, recent[-1] + delay - situation.now)


def _finite(seconds: float) -> float:
    return seconds if seconds < math.inf else 0.0
