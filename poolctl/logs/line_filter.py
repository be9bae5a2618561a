"""Which lines of a log are wanted: by their time, by their level, and by their text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from .log_level import LEVELS, stated_level, without_control
from .log_line import LogLine

# Read backwards, lines wait for the one that they may continue; output without levels would wait for ever.
_MOST_WAITING = 1000
_TRACEBACK = "Traceback (most recent call last):"


class LineFilter:
    """Passes lines not newer than `until`, of at least the level `least`, and with a text that `matches`.

    A line without a level of its own belongs to the one before it, as those of a traceback do: indented lines, and the
    one that follows them. A traceback is at least an error. Lines of several logs are kept apart.
    """

    def __init__(
        self, *, until: str = "", least: str = "", matches: Callable[[str], bool] | None = None
    ) -> None:
        self._until = until
        self._least = LEVELS.index(least) if least else None
        self._matches = matches
        self._levels: dict[str, _Levels] = {}

    def backwards(self, lines: Iterable[LogLine]) -> Iterator[LogLine]:
        """Those of one log that pass, the newest first as in `lines`."""
        waiting: list[LogLine] = []
        for line in lines:
            waiting.append(line)
            begins = line.time and (self._least is None or stated_level(line.text))
            if begins or len(waiting) >= _MOST_WAITING:
                yield from self._of_group(waiting[::-1])
                waiting = []
        yield from self._of_group(waiting[::-1])

    def forwards(self, lines: Iterable[LogLine]) -> list[LogLine]:
        """Those that pass, oldest first as in `lines`, which follow those of the call before."""
        return [line for line in lines if self._passes(line, self._levels.setdefault(line.name, _Levels()))]

    def _of_group(self, lines: list[LogLine]) -> list[LogLine]:
        levels, time = _Levels(), ""
        for line in lines:
            time = line.time = line.time or time
        return [line for line in lines if self._passes(line, levels)][::-1]

    def _passes(self, line: LogLine, levels: _Levels) -> bool:
        if self._least is not None and levels.rank(line.text) < self._least:
            return False
        if self._until and line.time > self._until:
            return False
        return self._matches is None or self._matches(without_control(line.text))


class _Levels:
    """The levels of the lines of one log, in their order."""

    def __init__(self) -> None:
        self._rank = -1
        self._inside = False  # the line before was one in the middle of a traceback

    def rank(self, text: str) -> int:
        """The level's number in LEVELS; -1 for an unknown one."""
        word = stated_level(text)
        if word:
            self._rank, self._inside = LEVELS.index(word) if word in LEVELS else -1, False
        elif text.startswith(_TRACEBACK):
            self._rank, self._inside = max(self._rank, LEVELS.index("error")), True
        elif _is_indented(text):
            self._inside = True
        elif self._inside:
            self._inside = False  # the exception itself
        else:
            self._rank = -1
        return self._rank


def _is_indented(text: str) -> bool:
    return not text or text[0] in " \t"
