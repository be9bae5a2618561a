"""The last lines of log files, across their rotated predecessors."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping

from poolctl.safe_open import UnsafePath, open_file

from .log_line import LogLine, parse_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .line_filter import LineFilter

_BLOCK_BYTES = 64 * 1024
# The logger writes no longer lines. Files that other users can write may have any content, and any number.
LONGEST_LINE_BYTES = 1024 * 1024
MOST_FILES = 1000


class OpenLog:
    """A log file and its rotated predecessors, opened together so that a concurrent rotation has no effect.

    `parts` holds the descriptors with their sizes at that time, newest first; `current` is the first of them, for
    following it, or None if there is no such file. The caller closes it.
    """

    __slots__ = ("parts",)

    def __init__(self, path: str, most_files: int = MOST_FILES) -> None:
        self.parts: list[tuple[int, int]] = []
        seen = set()
        number = missing = 0
        # One may be missing: a writer killed while renaming them leaves a gap.
        while missing < 2 and number < most_files:
            try:
                fd = open_file(f"{path}.{number}" if number else path, os.O_RDONLY)
            except (FileNotFoundError, NotADirectoryError, UnsafePath):
                missing += number > 0
            except OSError as error:
                if self.parts and error.errno in (errno.EMFILE, errno.ENFILE):
                    break  # the newest files matter
                self.close()
                raise
            else:
                missing = 0
                status = os.fstat(fd)
                if status.st_ino in seen or stat.S_ISDIR(status.st_mode):
                    os.close(fd)  # it was just rotated, or is not a regular file
                else:
                    seen.add(status.st_ino)
                    self.parts.append((fd, status.st_size))
            number += 1

    def close(self) -> None:
        """Close its files."""
        for fd, _ in self.parts:
            os.close(fd)
        self.parts.clear()

    def tail(
        self, lines: int | None, *, since: str = "", name: str = "", wanted: LineFilter | None = None
    ) -> list[LogLine]:
        """The last `lines` lines (None: all) that are `wanted` and not older than `since` (a timestamp), oldest first.

        A line without a time belongs to the previous one.
        """
        found: list[LogLine] = []
        candidates = self._since(since, name)
        for line in candidates if wanted is None else wanted.backwards(candidates):
            if lines is not None and len(found) >= lines:
                break
            found.append(line)
        found.reverse()
        carry_times(found)
        return found

    def _since(self, since: str, name: str) -> Iterator[LogLine]:
        for raw in self.backwards():
            line = parse_line(raw, name)
            if since and line.time and line.time < since:
                break
            yield line

    def backwards(self) -> Iterator[bytes]:
        """All lines without line breaks, newest first, including an incomplete last line."""
        for fd, size in self.parts:
            yield from _lines_backwards(fd, size)


def tail(
    path: str,
    lines: int | None,
    *,
    since: str = "",
    name: str = "",
    most_files: int = MOST_FILES,
    wanted: LineFilter | None = None,
) -> list[LogLine]:
    """The last lines of the log at `path`, oldest first (see OpenLog.tail); empty if there is no log."""
    log = OpenLog(path, most_files)
    try:
        return log.tail(lines, since=since, name=name, wanted=wanted)
    finally:
        log.close()


def merged_tail(
    paths: Mapping[str, str], lines: int | None, *, since: str = "", wanted: LineFilter | None = None
) -> list[LogLine]:
    """The last `lines` lines of each of the logs (their paths by server name), in the order of time."""
    return in_order(
        line
        for name, path in paths.items()
        for line in tail(path, lines, since=since, name=name, wanted=wanted)
    )


def in_order(lines: Iterator[LogLine]) -> list[LogLine]:
    """The lines sorted by time; lines with equal times keep their order."""
    return sorted(lines, key=_time)


def carry_times(lines: list[LogLine], time: str = "") -> str:
    """Give lines without a time the previous line's; returns the last time. `time` applies before the first line."""
    for line in lines:
        time = line.time = line.time or time
    return time


def _time(line: LogLine) -> str:
    return line.time


def _lines_backwards(fd: int, end: int) -> Iterator[bytes]:
    """The lines before `end`, last line first, without line breaks, including an incomplete last line.

    An overlong line is cut, and nothing before it is read.
    """
    pending: list[bytes] = []  # the pieces of a line whose beginning is not read yet, last piece first
    position = end
    first = True
    while position > 0:
        size = min(_BLOCK_BYTES, position)
        position -= size
        pieces = os.pread(fd, size, position).split(b"\n")
        if first and pieces[-1] == b"":
            pieces.pop()
        first = False
        if len(pieces) > 1:
            yield _joined([*pending, pieces.pop()])
            pending = []
            while len(pieces) > 1:
                yield pieces.pop()
        pending.append(pieces.pop() if pieces else b"")
        if len(pending) * _BLOCK_BYTES > LONGEST_LINE_BYTES:
            break
    if end:
        yield _joined(pending)


def _joined(pieces: list[bytes]) -> bytes:
    return b"".join(reversed(pieces))
