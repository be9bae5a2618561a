"""The lines of logs that a viewer wants: their level, age and text, searched within a limit of time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping

from poolctl.logs.line_filter import LEVELS, LineFilter
from poolctl.logs.log_line import LogLine, stamp
from poolctl.selection.regular_expressions import Expression

SEARCH_SECONDS = 5.0
MAX_EXPRESSION = 500


class LogSearch(LineFilter):
    """The filter of one viewer. `since` is the time of the oldest wanted line, "" for any; `selects`: by level or text.

    Reading the lines that exist ends after SEARCH_SECONDS, or `stop`; then `is_incomplete`. New lines always pass
    through. Raises BadExpression, and while lines are read SlowExpression.
    """

    def __init__(self, query: Mapping[str, str], now: float) -> None:
        level, grep, age = query.get("level", ""), query.get("grep", ""), query.get("age", "")
        matches = Expression(grep[:MAX_EXPRESSION]).is_found if grep else None
        super().__init__(least=level if level in LEVELS else "", matches=matches)
        self.selects = bool(grep) or level in LEVELS
        seconds = int(age) if age.isascii() and age.isdigit() and len(age) < 9 else 0
        self.since = stamp(now - seconds) if seconds else ""
        self.is_incomplete = False
        self.begin()

    def begin(self) -> None:
        """Start the time limit, after waiting for the searches of other viewers."""
        self._end = time.monotonic() + SEARCH_SECONDS

    def stop(self) -> None:
        """End the search at the next line."""
        self._end = 0.0

    def filter_backwards(self, lines: Iterable[LogLine]) -> Iterator[LogLine]:
        return super().filter_backwards(self._within_time(lines))

    def _within_time(self, lines: Iterable[LogLine]) -> Iterator[LogLine]:
        for line in lines:
            if time.monotonic() > self._end:
                self.is_incomplete = True
                return
            yield line
