"""Parses a line that is a JSON object, as many libraries log: its level, time and message, and the rest."""

from __future__ import annotations

import json
import time
from typing import Any

_TIMES = ("time", "timestamp", "ts", "@timestamp", "datetime", "date", "t")
_LEVELS = ("level", "severity", "levelname", "lvl", "log.level", "loglevel", "level_name")
_MESSAGES = ("message", "msg", "event", "@message", "text", "short_message")
# The numbers of pino and bunyan, and those of Python's logging, for nearly the same words.
_NUMBERS = ((50, "CRITICAL"), (40, "ERROR"), (30, "WARNING"), (20, "INFO"), (10, "DEBUG"))
_PINO = {10: "TRACE", 20: "DEBUG", 30: "INFO", 40: "WARN", 50: "ERROR", 60: "FATAL"}
_PINO_SIGNS = ("pid", "hostname")
# Seconds, milliseconds, microseconds or nanoseconds since the epoch: the unit that gives a plausible year.
_LARGEST_SECONDS = 1e11


class JsonRecord:
    """The content of a line in JSON; `time` is HH:MM:SS.mmm in the reader's zone, or as written, "" without one.

    `rest` holds the other members in their order, those with several lines (tracebacks) under `long`.
    """

    __slots__ = ("fields", "level", "long", "message", "rest", "time")

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        rest = dict(fields)
        numbered = _take(rest, _LEVELS)
        pino = all(sign in fields for sign in _PINO_SIGNS)
        self.level = _level(numbered, pino)
        self.time = _moment(_take(rest, _TIMES))
        self.message = _text(_take(rest, _MESSAGES))
        texts = {key: _text(value) for key, value in rest.items()}
        self.long = {key: text for key, text in texts.items() if "\n" in text.strip("\n")}
        self.rest = {key: text.strip("\n") for key, text in texts.items() if key not in self.long}

    def __repr__(self) -> str:
        return f"<JsonRecord {self.level} {self.message!r}>"


def parse_record(text: str) -> JsonRecord | None:
    """The parsed line; None for a line of any other kind, also for JSON without a message or a level."""
    if not (text.startswith("{") and text.rstrip().endswith("}")):
        return None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not any(key in fields for key in (*_MESSAGES, *_LEVELS)):
        return None
    return JsonRecord(fields)


def _take(fields: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Remove and return the first of these fields that exists."""
    for name in names:
        if name in fields:
            return fields.pop(name)
    return None


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _level(value: Any, pino: bool) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if pino:
            return _PINO.get(int(value), str(value))
        return next((word for least, word in _NUMBERS if value >= least), str(value))
    return _text(value).upper()


def _moment(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _of_day(value)
    text = _text(value)
    if len(text) > 10 and text[4:5] == "-" and text[10] in "T ":
        from datetime import datetime

        try:
            return _of_day(datetime.fromisoformat(text.replace(",", ".")).timestamp())
        except (ValueError, OverflowError, OSError):
            pass
    return text


def _of_day(number: float) -> str:
    try:
        seconds = float(number)
        for _ in range(3):
            if seconds > _LARGEST_SECONDS:
                seconds /= 1000
        whole, millis = divmod(round(seconds * 1000), 1000)
        return f"{time.strftime('%H:%M:%S', time.localtime(whole))}.{millis:03}"
    except (ValueError, OverflowError, OSError):
        return _text(number)
