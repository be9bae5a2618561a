"""Key presses out of the bytes that a terminal sends."""

from __future__ import annotations

import codecs

_SEQUENCES = {
    "[A": "up", "[B": "down", "[C": "right", "[D": "left", "OA": "up", "OB": "down", "OC": "right", "OD": "left",
    "[H": "home", "[F": "end", "OH": "home", "OF": "end", "[1~": "home", "[4~": "end", "[7~": "home", "[8~": "end",
    "[5~": "page up", "[6~": "page down", "[3~": "delete", "[Z": "back tab",
}  # fmt: skip
_SINGLE = {
    "\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\x08": "backspace", "\x0c": "redraw",
    "\x15": "clear", "\x01": "home", "\x05": "end", "\x02": "page up", "\x06": "page down", "\x0e": "down",
    "\x10": "up",
}  # fmt: skip


class Keys:
    """Takes bytes, gives names of keys ("up", "enter") and characters; an escape sequence may come in pieces."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""

    @property
    def pending(self) -> bool:
        """Whether there is the beginning of a sequence, which after a moment is nothing but the Escape key."""
        return bool(self._text)

    def feed(self, data: bytes) -> list[str]:
        """The keys that are complete now."""
        self._text += self._decoder.decode(data)
        found: list[str] = []
        while self._text:
            if self._text[0] != "\x1b":
                found += _named(self._text[0])
                self._text = self._text[1:]
                continue
            length = _sequence_length(self._text)
            if not length:
                break
            name = _SEQUENCES.get(self._text[1:length]) if length > 1 else "escape"
            found += [name] if name else []
            self._text = self._text[length:]
        return found

    def flush(self) -> list[str]:
        """The keys that are left when nothing follows: Escape, and what was typed after it."""
        text, self._text = self._text, ""
        return [key for char in text for key in (["escape"] if char == "\x1b" else _named(char))]


def _named(char: str) -> list[str]:
    if char in _SINGLE:
        return [_SINGLE[char]]
    return [char] if char.isprintable() else []


def _sequence_length(text: str) -> int:
    """How many characters belong to the sequence that the text begins with (ECMA-48 §5.4); 0: not all are there."""
    if len(text) < 2:
        return 0
    if text[1] not in "[O":
        return 1
    for at in range(2, len(text)):
        if "\x40" <= text[at] <= "\x7e":
            return at + 1
        if not "\x20" <= text[at] <= "\x3f":
            return 1
    return 0
