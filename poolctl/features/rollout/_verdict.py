"""A rollout as the supervisor reports it, and whether it continues, is promoted or withdrawn.

The verdict is a pure function of its conditions and measurements.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from poolctl.control.answers import Result
from poolctl.units import format_size, parse_duration, parse_size

DEFAULT_CONDITIONS = ("errors > before + 1%", "p99 > 2 × before", "memory > 1.5 × before")
ALLOWED = 'errors, p50, p99 or memory, such as "errors > 1%", "p99 > 300ms", "p99 > 2 × before", "errors > before + 1%"'
_CONDITION = re.compile(
    r"(?P<figure>\w+)\s*>\s*(?:(?P<factor>\d+(?:\.\d+)?)\s*[×x*]\s*before"
    r"|before\s*\+\s*(?P<more>[\w.%]+)|(?P<limit>[\w.%]+))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFigures:
    """The figures of one generation's workers since the rollout began; None if unknown.

    Errors are responses with a 5xx status, and responses that the application aborted. `memory_bytes` is the memory of
    the worker that uses most.
    """

    workers: int = 0
    requests: int = 0
    errors: int = 0
    latency_p50_seconds: float | None = None
    latency_p99_seconds: float | None = None
    memory_bytes: int | None = None

    @property
    def error_rate(self) -> float | None:
        """The share of requests that failed, from 0 to 1; None without requests."""
        return self.errors / self.requests if self.requests else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutReport:
    """A rollout: `state` is starting, running, paused, promoting, promoted or withdrawn.

    `reason` says why it ended, or what it waits for. `share_asked` is the requested share of the traffic, from 0 to 1,
    and `share` the actual one, which differs if no gateway splits the traffic between the workers. `canary` are the
    figures of the new generation, `before` the figures of the other workers in the same time.
    """

    name: str
    state: str
    reason: str = ""
    what: str = "code"
    generation: int = 0
    share_asked: float = 0.0
    share: float = 0.0
    for_seconds: float = 0.0
    elapsed_seconds: float = 0.0
    min_requests: int = 0
    abort_on: tuple[str, ...] = ()
    canary: GenerationFigures = GenerationFigures()
    before: GenerationFigures = GenerationFigures()

    @property
    def is_over(self) -> bool:
        """Whether the canary was promoted or withdrawn."""
        return self.state in ("promoted", "withdrawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutResult(Result):
    """The answer of `rollout` and `rollouts`."""

    items: tuple[RolloutReport, ...] = ()  # type: ignore[assignment]


class CanaryMetric(NamedTuple):
    """A figure by which canaries are judged, such as p99. `is_of_requests` is true if it is computed from requests."""

    of: Callable[[GenerationFigures], float | None]
    parse: Callable[[str], float]
    shown: Callable[[float], str]
    is_of_requests: bool


def _share(text: str) -> float:
    if not text.endswith("%"):
        raise ValueError(f"{text!r} is not a share; write it in percent, such as 1%")
    share = float(text.removesuffix("%")) / 100
    if not 0 <= share <= 1:
        raise ValueError(f"{text!r} is not a share from 0% to 100%")
    return share


def _percent(share: float) -> str:
    return f"{round(100 * share, 2):g} %"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


FIGURES = {
    "errors": CanaryMetric(lambda found: found.error_rate, _share, _percent, True),
    "p50": CanaryMetric(lambda found: found.latency_p50_seconds, parse_duration, _milliseconds, True),
    "p99": CanaryMetric(lambda found: found.latency_p99_seconds, parse_duration, _milliseconds, True),
    "memory": CanaryMetric(
        lambda found: found.memory_bytes, parse_size, lambda value: format_size(round(value)), False
    ),
}


class AbortCondition(NamedTuple):
    """A condition for withdrawing a canary: its figure exceeds `limit` + `factor` × the other workers' figure."""

    text: str
    figure: str
    factor: float
    limit: float

    def excess_reason(self, canary: GenerationFigures, before: GenerationFigures, min_requests: int) -> str:
        """Return how a canary exceeds the allowed value, or "" if it does not. `before` has other workers' figures."""
        figure = FIGURES[self.figure]
        judged = (canary, before) if self.factor else (canary,)
        if figure.is_of_requests and any(each.requests < max(1, min_requests) for each in judged):
            return ""
        value, earlier = figure.of(canary), figure.of(before)
        if value is None or (self.factor and earlier is None):
            return ""
        bound = self.limit + self.factor * (earlier or 0.0)
        if value <= bound:
            return ""
        beside = f", {figure.shown(earlier)} before" if self.factor and earlier is not None else ""
        requests = f", in {canary.requests} requests" if figure.is_of_requests else ""
        return f"{self.text}: {figure.shown(value)}{beside}{requests}"


def parse_condition(text: str) -> AbortCondition:
    """Convert text such as "p99 > 2 × before" to a Condition. Raises ValueError with the reason if it is invalid."""
    found = _CONDITION.fullmatch(text.strip())
    figure = FIGURES.get(found["figure"].lower()) if found else None
    if found is None or figure is None:
        raise ValueError(f"{text!r} is no condition: {ALLOWED}")
    factor = float(found["factor"]) if found["factor"] else 1.0 if found["more"] else 0.0
    written = found["more"] or found["limit"]
    try:
        limit = figure.parse(written) if written else 0.0
    except ValueError as wrong:
        raise ValueError(f"{text!r}: {wrong}") from None
    return AbortCondition(text.strip(), found["figure"].lower(), factor, limit)


class Verdict(Enum):
    """The decision about a canary."""

    WAIT = "wait"
    PROMOTE = "promote"
    WITHDRAW = "withdraw"


def verdict(
    conditions: Iterable[AbortCondition],
    canary: GenerationFigures,
    before: GenerationFigures,
    *,
    min_requests: int,
    is_over: bool,
) -> tuple[Verdict, str]:
    """Return the decision about a canary, and its reason, which is "" for WAIT. `is_over`: the rollout's time is up.

    A canary with fewer than `min_requests` requests is not promoted, and its errors and latency are not checked.
    Errors and latency are compared with the other workers' only if these have had `min_requests` requests, too.
    """
    for each in conditions:
        if reason := each.excess_reason(canary, before, min_requests):
            return Verdict.WITHDRAW, reason
    if not is_over or canary.requests < min_requests:
        return Verdict.WAIT, ""
    rate = _percent(canary.error_rate or 0.0)
    return Verdict.PROMOTE, f"{canary.requests} requests, {rate} errors, no condition was met"


def canaries_for(share: float, workers: int) -> int:
    """Return how many canaries, at least 1, get about `share` of the traffic if there are `workers` other workers."""
    exact = share * workers / (1 - share)
    near = max(1, int(exact)), int(exact) + 1
    return min(near, key=lambda count: abs(count / (workers + count) - share))
