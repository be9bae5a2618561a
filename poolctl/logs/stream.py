"""One server's output: the read end of its pipe, cut into lines, on its way into a file."""

from __future__ import annotations

import os

from .file import LogFile
from .line import as_json, as_text, stamp

# One read a turn, so that a server that floods its output does not starve the others.
READ_BYTES = 64 * 1024
# A longer line is broken into several: memory is bounded whatever a server prints.
MAX_LINE_BYTES = 64 * 1024


class Stream:
    """Moves what arrives at `fd` into `file`, whole lines at a time.

    `dropped_bytes` counts what the file did not take, `id` is the supervisor's name for the stream.
    """

    __slots__ = (
        "_format",
        "_lost_bytes",
        "_partial",
        "dropped_bytes",
        "fd",
        "file",
        "id",
        "name",
        "order",
        "pid",
    )

    def __init__(self, id: str, fd: int, file: LogFile, *, name: str, pid: int, format: str) -> None:
        self.id = id
        self.fd = fd
        self.file = file
        self.name = name
        self.pid = pid
        self.dropped_bytes = 0
        self.order: dict[str, object] = {}  # by which it was made, for another logger
        self._format = format
        self._lost_bytes = 0
        self._partial = b""

    def __repr__(self) -> str:
        return f"<Stream {self.id} to {self.file.path}>"

    def pump(self, now: float) -> int:
        """Move one read's worth; the number of bytes, 0 at the end of the pipe.

        Raises BlockingIOError when nothing is there.
        """
        data = os.read(self.fd, READ_BYTES)
        end = data.rfind(b"\n") + 1
        if end:
            self._store(self._partial + data[:end], now)
            self._partial = data[end:]
        else:
            self._partial += data
        if len(self._partial) >= MAX_LINE_BYTES:
            self.finish(now)
        return len(data)

    def finish(self, now: float) -> None:
        """End the line that has no end yet, if there is one."""
        if self._partial:
            self._store(self._partial + b"\n", now)
            self._partial = b""

    def close(self) -> None:
        """Close the pipe's end; the file is its owner's."""
        os.close(self.fd)

    def _store(self, lines: bytes, now: float) -> None:
        if self._lost_bytes and self._append(self._gap(), now):
            self._lost_bytes = 0
        lost = len(lines) if self._lost_bytes else self._append_counting(lines, now)
        self._lost_bytes += lost
        self.dropped_bytes += lost

    def _gap(self) -> bytes:
        reason = f" ({self.file.error})" if self.file.error else ""
        return f"[poolctl: {self._lost_bytes} bytes of output were lost here{reason}]\n".encode()

    def _append(self, lines: bytes, now: float) -> bool:
        return self._append_counting(lines, now) == 0

    def _append_counting(self, lines: bytes, now: float) -> int:
        """How many of the bytes were not stored."""
        when = stamp(now)
        block = as_json(lines, when, self.name, self.pid) if self._format == "json" else as_text(lines, when)
        stored = self.file.append(block)
        missing = block.count(b"\n", stored)
        if not missing:
            return 0
        return sum(len(line) + 1 for line in lines[:-1].split(b"\n")[-missing:])
