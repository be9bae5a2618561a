"""Decides what to do about the unhealthy workers of a server, according to the table `recovery`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from poolctl.config import Recovery


class RecoveryStep(StrEnum):
    """The recovery action to take now."""

    NOTHING = "nothing"
    NOTIFY = "notify"
    RESTART = "restart"  # stop the unhealthy workers and start replacements
    REPLACE = "replace"  # start replacements, and stop each unhealthy worker once its replacement is ready
    DISABLE = "disable"
    WAIT = "wait"
    GIVE_UP = "give up"  # no action until earlier recoveries leave the window


class RecoverySituation(NamedTuple):
    """The state of one server with unhealthy workers, from which `decide` chooses the next action.

    `histories` holds, for each unhealthy worker, the times at which it or its predecessor was recovered, oldest first,
    in seconds on the clock of `now`. `jitter` is a random number from -1 to 1.
    """

    strategy: str
    histories: Sequence[Sequence[float]]
    ready: int  # ready workers, including unhealthy ones
    size: int  # the number of workers it should have
    overlaps: bool  # whether two generations may run at once
    under_way: bool  # whether a recovery is still running
    now: float
    jitter: float


class Decision(NamedTuple):
    """The next action, `step`, and the workers it is for: `chosen` has indexes of `RecoverySituation.histories`.

    `again_seconds` is the time until the next decision; 0 means that none is due until the situation changes.
    """

    step: RecoveryStep
    chosen: Sequence[int] = ()
    again_seconds: float = 0.0


def decide(policy: Recovery, situation: RecoverySituation) -> Decision:
    """Decide the next action for the unhealthy workers.

    A restart always leaves one ready worker of a server with several workers, even if that worker is unhealthy: it may
    still serve some requests, and its replacement may be unhealthy, too.
    """
    everyone = range(len(situation.histories))
    if not everyone or situation.strategy == "none":
        return Decision(RecoveryStep.NOTHING)
    if situation.strategy in ("notify", "disable"):
        return Decision(RecoveryStep(situation.strategy), everyone)
    if situation.under_way:
        return Decision(RecoveryStep.WAIT)
    delays = [_recovery_delay_seconds(policy, situation, history) for history in situation.histories]
    due = [index for index in everyone if delays[index] == 0]
    again = min((delay for delay in delays if 0 < delay < math.inf), default=0.0)
    if not due:
        spent = all(
            len(within(history, policy.window, situation.now)) >= policy.limit
            for history in situation.histories
        )
        return Decision(
            RecoveryStep.GIVE_UP if spent else RecoveryStep.WAIT, everyone if spent else (), again
        )
    if situation.strategy == "replace" and situation.overlaps:
        return Decision(RecoveryStep.REPLACE, due, again)
    chosen = due if situation.size == 1 else due[: max(0, situation.ready - 1)]
    return Decision(RecoveryStep.RESTART if chosen else RecoveryStep.WAIT, chosen, again)


def within(times: Sequence[float], window_seconds: float, now: float) -> list[float]:
    """The times that are less than `window_seconds` before `now`."""
    return [time for time in times if now - time < window_seconds]


def _recovery_delay_seconds(
    policy: Recovery, situation: RecoverySituation, history: Sequence[float]
) -> float:
    """Return the seconds until a worker with this `history` may be recovered: 0 means at once, and infinity never."""
    recent = within(history, policy.window, situation.now)
    if len(recent) >= policy.limit:
        return max(0.001, recent[-policy.limit] + policy.window - situation.now) if policy.limit else math.inf
    if not recent:
        return 0.0
    delay = policy.backoff.delay_seconds(len(recent), situation.jitter)
    return max(0.0, recent[-1] + delay - situation.now)
