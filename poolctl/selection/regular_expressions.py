"""Regular expressions that users write, matched within a limit of time; the place and the fix of an invalid one.

The syntax is that of `re`. They are matched by the library `regex`, which ends a match after a given time, and lets
other threads run meanwhile.
"""

from __future__ import annotations

import time
from weakref import WeakValueDictionary

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from typing import ParamSpec, TypeVar

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


# CPU time, so that load on the machine does not count; a usual expression takes microseconds.
LIMIT_SECONDS = 0.25
_TIMEOUT_FACTORS = (1, 2, 4, 8)
# Weak: a lock refers to its loop, which has to be freed when no call waits or runs.
_turns: WeakValueDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakValueDictionary()
SLOW = f"the regular expression takes more than {LIMIT_SECONDS:g} s"
FASTER = "avoid repeats within repeats, such as (a+)+, and alternatives that begin alike"


class BadExpression(ValueError):
    """An expression that cannot be used; `hint` shows the place, `fix` the replacement if one is known."""

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
        import regex

        try:
            self._pattern = regex.compile(_translated(expression), cache_pattern=False)
        except RecursionError:
            raise _too_complicated(expression) from None

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
    _translated(expression)


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
    """Call a function that matches expressions in a thread, after the earlier calls; returns its result.

    The calls of a loop use one thread of its executor, even if callers are cancelled: others need the threads too.
    """
    import asyncio

    turn = _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    async def run() -> T:
        async with turn:
            return await asyncio.to_thread(call, *args, **kwargs)

    return await asyncio.shield(asyncio.ensure_future(run()))


def _translated(expression: str) -> str:
    """The valid expression in the syntax of `regex`. Raises BadExpression."""
    import re
    import warnings

    from ._regex_syntax import translated

    for name in re.finditer(r"(?<!\\)\[:(\^?)(\w+):\]", expression):
        if name[2] in _CLASSES:
            fix = f"in Python [[{name[0][1:-1]}]] is [{name[1]}{_CLASSES[name[2]]}]"
            raise BadExpression(expression, f"{name[0]} is not known", name.start(), fix)
    try:
        with warnings.catch_warnings():
            # `[[` and `--` in a set may mean something else in a later Python; here they are characters.
            warnings.simplefilter("ignore", FutureWarning)
            return translated(expression)
    except re.error as error:
        at = error.pos or 0
        fix = _ELSEWHERE.get(expression[at : at + 2], "")
        raise BadExpression(expression, error.msg, at, fix) from None
    except (RecursionError, OverflowError, ValueError):  # a count of more than 4,300 digits is a ValueError
        raise _too_complicated(expression) from None


def _too_complicated(expression: str) -> BadExpression:
    return BadExpression(expression[:60], "too complicated", fix="use a shorter one")


def is_plain(expression: str) -> bool:
    """Whether the expression has no special characters, so that `expression in text` gives the same result."""
    return _SPECIAL.isdisjoint(expression)
