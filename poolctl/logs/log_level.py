"""The level stated in a line of output, in JSON or in the usual text formats of logging libraries."""

from __future__ import annotations

import re

from .log_line import parse_record

LEVELS = ("trace", "debug", "info", "warning", "error", "critical")
_WORDS = {
    "warn": "warning",
    "err": "error",
    "fatal": "critical",
    "alert": "critical",
    "panic": "critical",
    "notice": "info",
    **{level: level for level in LEVELS},
}
_ANY = "|".join(_WORDS)
# In the order in which they are tried. The first word, after a time: uvicorn's "INFO:     …", logging's "ERROR:root:…".
# In brackets: gunicorn's "[2026-11-20 08:47:34 +0000] [7] [INFO] …", nginx's "… [error] 7#0: …". As a member: logfmt's
# "level=warn". In capitals between the other columns: "… - shop - ERROR - …", loguru's "… | ERROR    | …".
_FORMS = (
    re.compile(rf"^[\d\s:.,/TZ+-]*\[?({_ANY})\b[\]:\s]", re.IGNORECASE),
    re.compile(rf"\[({_ANY})\]", re.IGNORECASE),
    re.compile(rf"\b(?:level|lvl|severity)=\"?({_ANY})\b", re.IGNORECASE),
    re.compile(rf"(?:^|[\s|])({_ANY.upper()})(?=[\s|:]|$)"),
)
# The rest of the line is the message.
_LONGEST_HEAD = 160
# Terminal escape sequences such as colours (ECMA-48 §5.4).
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def canonical_level(word: str) -> str:
    """One of LEVELS for any usual word ("WARN", "err"); any other word in lower case."""
    return _WORDS.get(word.lower(), word.lower())


def level_place(text: str) -> tuple[str, int, int]:
    """The level stated in a line of text, and the start and end of its word; ("", 0, 0) without a level."""
    head = text[:_LONGEST_HEAD]
    for form in _FORMS:
        if found := form.search(head):
            return _WORDS[found[1].lower()], *found.span(1)
    return "", 0, 0


def stated_level(text: str) -> str:
    """The level stated in a line of JSON or text, one of LEVELS, or ""."""
    if text.startswith("{"):
        record = parse_record(text)
        if record is not None:
            return canonical_level(record.level)
    return level_place(without_control(text))[0]


def without_control(text: str) -> str:
    """The text without colours and other terminal escape sequences."""
    return _CONTROL.sub("", text) if "\x1b" in text else text
