"""Whether and when a server whose worker ended is started again: pure, the clock is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from poolctl.config import Restart
from poolctl.runners.protocol import Exit


class Next(StrEnum):
    """What becomes of the server."""

    RESTART = "restart"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, the pause before a restart, and the reason for giving up."""

    next: Next
    delay_seconds: float = 0.0
    reason: str = ""


def judge(
    policy: Restart, exit_: Exit, *, was_ready: bool, restarts: Sequence[float], now: float, jitter: float
) -> Verdict:
    """What follows an end that nobody ordered.

    `restarts` are the times of the restarts so far, `now` the time of this death (same clock), `jitter` a random number
    from -1 to 1. The first restart within the window is at once, if the worker had ever been ready.
    """
    if exit_.ok and policy.policy != "always":
        return Verdict(Next.DONE)
    if policy.policy == "no":
        return Verdict(Next.FAILED, reason=exit_.message)
    recent = [moment for moment in restarts if now - moment <= policy.window]
    if len(recent) >= policy.limit:
        reason = f"{exit_.message}; restarted {len(recent)} times within {policy.window:g} s"
        return Verdict(Next.FAILED, reason=reason)
    if not recent and was_ready:
        return Verdict(Next.RESTART)
    backoff = policy.backoff
    steps = max(0, len(recent) - 1)
    # Past this exponent the maximum is reached in any case, and a float would overflow.
    delay = min(backoff.max, backoff.initial * backoff.factor ** min(steps, 64))
    return Verdict(Next.RESTART, delay * (1 + backoff.jitter * jitter))
