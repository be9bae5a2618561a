"""Whether the supervisor still listens: it is asked now and then, and has so long to say anything at all."""

from __future__ import annotations

ASK_SECONDS = 5.0
SILENT_SECONDS = 10.0
# Until its first word it imports, which may take long on a busy machine.
FIRST_WORD_SECONDS = 60.0


class Pulse:
    """All times are those of one monotonic clock, in seconds."""

    def __init__(self, now: float) -> None:
        self._asked: float | None = now
        self._patience = FIRST_WORD_SECONDS
        self._ask_at = 0.0

    def heard(self, now: float) -> None:
        """It has said something."""
        self._asked, self._patience = None, SILENT_SECONDS
        self._ask_at = now + ASK_SECONDS

    @property
    def due(self) -> float:
        """When to look again."""
        return self._ask_at if self._asked is None else self._asked + self._patience

    def is_silent(self, now: float) -> bool:
        """Whether it has been asked and has not answered in time."""
        return self._asked is not None and now >= self._asked + self._patience

    def should_ask(self, now: float) -> bool:
        """Whether it is to be asked now; if so it counts as asked."""
        if self._asked is None and now >= self._ask_at:
            self._asked = now
            return True
        return False
