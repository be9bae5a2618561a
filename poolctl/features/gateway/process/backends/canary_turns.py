"""Which of the requests of a server are its canary's: at most its share of them, at any moment."""

from __future__ import annotations

from random import Random

# The share of many requests is not exact as a binary fraction.
_ROUNDING = 1e-9
_RANDOM = Random()


class CanaryTurns:
    """The turns of a canary, which begin with the server's own.

    Each turn is one of the requests at which it is due, by chance: a client that repeats a sequence of requests does
    not send the same one of them to the canary each time. So after n requests it has had its share of them, rounded
    down, or one less. A turn that is not used is lost.
    """

    def __init__(self, share: float, random: Random = _RANDOM) -> None:
        self._share = share
        self._random = random
        self._requests = self._turns = 0
        self._passed_over: int | None = None  # how many requests the turn that is due is still to wait

    def next(self) -> bool:
        """Whether the next request goes to the canary."""
        self._requests += 1
        if self._due < 1:
            return False
        if self._passed_over is None:
            self._passed_over = int(self._random.random() * int(1 / self._share + _ROUNDING))
        if self._passed_over:
            self._passed_over -= 1
            return False
        self._turns += 1
        self._passed_over = None
        return True

    def resume(self) -> None:
        """Count a request of a client that stays with the canary."""
        self._requests += 1
        self._turns += 1

    def stay(self) -> None:
        """Count a request of a client that stays with the server; at most one turn is saved up for new clients."""
        self._requests += 1
        if self._due >= 2:
            self._turns += 1

    def undo(self, *, of_canary: bool) -> None:
        """Note that a request was not sent after all; the next request takes its turn."""
        self._requests -= 1
        self._turns -= of_canary

    @property
    def _due(self) -> float:
        return self._share * self._requests - self._turns + _ROUNDING
