"""Formats and parses the lines of a log file, which are text or JSON.

Text: ``2026-11-20T08:47:34.123456Z`` (UTC), a space, the line. JSON: an object with time, name, pid and line. The time
has a fixed width, so times can be compared as text. The line may itself be a JSON object, as many libraries write.
"""

from __future__ import annotations

import json
import time
from datetime import datetime

_STAMP_WIDTH = len("2026-11-20T08:47:34.123456Z")


class LogLine:
    """One line of a server's output.

    `time` is "" for a line without a timestamp, which another program wrote. `level` is set by a LineFilter, from this
    line or from the line that it continues; "" if unknown.
    """

    __slots__ = ("level", "name", "pid", "text", "time")

    def __init__(
        self, text: str, *, time: str = "", name: str = "", pid: int | None = None, level: str = ""
    ) -> None:
        self.text = text
        self.time = time
        self.name = name
        self.pid = pid
        self.level = level

    def __repr__(self) -> str:
        return f"{self.time} {self.name} | {self.text}"


def stamp(seconds: float) -> str:
    """Format a time in seconds since the epoch as the timestamp of a line."""
    whole = int(seconds)
    year, month, day, hour, minute, second = time.gmtime(whole)[:6]
    micros = int((seconds - whole) * 1_000_000)
    return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"


def seconds_of(stamp: str) -> float:
    """Parse a timestamp into seconds since the epoch."""
    return datetime.fromisoformat(stamp).timestamp()


def local_clock_time(stamp: str, *, with_millis: bool = True) -> str:
    """Return the local time as HH:MM:SS.mmm, preceded by the date unless it is today's; as HH:MM:SS without millis."""
    moment = datetime.fromisoformat(stamp).astimezone()
    text = f"{moment:%H:%M:%S}"
    if not with_millis:
        return text
    text += f".{moment.microsecond // 1000:03}"
    return text if moment.date() == datetime.now().date() else f"{moment:%Y-%m-%d} {text}"


def with_timestamp_prefix(lines: bytes, now: str) -> bytes:
    prefix = now.encode() + b" "
    return prefix + lines[:-1].replace(b"\n", b"\n" + prefix) + b"\n"


def as_json(lines: bytes, now: str, name: str, pid: int) -> bytes:
    """Return each line as a JSON object with the timestamp `now`, one object per line.

    Bytes that are not UTF-8 become escapes such as ``\\xff``.
    """
    head = json.dumps({"time": now, "name": name, "pid": pid})[:-1]
    texts = lines[:-1].decode("utf-8", "backslashreplace").split("\n")
    return "".join([f'{head}, "line": {json.dumps(text)}}}\n' for text in texts]).encode()


def parse_line(raw: bytes, name: str = "") -> LogLine:
    """Parse a line of a log file, which is JSON or text with a timestamp. A line in another form gets no time.

    `name` is the server's name; with "" the name is taken from a line of JSON.
    """
    if raw.startswith(b'{"time": '):
        try:
            record = json.loads(raw)
            time = record["time"]
            if "line" not in record and _is_stamp(time):  # of the gateway's access log
                return LogLine(raw.decode("utf-8", "backslashreplace"), time=time, name=name)
            line = record["line"]
            if isinstance(line, str) and _is_stamp(time):
                return LogLine(line, time=time, name=name or str(record["name"]), pid=record["pid"])
        except (ValueError, KeyError, RecursionError):
            pass  # another program wrote it
    text = raw.decode("utf-8", "backslashreplace")
    if raw[_STAMP_WIDTH : _STAMP_WIDTH + 1] == b" " and _is_stamp(text[:_STAMP_WIDTH]):
        return LogLine(text[_STAMP_WIDTH + 1 :], time=text[:_STAMP_WIDTH], name=name)
    return LogLine(text, name=name)


def _is_stamp(text: object) -> bool:
    if not isinstance(text, str) or len(text) != _STAMP_WIDTH or text[10] + text[-1] != "TZ":
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


# Names of members for the time, the level (as text or number) and the message, in lower case. Their case is ignored.
_TIMES = ("time", "timestamp", "ts", "@timestamp", "datetime", "date", "t", "@t", "asctime")
_LEVELS = ("level_name", "levelname", "level", "severity", "lvl", "log.level", "loglevel", "@l", "severitytext",
           "severity_text", "severitynumber", "severity_number", "priority")  # fmt: skip
_MESSAGES = (
    "message",
    "msg",
    "event",
    "@message",
    "text",
    "short_message",
    "@m",
    "@mt",
    "messagetemplate",
    "body",
)
# Numeric levels: of Python's logging, of pino and bunyan, of OpenTelemetry, and of syslog(3).
_NUMBERS = ((50, "CRITICAL"), (40, "ERROR"), (30, "WARNING"), (20, "INFO"), (10, "DEBUG"))
_PINO: dict[float, str] = {10: "TRACE", 20: "DEBUG", 30: "INFO", 40: "WARN", 50: "ERROR", 60: "FATAL"}
_OPENTELEMETRY = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")  # four numbers each, from 1 on
_MONGODB = {"F": "FATAL", "E": "ERROR", "W": "WARNING", "I": "INFO", "D": "DEBUG"}
_SYSLOG = ("EMERG", "ALERT", "CRIT", "ERR", "WARNING", "NOTICE", "INFO", "DEBUG")
# Seconds, milliseconds, microseconds or nanoseconds since the epoch: the unit that gives a plausible year.
_MAX_SECONDS = 1e11


class JsonRecord:
    """The content of a JSON line.

    `time` is HH:MM:SS.mmm in the local time zone; in an unknown format it stays as written, and "" means that there is
    none. `rest` holds the other members in order, `long` the members with several lines (tracebacks).
    """

    __slots__ = ("fields", "level", "long", "message", "rest", "time")

    def __init__(self, fields: dict[str, object]) -> None:
        self.fields = fields
        rest = _flat(fields)
        name, value = _take(rest, _LEVELS)
        self.level = _level(name, value, fields)
        self.time = _time_of_day_text(_take(rest, _TIMES)[1])
        self.message = _text(_take(rest, _MESSAGES)[1])
        texts = {key: _text(value) for key, value in rest.items()}
        self.long = {key: text for key, text in texts.items() if "\n" in text.strip("\n")}
        self.rest = {key: text.strip("\n") for key, text in texts.items() if key not in self.long}

    def __repr__(self) -> str:
        return f"<JsonRecord {self.level} {self.message!r}>"


def parse_record(text: str) -> JsonRecord | None:
    """The parsed JSON line; None for any other line, and for JSON with neither a message nor a level."""
    if not (text.startswith("{") and text.rstrip().endswith("}")):
        return None
    try:
        record = JsonRecord(json.loads(text))
    except (ValueError, OverflowError, RecursionError):  # nested more deeply than can be written, or infinite
        return None
    return record if record.level or record.message else None


def _flat(fields: dict[str, object]) -> dict[str, object]:
    """The members of a record, including nested ones of loguru, ECS, OpenTelemetry, tracing and MongoDB."""
    flat = dict(fields)
    match fields:
        case {"record": {"level": {"name": level}, "message": message, **more}}:  # loguru
            extra = more.get("extra")
            flat = {"level": level, "message": message, **(extra if isinstance(extra, dict) else {})}
            flat |= {name: more[name] for name in ("name", "function", "line", "exception") if more.get(name)}
            match more:
                case {"time": {"timestamp": moment}}:
                    flat["time"] = moment
        case {"log": {"level": level}}:  # ECS
            flat["log.level"] = level
        case {"body": {"stringValue": message}}:  # OpenTelemetry
            flat["body"] = message
        case {"level": _, "fields": dict(members)} if "message" in members:  # tracing
            del flat["fields"]
            flat |= members
        case {"t": {"$date": moment}, "s": str(level), "msg": _}:  # MongoDB
            flat |= {"t": moment, "level": _MONGODB.get(level[:1], level)}
            del flat["s"]
    return flat


def _take(fields: dict[str, object], names: tuple[str, ...]) -> tuple[str, object]:
    """Remove the first of these members that exists; returns its name in lower case and its value."""
    keys = {key.lower(): key for key in reversed(fields)}
    for name in names:
        if name in keys:
            return name, fields.pop(keys[name])
    return "", None


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _level(name: str, value: object, fields: dict[str, object]) -> str:
    """The level in capitals; "" without one."""
    if not name:
        return "INFORMATION" if "@mt" in fields else ""  # Serilog's default
    if name == "priority" or (isinstance(value, int) and "short_message" in fields):
        # journald and GELF have the numbers of syslog(3).
        number = _text(value)
        return _SYSLOG[int(number)] if len(number) == 1 and number in "01234567" else number.upper()
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return _text(value).upper()
    if name.startswith("severity") and name != "severity":
        return _OPENTELEMETRY[min(max(int(value) - 1, 0) // 4, 5)]
    # pino and bunyan, not Python's logging.
    if {"pid", "hostname"} <= fields.keys() or ("msg" in fields and isinstance(fields.get("time"), int)):
        return _PINO.get(value, str(value))
    return next((word for minimum, word in _NUMBERS if value >= minimum), str(value))


def _time_of_day_text(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _format_time_of_day(value)
    text = _text(value)
    if len(text) > 10 and text[4:5] == "-" and text[10] in "T ":
        try:
            return _format_time_of_day(datetime.fromisoformat(text.replace(",", ".")).timestamp())
        except (ValueError, OverflowError, OSError):
            pass
    return text


def _format_time_of_day(number: float) -> str:
    try:
        seconds = float(number)
        for _ in range(3):
            if seconds > _MAX_SECONDS:
                seconds /= 1000
        whole, millis = divmod(round(seconds * 1000), 1000)
        return f"{time.strftime('%H:%M:%S', time.localtime(whole))}.{millis:03}"
    except (ValueError, OverflowError, OSError):
        return _text(number)
