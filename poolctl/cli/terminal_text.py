"""Output of servers made safe for a terminal: colours pass, other control characters are escaped."""

from __future__ import annotations

import re
import unicodedata

# Select Graphic Rendition (ECMA-48 §8.3.117): colours and weights.
_COLOUR = re.compile(r"(\x1b\[[0-9;:]*m)")
_RESET = "\x1b[0m"
_SPECIAL = re.compile(r"[^\x20-\x7e]")
# They join letters and emoji, and are no separators for Python.
_JOINERS = "\u200c\u200d"


def terminal_text(text: str, *, colours: bool = True) -> str:
    """The line with every control character but a tab escaped (`\\x1b`), its colours kept and ended, or left out."""
    if not _SPECIAL.search(text):
        return text
    parts = _COLOUR.split(text)
    shown = [_escaped(part) if at % 2 == 0 else part if colours else "" for at, part in enumerate(parts)]
    if colours and len(parts) > 1 and parts[-2] not in (_RESET, "\x1b[m"):
        shown.append(_RESET)
    return "".join(shown)


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        char if _is_harmless(char) else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )


def _is_harmless(char: str) -> bool:
    return char.isprintable() or char == "\t" or char in _JOINERS or unicodedata.category(char) == "Zs"
