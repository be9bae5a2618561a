"""Answers of a supervisor about rollouts."""

from __future__ import annotations

from dataclasses import dataclass

from poolctl.control.answers import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFigures:
    """The figures of one generation's workers since the rollout began; None if unknown.

    Errors are responses with a 5xx status, and responses that the application aborted. `memory_bytes` is the memory
    of the largest worker.
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
    """A rollout: `state` is starting, running, paused, promoting, promoted or withdrawn, `reason` why it ended.

    `share_asked` and `share` are from 0 to 1 and equal behind a gateway; otherwise whole workers determine `share`.
    `canary` are the figures of the
    new generation, `before` those of the other one in the same time.
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
    canary: RolloutFigures = RolloutFigures()
    before: RolloutFigures = RolloutFigures()

    @property
    def is_over(self) -> bool:
        """Whether it was promoted or withdrawn."""
        return self.state in ("promoted", "withdrawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutResult(Result):
    """The answer of `rollout` and `rollouts`."""

    items: tuple[RolloutReport, ...] = ()  # type: ignore[assignment]
