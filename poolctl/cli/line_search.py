"""A search for users' regular expressions in many lines, each bounded in time."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from poolctl.cli.outcome import UsageError
from poolctl.selection.regular_expressions import FASTER, LIMIT_SECONDS, SLOW, BadExpression, compiled


class LineSearch:
    """Whether one of the expressions is found in a text. UsageError for an invalid one.

    Within `with`, one that takes too long in a single text ends with UsageError: `re` looks for signals while it
    matches, in the main thread.
    """

    def __init__(self, option: str, expressions: Sequence[str]) -> None:
        try:
            self._searches = [compiled(expression).search for expression in expressions]
        except BadExpression as bad:
            raise UsageError(f"{option}: {bad}", hint=bad.hint) from None
        self._option = option
        self._texts = 0  # searched so far
        self._searching = False
        self._seen = -1  # how many there were at the last tick
        self._before: object = None

    def __call__(self, text: str) -> bool:
        self._texts += 1
        self._searching = True
        found = any(search(text) for search in self._searches)
        self._searching = False
        return found

    def __enter__(self) -> LineSearch:
        if self._searches and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGVTALRM, self._tick)
            # Of processor time, so that load on the machine does not count; a timer for each text would cost more.
            signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_SECONDS, LIMIT_SECONDS)
        return self

    def __exit__(self, *raised: object) -> None:
        if self._before is not None:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
            signal.signal(signal.SIGVTALRM, self._before)  # type: ignore[arg-type]
            self._before = None

    def _tick(self, number: int, frame: FrameType | None) -> None:
        if self._searching and self._seen == self._texts:
            self._too_slow()
        self._seen = self._texts

    def _too_slow(self) -> NoReturn:
        raise UsageError(f"{self._option}: {SLOW}", hint=FASTER)
