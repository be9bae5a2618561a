"""Whether a process still listens: it is asked now and then, and has so long to say anything at all."""

from __future__ import annotations

ASK_SECONDS = 5.0
SILENT_SECONDS = 10.0
# Until its first word it imports, which may take long on a busy machine.
FIRST_WORD_SECONDS = 60.0


class Pulse:
    """All times are those of one monotonic clock, in seconds."""

    def __init__(
        self, now: float, ask_seconds: float = ASK_SECONDS, silent_seconds: float = SILENT_SECONDS
    ) -> None:
        self._ask_seconds = ask_seconds
        self._silent_seconds = silent_seconds
        self._asked: float | None = now
        self._patience = max(FIRST_WORD_SECONDS, silent_seconds)
        self._ask_at = 0.0

    def heard(self, now: float) -> None:
        """It has said something."""
        self._asked, self._patience = None, self._silent_seconds
        self._ask_at = now + self._ask_seconds

    def spare(self, now: float) -> None:
        """Whoever asks stood still itself: what was asked before has its whole time once more."""
        if self._asked is not None:
            self._asked = now

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
