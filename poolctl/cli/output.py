"""Output that is written whole, to pipes that do not block and to disks that may be full."""

from __future__ import annotations

import errno
import io
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from _typeshed import ReadableBuffer


class OutputError(OSError):
    """Output cannot be written, for example because the disk is full. Not raised if its reader is gone."""


class WholeFile(io.FileIO):
    """An open descriptor whose `write` writes everything, waiting where a pipe does not block. It stays open."""

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
    """Writes lines to a stream's descriptor. Those for which a disk has no room are dropped, and counted later.

    `as_line` makes that line, with its line break, of a text. A stream in memory is used as it is.
    """

    def __init__(self, stream: TextIO, as_line: Callable[[str], str]) -> None:
        self._stream = stream
        self._file = _file_of(stream)
        # Checked now, because isatty(3) returns false for a terminal that has hung up.
        self._is_terminal = self._file is not None and self._file.isatty()
        self._as_line = as_line
        self._lost_lines = 0
        self._why = ""
        self._is_torn = False  # the last line could be written in part

    @property
    def loss(self) -> str:
        """How many lines were dropped since the last one that could be written, and why; "" if none was."""
        return f"{self._lost_lines} ({self._why})" if self._lost_lines else ""

    def write(self, line: str) -> None:
        """Write the line, with its line break. Raises BrokenPipeError if its reader or the terminal is gone."""
        if self._file is None:
            self._stream.write(line)
            return
        before = "\n" if self._is_torn else ""
        if self._lost_lines:
            before += self._as_line(f"[poolctl: lines of output lost here: {self.loss}]")
        try:
            self._file.write(_encoded(f"{before}{line}", self._stream))
        except OSError as error:
            if error.errno == errno.EPIPE or (error.errno == errno.EIO and self._is_terminal):
                raise BrokenPipeError(errno.EPIPE, error.strerror) from error
            self._lost_lines += 1
            self._why = error.strerror or str(error)
            self._is_torn = self._is_torn or self._file.written_bytes > 0
        else:
            self._lost_lines, self._is_torn = 0, False
