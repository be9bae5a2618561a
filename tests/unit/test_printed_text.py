"""What a server prints is input: whatever reads it raises nothing, and takes time in proportion to the text."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from poolctl.cli.log_rendering import (
    SHORT_TIMES,
    PrefixedLineFormatter,
    json_line,
    record_lines,
    terminal_text,
    with_coloured_level,
)
from poolctl.cli.output import lines_without_commands
from poolctl.config import ServerConfig, masked_text
from poolctl.core.explain import cause_of, explanatory_lines, is_quoted
from poolctl.logs.line_filter import LineFilter, stated_level, text_after_level
from poolctl.logs.log_line import LogLine, as_json, parse_line, parse_record, with_timestamp_prefix
from poolctl.runners.process_link import sanitize_and_truncate_text
from poolctl.runners.stack_report import FAULTHANDLER, PYTHON, parse
from tests.growth import grows_too_fast, printed_texts

TIME = "2026-11-20T08:47:34.123456Z"
SERVER = ServerConfig(name="web", bind="127.0.0.1:8080", command=["web"])


def line_of(text: str) -> LogLine:
    return LogLine(text, time=TIME, name="web")


def filtered(text: str) -> object:
    wanted = LineFilter(least="error", levels=True)
    return [*wanted.filter_backwards([line_of(text)]), *wanted.filter_forwards([line_of(text)])]


def record(text: str) -> object:
    found = parse_record(text)
    return found and record_lines(found, colours=True)


READERS: dict[str, Callable[[str], object]] = {
    "the cause of an exit": lambda text: cause_of([text], SERVER),
    "the cause of an exit, line by line": lambda text: cause_of(text.split("\n"), SERVER),
    "explanatory lines of a traceback": lambda text: explanatory_lines(["Traceback (most recent call last):", text]),
    "whether a message has the line": lambda text: is_quoted(text, text[: len(text) // 2]),
    "passwords in a line": masked_text,
    "the level of a line": stated_level,
    "a line without its level": text_after_level,
    "lines of a level": filtered,
    "a record in JSON": record,
    "a line of a log in text": lambda text: parse_line(f"{TIME} {text}".encode(errors="surrogatepass")),
    "a line of a log in JSON": lambda text: parse_line(f'{{"time": "{TIME}", "line": "{text}'.encode(errors="replace")),
    "output stored as text": lambda text: with_timestamp_prefix(f"{text}\n".encode(errors="replace"), TIME),
    "output stored as JSON": lambda text: as_json(f"{text}\n".encode(errors="replace"), TIME, "web", 1),
    "a text that a CI reads": lines_without_commands,
    "a line for a terminal": terminal_text,
    "a line for a terminal without colours": lambda text: terminal_text(text, colours=False),
    "a line with its level in colour": with_coloured_level,
    "a line with its prefix": lambda text: PrefixedLineFormatter(
        ["web"], times=SHORT_TIMES, records=True, request_ids=()
    ).line(line_of(text)),
    "a line as an object": lambda text: json_line(line_of(text)),
    "a message of a worker": sanitize_and_truncate_text,
    "stacks by Python": lambda text: parse(text.encode(errors="replace"), PYTHON, ["/srv"]),
    "stacks by faulthandler": lambda text: parse(text.encode(errors="replace"), FAULTHANDLER, ["/srv"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_time_to_read_what_a_server_prints_is_proportional_to_it(reader: str) -> None:
    for text_of in printed_texts():
        assert not grows_too_fast(READERS[reader], text_of), f"{text_of(80)!r}"
