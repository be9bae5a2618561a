"""Command lines written as one string: whether they need a shell, and the equivalent list of words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from poolctl.config.values.plain import Interpolated
from poolctl.config.values.toml_text import value_text

_OUTSIDE_QUOTES = r"[;|&<>()*?~\n\[]|(?:^|\s)#"
# Shell builtins: no program of that name exists, or running it would have no effect.
_BUILTIN = r"\s*(?:\.|!|alias|case|cd|eval|export|for|if|set|source|trap|ulimit|umask|until|wait|while)\s"
_PREFIX = r"\s*(?:exec\s|[A-Za-z_][A-Za-z0-9_]*=)"
_OPERATOR = r"[0-9]*[<>&|;]+[0-9]*"


def needs_shell(text: str) -> bool:
    """Whether the line needs a shell: it is more than words with quotes, backslashes and variables set before them."""
    outside = re.sub(r"'[^']*'", "", re.sub(r"\\.", "", text))
    unquoted = re.sub(r'"[^"]*"', "", outside)
    return (
        "$" in outside
        or "`" in outside
        or re.search(_OUTSIDE_QUOTES, unquoted) is not None
        or re.match(_BUILTIN, unquoted) is not None
    )


def words_of_line(text: str) -> list[str] | None:
    """The words that run the line as a shell would; None if it is empty, or a quote is not closed."""
    try:
        words = shlex.split(text)
    except ValueError:
        return None
    if needs_shell(text) or re.match(_PREFIX, text):
        return ["sh", "-c", text]
    return words or None


def words_meant(words: Sequence[str]) -> list[str] | None:
    """The words that were meant, if the first is a line, or a word of the shell, instead of a program; else None."""
    first, *others = words
    if not re.search(r"\s", first) and not re.match(f"{_BUILTIN}|{_PREFIX}", f"{first} "):
        return None
    return words_of_line(" ".join([first, *map(_as_in_line, others)]))


def _as_in_line(word: str) -> str:
    """The word as it stood in the line: operators and variables were not quoted."""
    is_of_shell = re.fullmatch(_OPERATOR, word) or ("$" in word and not re.search(r"\s", word))
    return word if is_of_shell else shlex.quote(word)


def words_fix(text: str) -> str:
    """The fix for a line that was written in the place of a list of words: with its references, not their values."""
    words = words_of_line(text.written if isinstance(text, Interpolated) else text)
    return f"write {value_text(words)}" if words else 'write ["prog", "argument"]'
