"""Texts that suit a program least, and how the time that it needs for them grows with their length."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any, TypeVar

T = TypeVar("T", str, bytes)

LARGE = 4096
# Texts this short take longer than that only if work doubles with each character, or grows with the third power. They
# come first, because such work on a large text would not end.
_MIN_LENGTH = {20: 0.005, 128: 0.0005}
# The ratio is measured only if a large text takes this long: a quadratic expression needs some million steps.
_QUADRATIC_SECONDS = 0.0002
# Four times the text takes linear work four times, and quadratic work sixteen times as long.
_MAX_GROWTH = 9
# The time of other guests of a machine counts as this thread's, for some milliseconds together. Few runs tell that work
# is not suspicious; what is suspicious is run so often that the shortest run of each text was undisturbed.
_SUSPICIOUS_GROWTH = 5
_FEW, _MANY = 3, 30


def grows_too_fast(work: Callable[[T], object], text_of: Callable[[int], T], *, large: int = LARGE) -> bool:
    """Whether the processor time of `work` grows faster than the length of its text `text_of(length)`, up to `large`.

    The ratio of this thread's processor times counts, the shortest of several runs: not the load of the machine.
    """
    for length, most_seconds in _MIN_LENGTH.items():
        text = text_of(length)
        if all(_seconds(work, text) > most_seconds for _ in range(_MANY)):
            return True
    text = text_of(large)
    if _seconds(work, text) < _QUADRATIC_SECONDS:
        return False
    shorter = text_of(large // 4)
    return (
        _growth(work, shorter, text, _FEW) > _SUSPICIOUS_GROWTH
        and _growth(work, shorter, text, _MANY) > _MAX_GROWTH
    )


def _growth(work: Callable[[T], object], shorter: T, longer: T, runs: int) -> float:
    seconds = [(_seconds(work, shorter), _seconds(work, longer)) for _ in range(runs)]
    # Some machines' clocks stand still for a short run.
    shortest = min((short for short, _ in seconds if short), default=math.inf)
    return min(long for _, long in seconds) / shortest


def _seconds(work: Callable[[T], object], text: T) -> float:
    begun = time.thread_time()
    work(text)
    return time.thread_time() - begun


def repeated(before: str, piece: str, after: str) -> Callable[[int], str]:
    """The function that returns `before`, repetitions of `piece` up to a length, and `after`."""
    return lambda length: before + piece * (length // len(piece)) + after


# What the beginnings and pieces of lines look like to which something in poolctl pays attention.
PIECES = (
    'File "', '  File "', "Traceback (most recent call last):", '", line 1', "/", "/lib/python3.", "/site-packages/",
    " ", "\t", " | ", "+-", "-", ":", ": ", "Error", "Error: ", "A.A", ".", "port ", "address ", " in use", "node:",
    "at ", "INFO:", "[", "] ", "[error", "level=", "|", "0", "12:00:00", "\x1b", "\x1b[", "\x1b[0", "\x1b]",
    "\x1b[0;1m", "{", '{"a":', '{"message": ', "[1,", '"', "'", "\\", "\\u0000", "://", "://a:", "@", "://a:b@",
    "HTTP/1.1", '" 200 ', "ms ", "\n", "\r", "\0", "\u2028", "é", "😀", "\ud800", "Thread 0x0 [", "Tasks 1 [", "1e",
    "${", "Infinity",
)  # fmt: skip
_BEGINNINGS = (
    "", '  File "', "  | ", "node:", "    at ", "INFO: ", '{"message": "', '{"level": ', '{"message": "", "x": ',
    "\x1b[", 'HTTP/1.1" 200',
)  # fmt: skip
_ENDS = ("x", '"}')


def printed_texts() -> Iterator[Callable[[int], str]]:
    """Texts of any length as a program may print them: nested prefixes, open quotes, runs of delimiters and escapes."""
    for before, piece, after in product(_BEGINNINGS, PIECES, _ENDS):
        yield repeated(before, piece, after)


def texts_against(pattern: re.Pattern[Any]) -> Iterator[Callable[[int], Any]]:
    """Texts of any length that an expression nearly matches, made of the pieces of the expression itself."""
    is_bytes = isinstance(pattern.pattern, bytes)
    found: set[str] = set()
    _sample(_parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE if is_bytes else pattern.flags), found)
    pieces = sorted(found - {""}, key=lambda each: (len(each), each))[:16]
    pairs = [first + second for first, second in product(pieces[:6], repeat=2) if first != second]
    units = dict.fromkeys([*pieces, " ", "\\", *pairs])
    for before, unit, after in product(dict.fromkeys(["", *pieces[:1], *pieces[-4:]]), units, ("\0", "\n\0")):
        text_of = repeated(before, unit, after)
        yield (
            (lambda length, text_of=text_of: text_of(length).encode("latin-1", "replace"))
            if is_bytes
            else text_of
        )


def _sample(items: Iterable[tuple[Any, Any]], found: set[str]) -> str:
    """A text that the parsed expression nearly matches; what each of its parts matches is added to `found`."""
    text = literal = ""
    for kind, value in items:
        if kind is _constants.LITERAL:
            text, literal = text + chr(value), literal + chr(value)
            continue
        found.update((text, literal))
        literal = ""
        if kind in (_constants.ANY, _constants.NOT_LITERAL):
            text += "a" if value != ord("a") else "b"
        elif kind is _constants.IN:
            text += _character_of(value)
        elif kind is _constants.BRANCH:
            branches = [_sample(each, found) for each in value[1]]
            found.update(text + each for each in branches)
            text += branches[0]
        elif kind is _constants.SUBPATTERN:
            text += _sample(value[3], found)
        elif kind is _constants.ATOMIC_GROUP:
            text += _sample(value, found)
        elif kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT):
            text += _sample(value[2], found) * max(value[0], 1)
        elif kind in (_constants.ASSERT, _constants.ASSERT_NOT):
            _sample(value[1], found)
    found.update((text, literal))
    return text


def _character_of(items: list[tuple[Any, Any]]) -> str:
    """A character of a set; a common one, so that it is in other sets of the expression too."""
    characters = [*"a0 A./:-=_\"'", *map(chr, range(256))]
    return next((each for each in characters if _contains(items, ord(each))), "a")


def _contains(items: list[tuple[Any, Any]], code: int) -> bool:
    negated = within = False
    for kind, value in items:
        negated |= kind is _constants.NEGATE
        if kind is _constants.LITERAL:
            within |= code == value
        elif kind is _constants.RANGE:
            within |= value[0] <= code <= value[1]
        elif kind is _constants.CATEGORY:
            within |= re.fullmatch(_CATEGORIES[value], chr(code)) is not None
    return within != negated


_CATEGORIES = {
    _constants.CATEGORY_DIGIT: r"\d", _constants.CATEGORY_NOT_DIGIT: r"\D", _constants.CATEGORY_SPACE: r"\s",
    _constants.CATEGORY_NOT_SPACE: r"\S", _constants.CATEGORY_WORD: r"\w", _constants.CATEGORY_NOT_WORD: r"\W",
}  # fmt: skip
