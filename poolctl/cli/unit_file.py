"""The syntax of systemd's unit files: what has to be escaped, and how (systemd.syntax(7), systemd.service(5))."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")

Section = tuple[str, Sequence[tuple[str, str]]]


class Unwritable(ValueError):
    """A value that no unit file can hold."""


def render(comments: Iterable[str], sections: Iterable[Section]) -> str:
    """The text of a unit file. A key that is "#" makes a comment of its value, "" an empty line."""
    lines = [f"# {comment}" for comment in comments]
    for name, entries in sections:
        lines += ["", f"[{name}]"]
        for key, value in entries:
            lines.append(f"# {value}" if key == "#" else f"{key}={value}")
    return "\n".join(lines) + "\n"


def text(value: str) -> str:
    """A value that is taken as it is written, up to the end of the line: a path, a description.

    Raises Unwritable for what would be the end of the line, or be stripped from it.
    """
    if re.search(r"[\x00-\x1f\x7f]", value) or value != value.strip() or value.endswith("\\"):
        raise Unwritable(f"{value!r} cannot be written into a unit file")
    return value.replace("%", "%%")


def word(value: str) -> str:
    """One word of a list of words: quoted where it has to be."""
    if "\0" in value:
        raise Unwritable(f"{value!r} cannot be written into a unit file")
    value = value.replace("%", "%%")
    if _PLAIN.fullmatch(value):
        return value
    return '"' + "".join(_ESCAPES.get(character, _hidden(character)) for character in value) + '"'


def command(argv: Sequence[str]) -> str:
    """A command line; in its arguments `$` begins a variable unless it is doubled, in the program's path never does."""
    return " ".join([word(argv[0]), *(word(argument.replace("$", "$$")) for argument in argv[1:])])


def unit_name(name: str) -> str:
    """The name as the first part of a unit's own (systemd.unit(5)): others of its characters become hyphens."""
    return re.sub(r"[^A-Za-z0-9:_.-]", "-", name)


def _hidden(character: str) -> str:
    return f"\\x{ord(character):02x}" if character < " " or character == "\x7f" else character
