"""Matches users' regular expressions within a time limit; errors show the position and a fix.

The syntax is that of `re`. They are matched by the library `regex`, which ends a match after a given time, and lets
other threads run meanwhile; beyond ASCII its `\\w`, `\\s` and `\\b` differ a little from those of `re`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    P = ParamSpec("P")
    T = TypeVar("T")

_SPECIAL = frozenset(".^$*+?{}[]\\|()")
# POSIX classes: grep and Go support them; Python reads `[[:alpha:]]` as a set of the characters in it.
_CLASSES = {
    "alnum": "A-Za-z0-9", "alpha": "A-Za-z", "ascii": r"\x00-\x7f", "blank": r" \t", "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9", "graph": "!-~", "lower": "a-z", "print": " -~", "punct": r"!-/:-@\[-`{-~", "space": r"\s",
    "upper": "A-Z", "word": r"\w", "xdigit": "0-9A-Fa-f",
}  # fmt: skip
# Syntax of Go and Perl that Python lacks, by the two characters at which its parser stops.
_ELSEWHERE = {
    r"\z": r"in Python the end of the text is \Z",
    r"\p": r"Python has no \p{…}: \w is a letter, a digit or _, [^\W\d_] a letter",
    r"\P": r"Python has no \P{…}: \W is no letter, no digit and no _",
    r"\Q": r"Python has no \Q…\E: write a backslash before each special character",
    "?<": "in Python a named group is (?P<name>…)",
}
# `regex` copies a repeated item once for each required repetition, and multiplies the copies of nested repeats.
# a{1000000} would take 273 MB, with the interpreter's lock held.
_MAX_ITEMS = 20_000
# A brace that is no repetition, for which `regex` would read `a{e}` as a fuzzy match.
_LITERAL_BRACE = r"(\\N\{[^}]*\}|\\.)|\{(?!\d+(?:,\d*)?\}|,\d+\})"


# CPU time, so that load on the machine does not count; a usual expression takes microseconds.
LIMIT_SECONDS = 0.25
_TIMEOUT_FACTORS = (1, 2, 4, 8)
# Weak: a lock refers to its loop, which has to be freed when no call waits or runs.
_turns: WeakValueDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakValueDictionary()
SLOW = f"the regular expression takes more than {LIMIT_SECONDS:g} s"
FASTER = "avoid repeats within repeats, such as (a+)+, and alternatives that begin alike"


class BadExpression(ValueError):
    """An invalid expression; `hint` shows the position, `fix` a replacement if one is known."""

    def __init__(self, expression: str, problem: str, at: int | None = None, fix: str = "") -> None:
        place = "" if at is None else f" at position {at}"
        super().__init__(f"invalid regular expression {expression!r}: {problem}{place}")
        shown = f"{expression}\n{' ' * at}^" if at is not None and expression.isprintable() else ""
        self.fix = fix
        self.hint = "\n".join(part for part in (shown, fix) if part)


class SlowExpression(BadExpression):
    """The expression takes too long to match."""

    def __init__(self) -> None:
        ValueError.__init__(self, SLOW)
        self.hint = self.fix = FASTER


class Expression:
    """A compiled expression. The constructor raises BadExpression."""

    def __init__(self, expression: str) -> None:
        import re

        import regex

        check(expression)
        escaped = re.sub(_LITERAL_BRACE, lambda match: match[1] or r"\{", expression, flags=re.DOTALL)
        try:
            self._pattern = regex.compile(escaped, regex.VERSION0, cache_pattern=False)
        except RecursionError:
            raise _too_complicated(expression) from None
        except regex.error as error:
            raise BadExpression(expression, str(error)) from None

    def is_found(self, text: str, seconds: float = LIMIT_SECONDS) -> bool:
        """Whether the text contains a match. Raises SlowExpression after this CPU time of the thread."""
        end = time.thread_time() + seconds
        # A timeout of `regex` counts the CPU time of the whole process, which other threads may use up.
        for factor in _TIMEOUT_FACTORS:
            try:
                return self._pattern.search(text, timeout=factor * max(seconds, 0.0)) is not None
            except TimeoutError:
                if time.thread_time() >= end:
                    break
        raise SlowExpression

    def is_in_any(self, texts: Iterable[str]) -> bool:
        """Whether one of the texts contains a match. Raises SlowExpression if the search in all takes too long."""
        end = time.thread_time() + LIMIT_SECONDS
        return any(self.is_found(text, end - time.thread_time()) for text in texts)


def check(expression: str) -> None:
    """Raise BadExpression if the expression is invalid."""
    import re
    import warnings
    from re import _parser  # type: ignore[attr-defined]

    for name in re.finditer(r"(?<!\\)\[:(\^?)(\w+):\]", expression):
        fix = ""
        if name[2] in _CLASSES:
            fix = f"in Python [[{name[0][1:-1]}]] is [{name[1]}{_CLASSES[name[2]]}]"
        if fix or expression[: name.start()].endswith("["):
            raise BadExpression(expression, f"{name[0]} is not known", name.start(), fix)
    try:
        with warnings.catch_warnings():
            # `[[` and `--` in a set may mean something else in a later Python; here they are characters.
            warnings.simplefilter("ignore", FutureWarning)
            if len(expression) > _MAX_ITEMS or _count_items(_parser.parse(expression), 1) > _MAX_ITEMS:
                raise OverflowError
    except re.error as error:
        at = error.pos or 0
        fix = _ELSEWHERE.get(expression[at : at + 2], "")
        raise BadExpression(expression, error.msg, at, fix) from None
    except (RecursionError, OverflowError, ValueError):  # a count of more than 4,300 digits is a ValueError
        raise _too_complicated(expression) from None


def _count_items(parsed: Any, copies: int) -> int:
    """The number of items in the result of Python's parser, with the copies of those that have to repeat."""
    total = 0
    for item in () if isinstance(parsed, (int, str)) or parsed is None else parsed:
        if isinstance(item, tuple) and len(item) == 2 and str(item[0]).endswith("_REPEAT"):
            least, _, repeated = item[1]
            total += _count_items(repeated, copies * (least + 1))
        else:
            total += copies + _count_items(item, copies)
    return total


def matching_texts(expressions: Iterable[str], texts: Iterable[str]) -> frozenset[str]:
    """The texts in which any of the expressions is found.

    Raises BadExpression, and SlowExpression if the search in all texts takes too long.
    """
    patterns = [Expression(expression) for expression in expressions]
    end = time.thread_time() + LIMIT_SECONDS
    return frozenset(
        text for text in texts if any(regex.is_found(text, end - time.thread_time()) for regex in patterns)
    )


async def run_in_turn(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function that matches expressions in a thread, one call at a time, and return its result.

    A loop's calls never occupy more than one executor thread, even if callers are cancelled.
    """
    import asyncio

    turn = _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    async def run() -> T:
        async with turn:
            return await asyncio.to_thread(call, *args, **kwargs)

    return await asyncio.shield(asyncio.ensure_future(run()))


def _too_complicated(expression: str) -> BadExpression:
    return BadExpression(expression[:60], "too complicated", fix="use a shorter one")


def is_plain(expression: str) -> bool:
    """Whether the expression has no special characters, so that `expression in text` gives the same result."""
    return _SPECIAL.isdisjoint(expression)
