"""Translates a regular expression of Python into one that means the same to the library `regex`.

Most mean the same to both, but `regex` reads `a{e}` as a fuzzy match and `[[:x:]]` as a POSIX class, and its `\\w`,
`\\s` and `\\b` differ outside ASCII. The translation is therefore made from the result of Python's own parser. These
differences remain: characters of a newer Unicode than Python's; `(?i)i` does not match a dotless i; `(?ai)` ignores the
case of letters outside ASCII too; `\\B` matches in an empty text, as it does from Python 3.14 on.
"""

from __future__ import annotations

import re
from re import _constants, _parser  # type: ignore[attr-defined]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# `regex` copies a repeated item once for each required repetition, also for `+`, and multiplies the copies of nested
# repeats. With the interpreter's lock held, it would need 273 MB for a{1000000}, and more than a machine has for
# (a{9999}){9999}.
_MAX_ITEMS = 10_000
_SUFFIXES = {_constants.MAX_REPEAT: "", _constants.MIN_REPEAT: "?", _constants.POSSESSIVE_REPEAT: "+"}
_PLACES = {
    _constants.AT_BEGINNING: "^",
    _constants.AT_END: "$",
    _constants.AT_BEGINNING_STRING: r"\A",
    _constants.AT_END_STRING: r"\Z",
}
_CLASSES = {"WORD": r"\p{L}\p{N}_", "DIGIT": r"\p{Nd}", "SPACE": r"\s\x1c-\x1f"}
_ASCII_CLASSES = {"WORD": "a-zA-Z0-9_", "DIGIT": "0-9", "SPACE": r" \t-\r"}
_LETTERS = {"a": re.ASCII, "i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL}


def translated(expression: str) -> str:
    """The expression in the syntax of `regex`. Raises re.error; RecursionError or OverflowError if it is too large."""
    if len(expression) > _MAX_ITEMS:
        raise OverflowError
    parsed = _parser.parse(expression)
    return _Translation().whole(parsed, parsed.state.flags)


class _Translation:
    def __init__(self) -> None:
        self._items = 0

    def whole(self, parsed: Any, flags: int) -> str:
        return f"(?V1)(?{_letters(flags)}-f:{self._sequence(parsed, flags, 1)})"

    def _sequence(self, items: Iterable[Any], flags: int, copies: int) -> str:
        return "".join([self._item(kind, value, flags, copies) for kind, value in items])

    def _item(self, kind: object, value: Any, flags: int, copies: int) -> str:
        """One item of the parser's result, in the syntax of `regex`. The type of `value` depends on `kind`."""
        self._count(copies)
        if kind is _constants.LITERAL:
            return _character(value)
        if kind is _constants.NOT_LITERAL:
            return f"[^{_character(value)}]"
        if kind is _constants.ANY:
            return "."
        if kind is _constants.FAILURE:
            return "(?!)"
        if kind is _constants.IN:
            return self._set(value, flags, copies)
        if kind is _constants.AT:
            return _PLACES.get(value) or _word_boundary(flags, inverted=value is not _constants.AT_BOUNDARY)
        if kind is _constants.BRANCH:
            return f"(?:{'|'.join([self._sequence(branch, flags, copies) for branch in value[1]])})"
        if kind is _constants.SUBPATTERN:
            return self._group(value, flags, copies)
        if kind is _constants.ATOMIC_GROUP:
            return f"(?>{self._sequence(value, flags, copies)})"
        if kind in _SUFFIXES:
            least, most, repeated = value
            end = "" if most is _constants.MAXREPEAT else most
            body = self._sequence(repeated, flags, copies * (least + 1))
            return f"(?:{body}){{{least},{end}}}{_SUFFIXES[kind]}"
        if kind is _constants.GROUPREF:
            return rf"\g<{value}>"
        if kind is _constants.GROUPREF_EXISTS:
            group, *branches = value
            yes, no = (self._sequence(branch or (), flags, copies) for branch in branches)
            return f"(?({group}){yes}|{no})"
        direction, asserted = value
        if direction < 0 and len({*asserted.getwidth()}) > 1:
            raise re.error("look-behind requires fixed-width pattern")
        sign = "=" if kind is _constants.ASSERT else "!"
        return f"(?{'<' if direction < 0 else ''}{sign}{self._sequence(asserted, flags, copies)})"

    def _group(self, value: Any, flags: int, copies: int) -> str:
        number, added, removed, content = value
        if added & (re.ASCII | re.UNICODE):
            removed |= re.ASCII | re.UNICODE
        inner = flags & ~removed | added
        text = self._sequence(content, inner, copies)
        if number is not None:
            return f"({text})"
        unicode = "u" if flags & ~inner & re.ASCII else ""
        off = _letters(flags & ~inner & ~re.ASCII)
        return f"(?{_letters(inner)}{unicode}{off and '-'}{off}:{text})"

    def _set(self, members: Iterable[Any], flags: int, copies: int) -> str:
        text = ""
        for kind, value in members:
            self._count(copies)
            if kind is _constants.NEGATE:
                text += "^"
            elif kind is _constants.LITERAL:
                text += _character(value)
            elif kind is _constants.RANGE:
                text += "-".join(map(_character, value))
            else:
                name = str(value).removeprefix("CATEGORY_")
                positive = name.removeprefix("NOT_")
                text += f"[{'^' if positive != name else ''}{_classes(flags)[positive]}]"
        return f"[{text}]"

    def _count(self, copies: int) -> None:
        self._items += copies
        if self._items > _MAX_ITEMS:
            raise OverflowError


def _letters(flags: int) -> str:
    return "".join(letter for letter, flag in _LETTERS.items() if flags & flag)


def _classes(flags: int) -> dict[str, str]:
    return _ASCII_CLASSES if flags & re.ASCII else _CLASSES


def _character(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else rf"\U{code:08x}"


def _word_boundary(flags: int, *, inverted: bool) -> str:
    word = f"[{_classes(flags)['WORD']}]"
    after_word, after_other = "=!" if inverted else "!="
    return f"(?:(?<={word})(?{after_word}{word})|(?<!{word})(?{after_other}{word}))"
