"""What a load has counted: every request sent is complete or failed, and a failed one failed in one way."""

from __future__ import annotations

import dataclasses
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

KEPT_FAILURES = 1000  # the number of failures described in words; all are counted


@dataclass(frozen=True)
class Report:
    """The counts of one load. For `websocket` and `sse` a request is a whole session, and `messages` what it carried.

    `refused`: no connection. `reset`: cut by a reset. `dropped`: closed in good order without a byte of the answer.
    `truncated`: closed within the answer. `wrong`: another status, another body, or no HTTP. `unanswered`: not
    complete in time. `closed` and `idle_reset` count connections that ended with no request under way: no failures.
    """

    sent: int = 0
    complete: int = 0
    refused: int = 0
    reset: int = 0
    dropped: int = 0
    truncated: int = 0
    wrong: int = 0
    unanswered: int = 0
    closed: int = 0
    idle_reset: int = 0
    connections: int = 0
    messages: int = 0
    seconds: float = 0.0
    p50_seconds: float = 0.0
    p99_seconds: float = 0.0
    max_seconds: float = 0.0
    longest_silence_seconds: float = 0.0  # the longest time between two answers on any connections
    failures: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return self.refused + self.reset + self.dropped + self.truncated + self.wrong + self.unanswered

    @property
    def under_way(self) -> int:
        return self.sent - self.complete - self.failed

    @property
    def per_second(self) -> float:
        return self.complete / self.seconds if self.seconds else 0.0

    def __repr__(self) -> str:
        kinds = ("refused", "reset", "dropped", "truncated", "wrong", "unanswered")
        ways = ", ".join(f"{getattr(self, kind)} {kind}" for kind in kinds if getattr(self, kind))
        text = (
            f"{self.sent} sent, {self.complete} complete, {self.failed} failed{f' ({ways})' if ways else ''}, "
            f"{self.per_second:.0f}/s, p50 {1000 * self.p50_seconds:.1f} ms, p99 {1000 * self.p99_seconds:.1f} ms, "
            f"longest {1000 * self.max_seconds:.0f} ms"
        )
        return "\n  ".join([text, *self.failures])

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Tally:
    """Counts while it goes on; `report()` is what it came to so far."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(
            ("sent", "complete", "refused", "reset", "dropped", "truncated", "wrong", "unanswered",
             "closed", "idle_reset", "connections", "messages"), 0,
        )  # fmt: skip
        self.failures: list[str] = []
        self.latencies = array("d")
        self.began = self.answered = time.monotonic()
        self.silence = 0.0

    def complete(self, now: float, began: float) -> None:
        self.counts["complete"] += 1
        self.latencies.append(now - began)
        self.heard(now)

    def heard(self, now: float) -> None:
        """Something of use has arrived."""
        if now - self.answered > self.silence:
            self.silence = now - self.answered
        self.answered = now

    def fail(self, kind: str, text: str, count: int = 1) -> None:
        self.counts[kind] += count
        if len(self.failures) < KEPT_FAILURES:
            after = time.monotonic() - self.began
            self.failures.append(
                f"{time.time():.3f} (+{after:.3f} s) {kind}{f' × {count}' * (count > 1)}: {text}"
            )

    def report(self) -> Report:
        ordered = sorted(self.latencies)

        def part(share: float) -> float:
            return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0

        return Report(
            **self.counts, seconds=time.monotonic() - self.began, failures=list(self.failures),
            p50_seconds=part(0.5), p99_seconds=part(0.99), max_seconds=part(1.0),
            longest_silence_seconds=self.silence,
        )  # fmt: skip
