"""Renders lines of several servers' output, with a prefix for each server or as JSON objects."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Container, Iterable
from typing import TextIO

from poolctl.cli.output import json_without_commands, without_commands
from poolctl.cli.render import coloured, in_style, printable
from poolctl.control.server_answers import ServerDescription
from poolctl.json_form import Table
from poolctl.logs.line_filter import level_place, stated_level, text_after_level
from poolctl.logs.log_line import JsonRecord, LogLine, local_clock_time, parse_record

_STYLES = (
    "cyan", "yellow", "green", "magenta", "blue",
    "bright_cyan", "bright_yellow", "bright_green", "bright_magenta", "bright_blue",
)  # fmt: skip


NO_TIMES, SHORT_TIMES, STAMPS = "", "short", "stamps"
# A line that begins with a time.
_TIMED = re.compile(r"\[?(\d{4}[-/]\d\d[-/]\d\d[T ])?\d\d:\d\d:\d\d")
# The end of an access log line: status, duration, request ID.
_REQUEST_ID = re.compile(r"(HTTP/[\d.]+\" \d{3}[A-Za-z' -]* [\d.]+ms) \S+$")


class PrefixedLineFormatter:
    """Prefixes lines with `name | `, padded to the longest name, and on a terminal colored by server.

    With `records`, JSON lines are rendered as text. `times` adds a time after the name: STAMPS the full timestamp,
    SHORT_TIMES the time of day, only for lines that contain no time. `request_ids` names the servers whose access logs
    are shown with request IDs; None means all servers. The lines are for the `stream`, by default standard output.
    """

    def __init__(
        self,
        names: list[str],
        *,
        times: str = NO_TIMES,
        records: bool = False,
        request_ids: Container[str] | None = None,
        stream: TextIO | None = None,
    ) -> None:
        width = max(map(len, names), default=0)
        self._times = times
        self._records = records
        self._request_ids = request_ids
        stream = stream or sys.stdout
        self._colours = coloured(stream)
        self._terminal = stream.isatty()
        self._prefixes = {name: f"{name.ljust(width)} | " for name in names}
        if self._colours:
            self._prefixes = {
                name: in_style(prefix, _STYLES[at % len(_STYLES)])
                for at, (name, prefix) in enumerate(self._prefixes.items())
            }

    def line(self, line: LogLine) -> str:
        """The line as text with a line break; a JSON record may become several lines."""
        with_id = self._request_ids is None or line.name in self._request_ids
        record = parse_record(line.text) if self._records and line.text.startswith("{") else None
        prefix = f"{self._prefixes.get(line.name, line.name + ' | ')}{self._time(line, record)}"
        if record is not None:
            if not with_id:
                record.rest.pop("request_id", None)
            texts = record_lines(record, colours=self._colours)
            return without_commands("".join(f"{prefix}{text}\n" for text in texts))
        text = line.text if with_id else _REQUEST_ID.sub(r"\1", line.text)
        if self._terminal:
            text = terminal_text(text, colours=self._colours)
        text = with_coloured_level(text) if self._colours else text
        return without_commands(f"{prefix}{text}\n")

    def _time(self, line: LogLine, record: JsonRecord | None) -> str:
        if not line.time or not self._times:
            return ""
        if self._times == STAMPS:
            return f"{line.time} "
        if (record is not None and record.time) or _TIMED.match(line.text):
            return ""
        time = local_clock_time(line.time)
        return f"{in_style(time, 'dim') if self._colours else time} "


def with_coloured_level(text: str) -> str:
    """The text with its level colored; unchanged if it already has colors."""
    level, begin, end = level_place(text)
    if not level or "\x1b" in text:
        return text
    return f"{text[:begin]}{in_style(text[begin:end], _LEVEL_STYLES[level.upper()])}{text[end:]}"


def json_line(line: LogLine) -> str:
    """The line as a JSON object with `time`, `server`, `message`, and `level` if known, with a line break.

    A line that is a JSON record keeps its members; its own time becomes `logged`. A level at the beginning of a line is
    left out of the message.
    """
    document: Table = {"time": line.time, "server": line.name}
    if line.pid is not None:
        document["pid"] = line.pid
    record = parse_record(line.text)
    document["message"] = text_after_level(line.text) if record is None else record.message
    if level := line.level or stated_level(line.text):
        document["level"] = level
    for key, value in record.fields.items() if record is not None else ():
        document.setdefault("logged" if key == "time" else key, value)
    return json_without_commands(document) + "\n"


_LEVEL_WIDTH = 5
_LEVEL_STYLES = {
    **dict.fromkeys(("TRACE", "DEBUG"), "dim"),
    "INFO": "green",
    "NOTICE": "cyan",
    **dict.fromkeys(("WARN", "WARNING"), "yellow"),
    **dict.fromkeys(("ERROR", "ERR"), "red"),
    **dict.fromkeys(("CRITICAL", "FATAL", "ALERT", "PANIC"), "bold red"),
}
_INDENT = "    "


def record_lines(record: JsonRecord, *, colours: bool = False) -> list[str]:
    """The record as lines of text; multi-line members follow the first line."""
    level = printable(record.level).ljust(_LEVEL_WIDTH) if record.level else ""
    pairs = [f"{printable(key)}={_quoted_value(text)}" for key, text in record.rest.items()]
    time = printable(record.time)
    message = printable(record.message.strip("\n"), keep_lines=True)
    if colours:
        level = in_style(level, _LEVEL_STYLES[record.level]) if record.level in _LEVEL_STYLES else level
        time = in_style(time, "dim") if time else ""
        pairs = [in_style(pair, "dim") for pair in pairs]
    first, *more = message.split("\n")
    lines = [" ".join(word for word in (level, time, first, *pairs) if word)]
    lines += [_INDENT + line for line in more]
    for key, text in record.long.items():
        lines.append(f"{_INDENT}{printable(key)}:")
        lines += [_INDENT * 2 + printable(line, keep_lines=True) for line in text.strip("\n").split("\n")]
    return lines


def _quoted_value(text: str) -> str:
    plain = text and text.isprintable() and not any(char in text for char in ' ="')
    return text if plain else json.dumps(text, ensure_ascii=not text.isprintable())


# Select Graphic Rendition (ECMA-48 §8.3.117): colours and weights.
_COLOUR = re.compile(r"(\x1b\[[0-9;:]*m)")
_RESET = "\x1b[0m"
_SPECIAL = re.compile(r"[^\x20-\x7e]")
# Tabs, and joiners of letters and emoji, which Python does not count as printable.
_HARMLESS = "\t\u200c\u200d"


def terminal_text(text: str, *, colours: bool = True) -> str:
    """The line with control characters except tabs escaped (`\\x1b`).

    With `colours`, its colors are kept, and reset at its end; otherwise they are removed.
    """
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
        char
        if char.isprintable() or char in _HARMLESS or unicodedata.category(char) == "Zs"
        else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )


def log_paths(items: Iterable[ServerDescription], directory: str) -> dict[str, str]:
    """The log file of each server by name: the configured file, or a file in `directory`."""
    return {
        item.name: (item.config.get("log") or {}).get("path") or f"{directory}/{item.name}.log"
        for item in items
    }
