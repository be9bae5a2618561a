"""Regular expressions that users write: the problem of an invalid one, its place, and the fix.

Matching one may take unbounded time; callers that must not wait use `matcher_client`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re

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


# CPU time of one match, so that load on the machine does not count; a usual expression takes microseconds.
LIMIT_SECONDS = 0.25
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


def compiled(expression: str) -> re.Pattern[str]:
    """The compiled expression. Raises BadExpression."""
    import re
    import warnings

    for name in re.finditer(r"(?<!\\)\[:(\^?)(\w+):\]", expression):
        if name[2] in _CLASSES:
            fix = f"in Python [[{name[0][1:-1]}]] is [{name[1]}{_CLASSES[name[2]]}]"
            raise BadExpression(expression, f"{name[0]} is not known", name.start(), fix)
    try:
        with warnings.catch_warnings():
            # `[[` and `--` in a set may mean something else in a later Python; here they are characters.
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(expression)
    except re.error as error:
        at = error.pos or 0
        fix = _ELSEWHERE.get(expression[at : at + 2], "")
        raise BadExpression(expression, error.msg, at, fix) from None
    except (RecursionError, OverflowError):
        raise BadExpression(expression[:60], "too complicated", fix="use a shorter one") from None


def is_plain(expression: str) -> bool:
    """Whether the expression has no special characters, so that `expression in text` gives the same result."""
    return _SPECIAL.isdisjoint(expression)
