"""Whether a process still answers: it is pinged periodically, and any message within a time limit counts.

Only time in which the one who asks ran itself counts. After a pause of a container, or of the whole machine, everybody
has as much time left to answer as before.
"""

from __future__ import annotations

ASK_SECONDS = 5.0
SILENT_SECONDS = 10.0
# Until its first word it imports, which may take long on a busy machine.
FIRST_WORD_SECONDS = 60.0
# How many checks are made within the time that an answer may take.
_LOOKS = 10
_LATE_LOOKS = 2


class Pulse:
    """All times are those of one monotonic clock, in seconds. Until it has said something, an answer is awaited."""

    def __init__(
        self, now: float, ask_seconds: float = ASK_SECONDS, silent_seconds: float = SILENT_SECONDS
    ) -> None:
        self._ask_seconds = ask_seconds
        self._silent_seconds = silent_seconds
        self._look_seconds = silent_seconds / _LOOKS
        self._patience = max(FIRST_WORD_SECONDS, silent_seconds)
        self._ask_at = now
        self._awaited = True
        self._looked = now
        self.waited_seconds = 0.0  # for the answer that is awaited

    def heard(self, now: float) -> None:
        """It has said something."""
        self._awaited, self._patience = False, self._silent_seconds
        self._ask_at = now + self._ask_seconds
        self.waited_seconds = 0.0

    @property
    def due(self) -> float:
        """When to look again."""
        if not self._awaited:
            return self._ask_at
        return self._looked + min(self._look_seconds, self._patience - self.waited_seconds)

    def is_silent(self, now: float) -> bool:
        """Whether it has been asked and has not answered in time; to be called no later than `due` by who runs."""
        if not self._awaited:
            return False
        passed, self._looked = now - self._looked, now
        if passed <= 2 * self._look_seconds:
            # A longer gap means that this process did not run; the other one may not have run either.
            self.waited_seconds += min(passed, self._look_seconds)
        return self.waited_seconds >= self._patience

    @property
    def is_late(self) -> bool:
        """Whether the awaited answer is overdue."""
        return self.waited_seconds >= _LATE_LOOKS * self._look_seconds

    def should_ask(self, now: float, *, early: bool = False) -> bool:
        """Whether to ask it now; if so it counts as asked. `early`: even if it was heard recently."""
        if self._awaited or (now < self._ask_at and not early):
            return False
        self._awaited, self._looked = True, now
        return True
