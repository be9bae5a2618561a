"""Which lines of a log are wanted: by their time, by their level, and by their text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from .log_level import LEVELS, stated_level, without_control
from .log_line import LogLine

# Read backwards, lines wait for the one that they may continue; output without levels would wait for ever.
_MOST_WAITING = 1000
_RANKS = {level: rank for rank, level in enumerate(LEVELS)}
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
        self._least = _RANKS[least] if least else None
        self._matches = matches
        self._levels: dict[str, _Levels] = {}

    def backwards(self, lines: Iterable[LogLine]) -> Iterator[LogLine]:
        """Those of one log that pass, the newest first as in `lines`."""
        waiting: list[tuple[LogLine, str]] = []
        for line in lines:
            level = self._level(line)
            waiting.append((line, level))
            begins = line.time and (level or self._least is None)
            if begins or len(waiting) >= _MOST_WAITING:
                yield from self._of_group(waiting[::-1])
                waiting = []
        yield from self._of_group(waiting[::-1])

    def forwards(self, lines: Iterable[LogLine]) -> list[LogLine]:
        """Those that pass, oldest first as in `lines`, which follow those of the call before."""
        return [
            line
            for line in lines
            if self._passes(line, self._level(line), self._levels.setdefault(line.name, _Levels()))
        ]

    def _of_group(self, lines: list[tuple[LogLine, str]]) -> list[LogLine]:
        levels, time = _Levels(), ""
        for line, _ in lines:
            time = line.time = line.time or time
        return [line for line, level in lines if self._passes(line, level, levels)][::-1]

    def _level(self, line: LogLine) -> str:
        return "" if self._least is None else stated_level(line.text)

    def _passes(self, line: LogLine, level: str, levels: _Levels) -> bool:
        if self._least is not None and levels.rank(line.text, level) < self._least:
            return False
        if self._until and line.time > self._until:
            return False
        return self._matches is None or self._matches(without_control(line.text))


class _Levels:
    """The levels of the lines of one log, in their order."""

    def __init__(self) -> None:
        self._rank = -1
        self._inside = False  # the line before was one in the middle of a traceback

    def rank(self, text: str, level: str) -> int:
        """The number in LEVELS of a line's own level, or of the line that it continues; -1 for an unknown one."""
        if level:
            self._rank, self._inside = _RANKS.get(level, -1), False
        elif text.startswith(_TRACEBACK):
            self._rank, self._inside = max(self._rank, _RANKS["error"]), True
        elif _is_indented(text):
            self._inside = True
        elif self._inside:
            self._inside = False  # the exception itself
        else:
            self._rank = -1
        return self._rank


def _is_indented(text: str) -> bool:
    return not text or text[0] in " \t"
