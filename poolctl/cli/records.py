"""Records of a JSON log as people read them: level, time, message, the rest as key=value, tracebacks below."""

from __future__ import annotations

import json

from poolctl.cli.render import paint, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.logs.record import Record

_LEVEL_WIDTH = 5
_LEVEL_COLOURS = {
    "TRACE": "2",
    "DEBUG": "2",
    "INFO": "32",
    "NOTICE": "36",
    "WARN": "33",
    "WARNING": "33",
    "ERROR": "31",
    "ERR": "31",
    "CRITICAL": "1;31",
    "FATAL": "1;31",
    "ALERT": "1;31",
    "PANIC": "1;31",
}
_INDENT = "    "


def record_lines(record: Record, *, colours: bool = False) -> list[str]:
    """The record as lines of text, the first of which has everything but texts of several lines."""
    level = printable(record.level).ljust(_LEVEL_WIDTH) if record.level else ""
    pairs = [f"{printable(key)}={_value(text)}" for key, text in record.rest.items()]
    time = printable(record.time)
    message = printable(record.message.strip("\n"), keep_lines=True)
    if colours:
        level = paint(level, _LEVEL_COLOURS[record.level]) if record.level in _LEVEL_COLOURS else level
        time = paint(time, "2") if time else ""
        pairs = [paint(pair, "2") for pair in pairs]
    first, *more = message.split("\n")
    lines = [" ".join(word for word in (level, time, first, *pairs) if word)]
    lines += [_INDENT + line for line in more]
    for key, text in record.long.items():
        lines.append(f"{_INDENT}{printable(key)}:")
        lines += [_INDENT * 2 + printable(line, keep_lines=True) for line in text.strip("\n").split("\n")]
    return lines


def _value(text: str) -> str:
    plain = text and text.isprintable() and not any(char in text for char in ' ="')
    return text if plain else json.dumps(text, ensure_ascii=not text.isprintable())
