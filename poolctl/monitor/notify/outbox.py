"""The messages that wait to be sent to one receiver, and when to retry. Pure: the time is an argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from .message import Message

INITIAL_SECONDS = 1.0
MAX_DELAY_SECONDS = 300.0
JITTER = 0.2
MAX_WAITING = 100


class Outbox:
    """Messages in their order. `jitter` gives random numbers from -1 to 1; `retry_for` and times are in seconds."""

    def __init__(self, retry_for: float, jitter: Callable[[], float]) -> None:
        self._retry_for = retry_for
        self._jitter = jitter
        self._waiting: deque[tuple[Message, float]] = deque()
        self._attempts = 0
        self._not_before = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: Message, now: float) -> Message | None:
        """Queue a message; returns the oldest one, which is dropped, when too many are waiting."""
        self._waiting.append((message, now))
        if len(self._waiting) <= MAX_WAITING:
            return None
        self._attempts, self._not_before = 0, min(self._not_before, now + MAX_DELAY_SECONDS)
        return self._waiting.popleft()[0]

    def next_at(self) -> float | None:
        """When the next attempt is due; None when nothing waits."""
        return self._not_before if self._waiting else None

    def due(self, now: float) -> Message | None:
        """The message to send now."""
        return self._waiting[0][0] if self._waiting and now >= self._not_before else None

    def sent(self) -> None:
        """The first message was delivered."""
        self._waiting.popleft()
        self._attempts, self._not_before = 0, 0.0

    def failed(self, now: float, *, again: bool = True, after_seconds: float = 0.0) -> bool:
        """The attempt failed; whether there is another, not before `after_seconds`. If not, the message is dropped."""
        since = self._waiting[0][1]
        delay = min(INITIAL_SECONDS * 2.0 ** min(self._attempts, 30), MAX_DELAY_SECONDS)
        delay = max(delay * (1 + JITTER * self._jitter()), min(after_seconds, 3600.0))
        if not again or now + delay - since > self._retry_for:
            self.sent()
            return False
        self._attempts += 1
        self._not_before = now + delay
        return True

    def to_list(self) -> list[Any]:
        """What is waiting, for a successor."""
        return [[list(message), since] for message, since in self._waiting]

    def restore(self, waiting: list[Any]) -> None:
        """Continue with what a predecessor could not send."""
        for (status, severity, title, lines, time, events), since in waiting:
            message = Message(status, severity, title, tuple(lines), time, tuple(events))
            self._waiting.append((message, since))
