"""Selects lines of a log by time, level and text.

The level is read from the line itself: JSON, or one of the usual text formats of logging libraries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from .log_line import LogLine, parse_record

LEVELS = ("trace", "debug", "info", "warning", "error", "critical")
_WORDS = {
    "warn": "warning",
    "err": "error",
    "fatal": "critical",
    "crit": "critical",
    "alert": "critical",
    "emerg": "critical",
    "emergency": "critical",
    "panic": "critical",
    "notice": "info",
    **{level: level for level in LEVELS},
}
_ANY = "|".join(_WORDS)
_PREFIXES = {word.upper() for word in _WORDS}
# Tried in this order. The first word, after a time: uvicorn's "INFO:     …", logging's "ERROR:root:…".
# In brackets: gunicorn's "[2026-11-20 08:47:34 +0000] [7] [INFO] …", nginx's "… [error] 7#0: …". As a member: logfmt's
# "level=warn". In capitals between the other columns: "… - shop - ERROR - …", loguru's "… | ERROR    | …".
_FORMS = (
    re.compile(rf"^[\d\s:.,/TZ+-]*\[?({_ANY})\b[\]:\s]", re.IGNORECASE),
    re.compile(rf"\[({_ANY})\]", re.IGNORECASE),
    re.compile(rf"\b(?:level|lvl|severity)=\"?({_ANY})\b", re.IGNORECASE),
    re.compile(rf"(?:^|[\s|])({_ANY.upper()})(?=[\s|:]|$)"),
)
# The level is looked for in this many characters; the rest of the line is the message.
_LONGEST_HEAD = 160
# Terminal escape sequences such as colours (ECMA-48 §5.4).
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def canonical_level(word: str) -> str:
    """Map a word such as "WARN" or "err" to its level in LEVELS; any other word is only put into lower case."""
    return _WORDS.get(word.lower(), word.lower())


def level_place(text: str) -> tuple[str, int, int]:
    """The level in a line of text, and the start and end of that word; ("", 0, 0) if there is none."""
    head = text[:_LONGEST_HEAD]
    for form in _FORMS:
        if found := form.search(head):
            return _WORDS[found[1].lower()], *found.span(1)
    return "", 0, 0


def stated_level(text: str) -> str:
    """The level in a line of JSON or text: one of LEVELS, or ""."""
    if text.startswith("{"):
        record = parse_record(text)
        if record is not None:
            return canonical_level(record.level)
    return level_place(without_control(text))[0]


def text_after_level(text: str) -> str:
    """The text without its level, if this comes first, as uvicorn prints it: "it failed" of "ERROR:    it failed"."""
    word, _, message = without_control(text).partition(":")
    return message.lstrip(" ") if word in _PREFIXES and message.startswith(" ") else text


def without_control(text: str) -> str:
    """The text without terminal escape sequences, such as colors."""
    return _CONTROL.sub("", text) if "\x1b" in text else text


# Read backwards, a line without a level waits for the earlier line that it may continue. This limits how many wait:
# output without any levels would wait for ever.
_MOST_WAITING = 1000
_RANKS = {level: rank for rank, level in enumerate(LEVELS)}
_TRACEBACK = "Traceback (most recent call last):"


class LineFilter:
    """Passes lines that are not newer than `until`, have at least the level `least`, and text that `matches` accepts.

    A condition that is "" or None passes every line.

    A line without a level, such as a line of a traceback, has the level of the line that it continues. A traceback is
    at least an error. With `levels` or `least`, the `level` of each line that passes is set, if it is known. Use one
    filter per log.
    """

    def __init__(
        self,
        *,
        until: str = "",
        least: str = "",
        matches: Callable[[str], bool] | None = None,
        levels: bool = False,
    ) -> None:
        self._until = until
        self._least = _RANKS.get(least, -1)
        self._matches = matches
        self._reads_levels = levels or bool(least)
        self._levels: dict[str, _LevelTracker] = {}

    def filter_backwards(self, lines: Iterable[LogLine]) -> Iterator[LogLine]:
        """Yield the lines that pass this filter, newest first. `lines` are the lines of one log, newest first."""
        waiting: list[tuple[LogLine, str]] = []
        for line in lines:
            level = self._level(line)
            waiting.append((line, level))
            begins = line.time and (level or not self._reads_levels)
            if begins or len(waiting) >= _MOST_WAITING:
                yield from self._passing_in_group_newest_first(waiting[::-1])
                waiting = []
        yield from self._passing_in_group_newest_first(waiting[::-1])

    def filter_forwards(self, lines: Iterable[LogLine]) -> list[LogLine]:
        """The lines that pass. `lines` are oldest first, and follow the lines of the previous call."""
        return [
            line
            for line in lines
            if self._passes(line, self._level(line), self._levels.setdefault(line.name, _LevelTracker()))
        ]

    def _passing_in_group_newest_first(self, lines: list[tuple[LogLine, str]]) -> list[LogLine]:
        levels, time = _LevelTracker(), ""
        for line, _ in lines:
            time = line.time = line.time or time
        return [line for line, level in lines if self._passes(line, level, levels)][::-1]

    def _level(self, line: LogLine) -> str:
        return stated_level(line.text) if self._reads_levels else ""

    def _passes(self, line: LogLine, level: str, levels: _LevelTracker) -> bool:
        if self._reads_levels:
            line.level = levels.level(line.text, level)
            if _RANKS.get(line.level, -1) < self._least:
                return False
        if self._until and line.time > self._until:
            return False
        return self._matches is None or self._matches(without_control(line.text))


class _LevelTracker:
    def __init__(self) -> None:
        self._level = ""
        self._inside = False  # the previous line was within a traceback

    def level(self, text: str, stated: str) -> str:
        """The level of the line `text`: `stated` in it, or else the level of the line it continues; "" if unknown."""
        if stated:
            self._level, self._inside = stated, False
        elif text.endswith(_TRACEBACK):  # after a margin and other words in an exception group
            self._inside = True
            if _RANKS.get(self._level, -1) < _RANKS["error"]:
                self._level = "error"
        elif _is_indented(text):
            self._inside = True
        elif self._inside:
            self._inside = False  # the line with the exception
        else:
            self._level = ""
        return self._level


def _is_indented(text: str) -> bool:
    return not text or text[0] in " \t"
