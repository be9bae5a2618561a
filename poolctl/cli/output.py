"""Output to pipes that do not block, to disks that may be full, and to the log of a CI.

GitHub's runner trims each line and executes `::name::` at its beginning, and `##[name]` anywhere in it (actions/runner,
ActionCommand.cs); Azure's agent executes `##vso[`, TeamCity `##teamcity[`, and GitLab folds what is between
`section_start:` and `section_end:`. Where servers print such text, it is escaped.
"""

from __future__ import annotations

import errno
import io
import json
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from _typeshed import ReadableBuffer

    from poolctl.config import Place

_MARKS = ("##[", "##vso[", "##teamcity[")
# GitHub shows at most this many per step.
MAX_ANNOTATIONS = 10


class OutputError(OSError):
    """Output cannot be written, for example because the disk is full. Not raised if its reader is gone."""


class WholeFile(io.FileIO):
    """Writes everything to an open descriptor, and waits where a pipe does not block. Never closes it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.written_bytes = 0  # of the last `write`, also if that has failed

    def write(self, data: ReadableBuffer) -> int:
        """Write all of the data, and return its length. Raises BrokenPipeError or OutputError."""
        view = memoryview(data).cast("B")
        self.written_bytes = 0
        while self.written_bytes < len(view):
            try:
                count = super().write(view[self.written_bytes :])
            except BrokenPipeError:
                raise
            except OSError as error:
                raise OutputError(error.errno, error.strerror) from None
            if count is None:
                poll = select.poll()
                poll.register(self.fileno(), select.POLLOUT)
                poll.poll()
            else:
                self.written_bytes += count
        return len(view)


def whole_stream(stream: TextIO) -> TextIO:
    """A stream to the same descriptor that is written whole; `stream` itself if it is in memory."""
    if (file := _file_of(stream)) is None:
        return stream
    stream.flush()
    unbuffered = isinstance(stream, io.TextIOWrapper) and stream.write_through  # PYTHONUNBUFFERED
    return io.TextIOWrapper(
        file if unbuffered else io.BufferedWriter(file),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=isinstance(stream, io.TextIOWrapper) and stream.line_buffering,
        write_through=unbuffered,
    )


def unbuffered_writer(stream: TextIO) -> Callable[[str], object]:
    """A function that writes text whole to the stream's descriptor, without the stream's lock and buffer."""
    if (file := _file_of(stream)) is None:
        return stream.write
    return lambda text: file.write(_encoded(text, stream))


def _encoded(text: str, stream: TextIO) -> bytes:
    return text.encode(stream.encoding or "utf-8", "backslashreplace")


def _file_of(stream: TextIO) -> WholeFile | None:
    """The file of the stream's descriptor; None if the stream is in memory."""
    try:
        return WholeFile(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return None


class LineOutput:
    """Writes lines to a stream's descriptor. When the disk is full, lines are dropped and counted.

    `as_line` formats the line that reports the drops. A stream in memory is used as it is.
    """

    def __init__(self, stream: TextIO, as_line: Callable[[str], str]) -> None:
        self._stream = stream
        self._file = _file_of(stream)
        # Checked now, because isatty(3) returns false for a terminal that has hung up.
        self._is_terminal = self._file is not None and self._file.isatty()
        self._as_line = as_line
        self._lost_lines = 0
        self._why = ""
        self._may_be_partial = False  # the last line could be written in part

    @property
    def loss(self) -> str:
        """The number of lines dropped since the last successful write, and the reason; "" if there are none."""
        return f"{self._lost_lines} ({self._why})" if self._lost_lines else ""

    def write(self, line: str) -> None:
        """Write the line, with its line break. Raises BrokenPipeError if its reader or the terminal is gone."""
        if self._file is None:
            self._stream.write(line)
            return
        prefix = "\n" if self._may_be_partial else ""
        if self._lost_lines:
            prefix += self._as_line(f"[poolctl: lines of output lost here: {self.loss}]")
        try:
            self._file.write(_encoded(f"{prefix}{line}", self._stream))
        except OSError as error:
            if error.errno == errno.EPIPE or (error.errno == errno.EIO and self._is_terminal):
                raise BrokenPipeError(errno.EPIPE, error.strerror) from error
            self._lost_lines += 1
            self._why = error.strerror or str(error)
            self._may_be_partial = self._may_be_partial or self._file.written_bytes > 0
        else:
            self._lost_lines, self._may_be_partial = 0, False


def without_commands(text: str) -> str:
    """The text with commands to a CI escaped (`#\\x23[`, `\\x3a:`), for the middle of a line."""
    text = _with_escaped_marks(text, "\\x23")
    if "section_" in text:
        for word in ("start:", "end:"):
            text = text.replace(f"section_{word}", f"section\\x5f{word}")
    if "::" in text and ("\n" in text or "\r" in text):
        import re

        text = re.sub(r"(?<=[\r\n])([^\S\r\n]*):(?=:)", r"\1\\x3a", text)
    return text


def lines_without_commands(text: str) -> str:
    """Like `without_commands`, for a text at the beginning of a line, where `::` is a command."""
    return without_commands(f"\n{text}")[1:]


def json_without_commands(document: Mapping[str, object]) -> str:
    """The document in JSON on one line, with commands to a CI escaped: `#\\u0023[`."""
    return _with_escaped_marks(json.dumps(document, default=str), "\\u0023")


def _with_escaped_marks(text: str, escape: str) -> str:
    if "##" in text:
        for mark in _MARKS:
            text = text.replace(mark, f"#{escape}{mark[2:]}")
    return text


def is_github() -> bool:
    """Whether GitHub's runner or a compatible one reads the output."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


class Annotations:
    """The annotations of one command in GitHub Actions, written to standard error; elsewhere none are written.

    Each is placed at its problem, or else at the server's table in the pool's `files`. There are at most
    MAX_ANNOTATIONS, and for a server at most one error and one warning without a place. Annotations of servers are
    omitted if `of_servers` is false, because `run` prints server events between their output.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget everything: another command begins."""
        self.files: Sequence[str] = ()
        self.of_servers = True
        self._written: set[tuple[str, str, Place | None]] = set()
        self._places: Mapping[str, Place] | None = None

    def write(self, level: str, text: str, *, server: str = "", place: Place | None = None) -> None:
        """Write the text as an "error" or "warning" at `place`, or else at the table of the server."""
        is_wanted = is_github() and (place or self.of_servers)
        if not is_wanted or len(self._written) == MAX_ANNOTATIONS:
            return
        subject = level, server if server and not place else text, place
        if subject in self._written:
            return
        self._written.add(subject)
        properties = ""
        if place := place or self._server_places().get(server):
            values = {"file": _path_in_workspace(place.file), "line": place.line, "col": place.column}
            pairs = (f"{name}={_escaped(str(value), ':,')}" for name, value in values.items() if value)
            properties = f" {','.join(pairs)}"
        sys.stderr.write(f"::{level}{properties}::{_escaped(text)}\n")

    def write_located(self, level: str, text: str) -> None:
        """Write a text that may begin with its place, `FILE:LINE:COLUMN: `, or with its server's name."""
        if not is_github():
            return
        import re

        from poolctl.config import Place

        name = text.partition(" ")[0].removesuffix(":")
        if name in self._server_places():
            self.write(level, text, server=name)
        elif (match := re.match(r"(.+?):(\d+)(?::(\d+))?: ", text)) and os.path.isfile(match[1]):
            place = Place(os.path.abspath(match[1]), int(match[2]), int(match[3] or 0))
            self.write(level, text[match.end() :], place=place)
        else:
            self.write(level, text)

    def _server_places(self) -> Mapping[str, Place]:
        if self._places is None:
            from poolctl.config import load
            from poolctl.errors import PoolError

            try:
                self._places = load(self.files, os.environ).server_places() if self.files else {}
            except PoolError:
                self._places = {}
        return self._places


# The annotations of the running command, which sets the pool's files.
command_annotations = Annotations()


def _path_in_workspace(file: str) -> str:
    """The path relative to GITHUB_WORKSPACE; a path outside of it stays unchanged."""
    if not (workspace := os.environ.get("GITHUB_WORKSPACE")):
        return file
    directory, name = os.path.split(file)
    path = os.path.join(os.path.realpath(directory), name)
    inside = os.path.join(os.path.realpath(workspace), "")
    return path.removeprefix(inside) if path.startswith(inside) else file


def _escaped(text: str, more: str = "") -> str:
    for char in f"%\r\n{more}":
        text = text.replace(char, f"%{ord(char):02X}")
    return text
