"""The two forms of a line in a log file, and back.

Text: ``2026-11-20T08:47:34.123456Z`` (UTC), a space, the line. JSON: an object with time, name, pid and line.
The time has a fixed width, so that times compare as text.
"""

from __future__ import annotations

import json
import time

_STAMP_WIDTH = len("2026-11-20T08:47:34.123456Z")


class LogLine:
    """One line of a server's output; `time` is empty if it has none (another program wrote it)."""

    __slots__ = ("name", "pid", "text", "time")

    def __init__(self, text: str, *, time: str = "", name: str = "", pid: int | None = None) -> None:
        self.text = text
        self.time = time
        self.name = name
        self.pid = pid

    def __repr__(self) -> str:
        return f"{self.time} {self.name} | {self.text}"


def stamp(seconds: float) -> str:
    """The time stamp of a line for a moment (seconds since the epoch)."""
    whole = int(seconds)
    year, month, day, hour, minute, second = time.gmtime(whole)[:6]
    micros = int((seconds - whole) * 1_000_000)
    return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"


def seconds_of(stamp: str) -> float:
    """The moment of a time stamp, in seconds since the epoch."""
    from datetime import datetime  # rarely needed

    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


def as_text(lines: bytes, now: str) -> bytes:
    """Whole lines, each with the time before it."""
    prefix = now.encode() + b" "
    return prefix + lines[:-1].replace(b"\n", b"\n" + prefix) + b"\n"


def as_json(lines: bytes, now: str, name: str, pid: int) -> bytes:
    """Whole lines, each as a JSON object on a line; bytes that are not UTF-8 become escapes such as ``\\xff``."""
    head = json.dumps({"time": now, "name": name, "pid": pid})[:-1]
    texts = lines[:-1].decode("utf-8", "backslashreplace").split("\n")
    return "".join([f'{head}, "line": {json.dumps(text)}}}\n' for text in texts]).encode()


def parse_line(raw: bytes, name: str = "") -> LogLine:
    """The LogLine of a line of a log file in either form; `name` is that of the file's server."""
    if raw.startswith(b'{"time": '):
        try:
            found = json.loads(raw)
            return LogLine(
                str(found["line"]), time=str(found["time"]), name=name or found["name"], pid=found["pid"]
            )
        except (ValueError, KeyError):
            pass
    text = raw.decode("utf-8", "backslashreplace")
    if _has_stamp(raw):
        return LogLine(text[_STAMP_WIDTH + 1 :], time=text[:_STAMP_WIDTH], name=name)
    return LogLine(text, name=name)


def _has_stamp(raw: bytes) -> bool:
    marks = raw[4:5] + raw[10:11] + raw[_STAMP_WIDTH - 1 : _STAMP_WIDTH + 1]
    return marks == b"-TZ " and raw[:4].isdigit()
