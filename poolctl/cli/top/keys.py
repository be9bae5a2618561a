"""Key presses decoded from the terminal's bytes, and the action of each on the selected server."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Any, NamedTuple

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


_AT_REST = ("stopped", "failed", "disabled")


class Action(NamedTuple):
    """A verb for one server. `question` is asked first where something stops by it."""

    verb: str
    name: str
    doing: str
    done: str
    question: str = ""
    workers: int | None = None

    def body(self) -> dict[str, Any]:
        """The body of the request to the supervisor."""
        options: dict[str, Any] = {"wait": True, "progress": False}
        if self.workers is not None:
            options["workers"] = self.workers
        return {"selector": {"targets": [self.name]}, "options": options}


def action_of(key: str, item: Mapping[str, Any]) -> Action | None:
    """The action of a key for a server in this state; None for a key without one."""
    name, state = str(item.get("name", "")), str(item.get("state", ""))
    if key == "r":
        return Action("restart", name, "restarting", "restarted")
    if key == "s" and state == "disabled":
        return Action("enable", name, "enabling", "enabled")
    if key == "s" and state in _AT_REST:
        return Action("start", name, "starting", "started")
    if key == "s":
        return Action("stop", name, "stopping", "stopped", f"Stop {name}?")
    if key == "d":
        if state == "draining":
            return Action("undrain", name, "undraining", "back in rotation")
        return Action("drain", name, "draining", "out of rotation", f"Take {name} out of rotation?")
    if key in ("+", "-"):
        return _scale(name, int(item.get("workers") or 0), 1 if key == "+" else -1)
    return None


def _scale(name: str, workers: int, step: int) -> Action | None:
    wanted = workers + step
    if wanted < 1:
        return None
    question = f"Scale {name} down to {wanted} worker{'s' if wanted > 1 else ''}?" if step < 0 else ""
    done = f"has {wanted} worker{'s' if wanted > 1 else ''}"
    return Action("scale", name, "scaling", done, question, wanted)
