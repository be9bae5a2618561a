"""Selects lines of a log by time, level and text.

The level is read from the line itself: JSON, or one of the usual text formats of logging libraries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from .log_line import LogLine, parse_record

LEVELS = ("trace", "debug", "info", "warning", "error", "critical")
# The usual words: in full, and as loggers abbreviate them after a time.
_FULL_WORDS = {level: level for level in LEVELS} | {
    "warn": "warning",
    "err": "error",
    "severe": "error",
    "notice": "info",
    **dict.fromkeys(("fatal", "crit", "alert", "emerg", "emergency", "panic"), "critical"),
}
_ABBREVIATIONS = {
    **dict.fromkeys(("trc", "trac", "trce", "vrb", "silly"), "trace"),
    **dict.fromkeys(("dbg", "debu", "dbug", "verbose", "fine"), "debug"),
    **dict.fromkeys(("inf", "information", "note", "system", "log"), "info"),
    "wrn": "warning",
    "erro": "error",
    **dict.fromkeys(("ftl", "fata", "pnc", "pani", "dpanic"), "critical"),
}
# Levels of single tools: characters (klog, Tornado, Redis, sd-daemon(3)), and words of npm, .NET and PHP.
_RARE = {
    **dict.fromkeys((*".-D7", "trce"), "debug"),
    **dict.fromkeys("*I65", "info"),
    **dict.fromkeys("#W4", "warning"),
    **dict.fromkeys(("E", "3", "fail", "err!"), "error"),
    **dict.fromkeys("CF210", "critical"),
    "fatal error": "critical",
    "parse error": "critical",
    "recoverable fatal error": "error",
    "deprecated": "warning",
}
_LEVELS_BY_WORD = _ABBREVIATIONS | _FULL_WORDS
_PREFIXES = {word.upper() for word in _FULL_WORDS}
# klog's "E1129 04:35:03.123456    7 cart.go:3] …", Tornado's "[E 261129 04:35:03 web:7] …", Redis' "7:M 29 Nov 2026
# 04:35:03.123 # …", sd-daemon's "<3>…", logrus' "ERRO[0000] …", npm's "npm ERR! …", .NET's "fail: Shop.Cart[0]",
# "PHP Fatal error:  …"
_RARE_FORMS = re.compile(
    r"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ \S+:\d+\]"
    r"|\[([DIWEC]) [\d-]{6,10} \d\d:\d\d:\d\d"
    r"|\d+:[MSCX] \d\d \w{3} (?:\d{4} )?\d\d:\d\d:\d\d\.\d+ ([.*#-]) "
    r"|<([0-7])>"
    r"|(INFO|WARN|ERRO|DEBU|TRAC|FATA|PANI)\[\d{4}\] "
    r"|npm (ERR!|error|WARN|warn|notice) "
    r"|(fail|dbug|trce): \S+\[\d+\]"
    r"|(?:\[[^\]]*\] )?PHP (Fatal error|Parse error|Recoverable fatal error|Warning|Notice|Deprecated):"
)
_DATE = (
    r"(?:\d{4}[-/.]\d\d[-/.]\d\d[T ]|\d{1,2}[-/ ]\w{3}[-/ ]\d{4}[: ]|(?:\w{3} )?\w{3} +\d{1,2},? (?:\d{4} )?)"
)
_CLOCK = r"\d{1,2}:\d\d(?::\d\d(?:[.,]\d+)?)? ?(?:Z|[AP]M|UTC|[+-]\d\d:?\d\d)?"
_TIME = rf"(?:[A-Z], )?\[?{_DATE}?{_CLOCK}\]?"
_GROUP = r"\[[^\]]*\]|\{[^}]*\}|\([^)]*\)|<[^>]*>"
_AFTER_TIME = re.compile(rf"{_TIME}[\s|:-]*\[?\s*")
_TIME_OR_GROUP = re.compile(rf"{_TIME}|(?:[A-Z], )?(?:{_GROUP})")
_SEPARATE_GROUP = re.compile(rf"(?<!\S)(?:{_GROUP})(?!\S)")
_BEFORE_BRACKET = re.compile(rf"\[[^\[\]]*\]|{_DATE}?{_CLOCK}|[\s\d|-]")
_AFTER_NAME = re.compile(r"[\w.-]+\s+(?:[-|]+\s+|\[\s*)")
_MEMBERS = re.compile(r'(?:[\w.@-]+=(?:"[^"]*"|[^\s"]*)\s+)*(?:level|lvl|severity)="?')
# The level is looked for in this many characters; the rest of the line is the message.
_MAX_HEAD_LENGTH = 160
# Terminal escape sequences: colours and others (ECMA-48 §5.4), titles and other strings (§8.3.89), single functions.
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-Z\\`-~])")


def canonical_level(word: str) -> str:
    """Map a word such as "WARN" or "err" to its level in LEVELS; any other word is only put into lower case."""
    return _LEVELS_BY_WORD.get(word.lower(), word.lower())


def level_place(text: str) -> tuple[str, int, int]:
    """The level in a line of text, and the start and end of that word; ("", 0, 0) if there is none."""
    head = text[:_MAX_HEAD_LENGTH]
    if form := _RARE_FORMS.match(head):
        at = form.lastindex or 0
        return _RARE.get(form[at]) or _RARE.get(form[at].lower()) or canonical_level(form[at]), *form.span(at)
    for word in re.finditer("[A-Za-z]+", head):
        if word[0].lower() in _LEVELS_BY_WORD and _is_level(
            word[0], head[: word.start()], head[word.end() :]
        ):
            return canonical_level(word[0]), *word.span()
    return "", 0, 0


def _is_level(word: str, before: str, after: str) -> bool:
    """Whether a word stands where loggers print the level, and not in a sentence, a name or a path."""
    follows = after.lstrip()[:1]
    in_full, capitals = word.lower() in _FULL_WORDS, word.isupper()
    if len(before) <= 2 and not before.strip(" ["):  # "INFO:     …", "ERROR:root:…", "error: …", "[warn] …"
        return in_full and (follows in (":", "]") or (capitals and after[:1] in (" ", "\t", "|")))
    if before.endswith(("=", '="')):  # logfmt's "level=warn", among other members
        times = _TIME_OR_GROUP.match(before)
        return bool(_MEMBERS.fullmatch(before[times.end() :].lstrip() if times else before))
    if after[:1] not in (" ", "\t", ":", "|", "]", "/"):
        return False
    # zerolog's "4:35AM ERR …", Serilog's "[04:35:03 ERR] …", Celery's "[…: ERROR/MainProcess] …"
    if _AFTER_TIME.fullmatch(before):
        return (
            capitals
            or follows in (":", "]", "|")
            or after[0] in "\t/"
            or bool(re.search(r"[+-]\d{4} $", before))
        )
    # gunicorn's "[…] [7] [INFO] …", structlog's "… [error    ] …", Apache's "[…] [core:error] …"
    if follows == "]" and re.fullmatch(r"\[(\w+:)?", _BEFORE_BRACKET.sub("", before)):
        return True
    if not (capitals and in_full) and not (word == "LOG" and after.startswith(":  ")):
        return False
    if _AFTER_NAME.fullmatch(before):  # "shop - ERROR - …"
        return True
    if before.endswith("."):  # Monolog's "[…] shop.ERROR: …"
        return after[:1] == ":" and bool(re.fullmatch(r"\[[^\]]*\] [\w-]+\.", before))
    # "… - shop - ERROR - …", "… [main] ERROR …": in columns, where a sentence would have several plain words
    begin = _TIME_OR_GROUP.match(before)
    if begin is None or before[-1] not in " \t|[":
        return False
    columns = _SEPARATE_GROUP.sub("", before[begin.end() :])
    plain = [column for column in columns.split() if column.isalpha() and column.islower()]
    return len(plain) <= 1 and not {'"', "'"} & {*columns}


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


# Reading backwards, a line without a level waits for the earlier line that it may continue. At most this many wait,
# because output without levels would wait forever.
_MAX_WAITING = 1000
_RANKS = {level: rank for rank, level in enumerate(LEVELS)}
_TRACEBACK = "Traceback (most recent call last):"


class LineFilter:
    """Passes lines up to the time `until`, from the level `least` on, with a text that `matches` accepts.

    "" or None means no condition.

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
        self._trackers: dict[str, _LevelTracker] = {}

    def filter_backwards(self, lines: Iterable[LogLine]) -> Iterator[LogLine]:
        """Yield the lines that pass this filter, newest first. `lines` are the lines of one log, newest first."""
        waiting: list[tuple[LogLine, str]] = []
        for line in lines:
            level = self._level(line)
            waiting.append((line, level))
            begins = line.time and (level or not self._reads_levels)
            if begins or len(waiting) >= _MAX_WAITING:
                yield from self._passing_in_group_newest_first(waiting[::-1])
                waiting = []
        yield from self._passing_in_group_newest_first(waiting[::-1])

    def filter_forwards(self, lines: Iterable[LogLine]) -> list[LogLine]:
        """The lines that pass. `lines` are oldest first, and follow the lines of the previous call."""
        return [
            line
            for line in lines
            if self._passes(line, self._level(line), self._trackers.setdefault(line.name, _LevelTracker()))
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
    """Gives each line that continues another line the level of that line. The lines of one log, in order."""

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
        elif not text or text[0] in " \t":  # an indented line
            self._inside = True
        elif self._inside:
            self._inside = False  # the exception itself, the last line of a traceback
        else:
            self._level = ""
        return self._level
