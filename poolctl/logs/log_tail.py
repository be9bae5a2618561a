"""Reads the last lines of log files, and then follows new lines, like `tail -F` over several files, merged by time.

Only whole lines are returned, and rotations lose none; inotify(7) reports changes in directories.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from poolctl.platform import await_readable, c_library, checked
from poolctl.safe_open import UnsafePath, open_file

from .log_line import LogLine, parse_line

if TYPE_CHECKING:
    from .line_filter import LineFilter

# Called with the name of a server whose log cannot be read, and the reason.
Unreadable = Callable[[str, OSError], None]

_BLOCK_BYTES = 64 * 1024
# The logger does not exceed these limits. Files and directories that other users can write may.
MAX_LINE_BYTES = 1024 * 1024
MAX_FILES = 1000


class OpenLog:
    """A log file and its older rotated files, opened together so that a concurrent rotation has no effect.

    `parts` holds the descriptors with their sizes at that time, newest first. The caller closes it.
    """

    __slots__ = ("parts",)

    def __init__(self, path: str, max_files: int = MAX_FILES) -> None:
        self.parts: list[tuple[int, int]] = []
        seen = set()
        number = missing = 0
        # One number may be missing: a writer killed while renaming files leaves a gap.
        while missing < 2 and number < max_files:
            try:
                fd = open_file(path, os.O_RDONLY, suffix=f".{number}" if number else "")
            except (FileNotFoundError, NotADirectoryError, UnsafePath):
                missing += number > 0
            except OSError as error:
                if self.parts and error.errno in (errno.EMFILE, errno.ENFILE):
                    break  # the newest files matter most
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
        for fd, _ in self.parts:
            os.close(fd)
        self.parts.clear()

    def tail(
        self,
        lines: int | None,
        *,
        since: str = "",
        name: str = "",
        wanted: LineFilter | None = None,
        max_length: int | None = None,
    ) -> list[LogLine]:
        """The last `lines` lines (None: all), oldest first, that pass `wanted` and are not older than `since`.

        A line without a time has the time of the previous line. Lines are cut to `max_length` characters.
        """
        last_lines: list[LogLine] = []
        candidates = self._lines_since_newest_first(since, name)
        for line in candidates if wanted is None else wanted.filter_backwards(candidates):
            if lines is not None and len(last_lines) >= lines:
                break
            line.text = line.text[:max_length]
            last_lines.append(line)
        last_lines.reverse()
        carry_times(last_lines)
        return last_lines

    def _lines_since_newest_first(self, since: str, name: str) -> Iterator[LogLine]:
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
    max_files: int = MAX_FILES,
    wanted: LineFilter | None = None,
    max_length: int | None = None,
) -> list[LogLine]:
    """The last lines of the log at `path`, oldest first (see OpenLog.tail); empty if there is no log."""
    with contextlib.closing(OpenLog(path, max_files)) as log:
        return log.tail(lines, since=since, name=name, wanted=wanted, max_length=max_length)


def merged_tails(
    paths: Mapping[str, str],
    lines: int | None,
    *,
    since: str = "",
    wanted: LineFilter | None = None,
    unreadable: Unreadable | None = None,
) -> list[LogLine]:
    """The last `lines` lines of each of the logs (their paths by server name), in the order of time.

    A log that cannot be read is left out and passed to `unreadable`; without it OSError is raised.
    """
    merged: list[LogLine] = []
    for name, path in paths.items():
        try:
            merged += tail(path, lines, since=since, name=name, wanted=wanted)
        except OSError as error:
            if unreadable is None:
                raise
            unreadable(name, error)
    return in_order(iter(merged))


def in_order(lines: Iterator[LogLine]) -> list[LogLine]:
    """The lines sorted by time; lines with equal times keep their order."""
    return sorted(lines, key=lambda line: line.time)


def carry_times(lines: list[LogLine], time: str = "") -> str:
    """Give each line without a time the time of the line before it (first line: `time`); return the last time."""
    for line in lines:
        time = line.time = line.time or time
    return time


def _lines_backwards(fd: int, end: int) -> Iterator[bytes]:
    """The lines of the file `fd` before the offset `end`, last line first, without line breaks.

    Includes an incomplete last line. A line that is too long is cut, and nothing before it is read.
    """
    pending: list[bytes] = []  # pieces of a line whose beginning has not been read yet, last piece first
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
            yield b"".join(reversed([*pending, pieces.pop()]))
            pending = []
            while len(pieces) > 1:
                yield pieces.pop()
        pending.append(pieces.pop() if pieces else b"")
        if len(pending) * _BLOCK_BYTES > MAX_LINE_BYTES:
            break
    if end:
        yield b"".join(reversed(pending))


_CHANGES = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200  # IN_MODIFY, ATTRIB, MOVED_FROM, MOVED_TO, CREATE, DELETE
# Entries that come and go, without writes to files: IN_MASK_ADD, MOVED_FROM, MOVED_TO, CREATE, DELETE.
ENTRIES = 0x20000000 | 0x40 | 0x80 | 0x100 | 0x200
REMOVALS = 0x200 | 0x400 | 0x800  # IN_DELETE, DELETE_SELF, MOVE_SELF
_EVENT = struct.Struct("iIII")
_EVENTS_BYTES = 64 * 1024


_ATTRIBUTES = 0x4
_TOUCHED_SECONDS = 1.0


def _is_touched(path: str) -> bool:
    """Whether the last change of the file's attributes set the time of its content to now, as touch(1) does."""
    try:
        status = os.stat(path)
    except OSError:
        return True
    return status.st_ctime - status.st_mtime < _TOUCHED_SECONDS


class DirectoryWatch:
    """Reports which files in some directories were written, touched, moved or removed; with `permissions`, also chmod.

    The constructor raises OSError where inotify is not available.
    """

    __slots__ = ("_directories", "_permissions", "fd")

    def __init__(self, *, permissions: bool = True) -> None:
        self._directories: dict[int, str] = {}
        self._permissions = permissions
        self.fd = checked(c_library().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add_if_new(self, directory: str, changes: int = _CHANGES) -> bool:
        """Watch a directory; returns whether it is newly watched. Raises OSError (FileNotFoundError if missing)."""
        number = checked(c_library().inotify_add_watch(self.fd, os.fsencode(directory), changes))
        is_new = number not in self._directories
        if is_new and directory in self._directories.values():
            self._forget_replaced(directory)
        self._directories[number] = directory
        return is_new

    def _forget_replaced(self, directory: str) -> None:
        """Stop watching the directory that had this path before, and directories in it: their new paths are unknown."""
        for number, path in self._directories.items():
            if path == directory or path.startswith(f"{directory}/"):
                self._directories[number] = ""
                with contextlib.suppress(OSError):  # it may have been removed
                    checked(c_library().inotify_rm_watch(self.fd, number))

    def changed(self) -> set[str] | None:
        """The paths changed since the last call; None if events were lost, so any may have changed. Does not block."""
        paths: set[str] = set()
        try:
            events = os.read(self.fd, _EVENTS_BYTES)
        except BlockingIOError:
            return paths
        at = 0
        while at < len(events):
            number, mask, _, length = _EVENT.unpack_from(events, at)
            if number not in self._directories:  # -1: the kernel's queue has overflowed
                return None
            name = events[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
            path = os.path.join(self._directories[number], os.fsdecode(name))
            is_left_out = mask & _ATTRIBUTES and not self._permissions and not _is_touched(path)
            if self._directories[number] and not is_left_out:
                paths.add(path)
            at += _EVENT.size + length
        return paths

    def wait(self, seconds: float | None) -> bool:
        """Block until something has changed, at most for `seconds` (None: without a limit); returns whether it has."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def close(self) -> None:
        os.close(self.fd)


_READ_BYTES = 256 * 1024
# Maximum bytes per read: a file that other users can write may grow by any amount.
MAX_READ_BYTES = 64 * 1024 * 1024

Finished = tuple[int, int, int]
_POLL_SECONDS = 0.1
# Longer than it takes to store a line, and longer than a reader's pass over all files.
SETTLE_SECONDS = 0.03


class TailedFile:
    """A log file that is read as it grows; it may be rotated, emptied, or not exist yet."""

    __slots__ = ("_fd", "_inode", "_offset", "_older", "_partial", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._inode = 0
        self._offset = 0
        self._partial = b""
        self._older: set[Finished] = set()

    def begin(self, log: OpenLog) -> None:
        """Start at the end of `log`; an incomplete last line counts as read."""
        self._older = {_finished_file_identity(os.fstat(fd)) for fd, _ in log.parts[1:]}
        if log.parts:
            fd, self._offset = log.parts[0]
            self._fd = os.dup(fd)
            self._inode = os.fstat(fd).st_ino

    def read(self) -> list[bytes]:
        """The complete lines added since the last call, without line breaks."""
        added = self._read_added_lines()
        while newer := self._open_newer_logs():
            for fd in newer:
                added += self._read_added_lines()
                if self._partial:
                    added.append(self._partial)
                if self._fd >= 0:
                    self._older.add(_finished_file_identity(os.fstat(self._fd)))
                self.close()
                self._fd, self._offset, self._partial = fd, 0, b""
                self._inode = os.fstat(fd).st_ino
            added += self._read_added_lines()
        return added

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_added_lines(self) -> list[bytes]:
        if self._fd < 0:
            return []
        size = os.fstat(self._fd).st_size
        if size < self._offset:  # emptied by another program
            self._offset, self._partial = 0, b""
        lines = []
        if size - self._offset > MAX_READ_BYTES:
            skipped = size - MAX_READ_BYTES - self._offset
            lines.append(self._partial + b"... (%d bytes are left out here)" % skipped)
            self._offset, self._partial = self._offset + skipped, b""
        while data := os.pread(self._fd, _READ_BYTES, self._offset):
            self._offset += len(data)
            *whole, self._partial = (self._partial + data).split(b"\n")
            lines += whole
            if len(self._partial) > MAX_LINE_BYTES:
                lines.append(self._partial)
                self._partial = b""
        return lines

    def _open_newer_logs(self) -> list[int]:
        """Open the log files that are newer than the current file; returns their descriptors, oldest first."""
        try:
            if self._fd >= 0 and os.stat(self.path).st_ino == self._inode:
                return []
        except OSError:
            return []
        log = OpenLog(self.path)
        newer = 0
        for fd, _ in log.parts:
            status = os.fstat(fd)
            if (self._fd >= 0 and status.st_ino == self._inode) or _finished_file_identity(
                status
            ) in self._older:
                break
            newer += 1
        for fd, _ in log.parts[newer:]:
            os.close(fd)
        return [fd for fd, _ in reversed(log.parts[:newer])]


def _finished_file_identity(status: os.stat_result) -> Finished:
    """Return the inode number, modification time and size, which identify a log file that is no longer written to."""
    # The inode number alone is soon reused.
    return status.st_ino, status.st_mtime_ns, status.st_size


class Follower:
    """Reads new lines of several logs (paths by server name), each batch sorted by time.

    `first` has the last `lines` existing lines of each log, from the time `since` on. Only lines that pass `wanted` are
    returned. Without inotify, the caller polls ten times a second (see `poll_seconds`). `unreadable` is called once for
    a log that cannot be read, which is tried again when it changes; without `unreadable`, OSError is raised.
    """

    def __init__(
        self,
        paths: Mapping[str, str],
        *,
        lines: int | None = 0,
        since: str = "",
        wanted: LineFilter | None = None,
        unreadable: Unreadable | None = None,
    ) -> None:
        self._wanted = wanted
        self._unreadable = unreadable
        self._reported_unreadable: set[str] = set()  # names of servers
        self._logs: dict[str, list[tuple[str, TailedFile]]] = {}
        self._paths_to_watch: dict[str, set[str]] = {}
        self._last_times: dict[str, str] = {}
        self._missing: set[str] = set()
        self._watch: DirectoryWatch | None = None
        with contextlib.suppress(OSError):
            self._watch = DirectoryWatch()
        self.first: list[LogLine] = []
        for name, path in paths.items():
            self._add(name, os.path.abspath(path), lines, since)
        self.first = in_order(iter(self.first))

    def fileno(self) -> int:
        """The descriptor that is readable when there may be new lines; -1 without inotify."""
        return self._watch.fd if self._watch else -1

    @property
    def poll_seconds(self) -> float | None:
        """The interval at which to call `read`; None if `fileno` reports every change."""
        return None if self._watch is not None and not self._missing else _POLL_SECONDS

    def wait_for_new_lines(self, timeout_seconds: float | None, *, reader: int) -> bool:
        """Wait up to `timeout_seconds` for new lines; returns whether there may be any.

        Raises BrokenPipeError when nothing reads from the pipe or socket `reader` any longer.
        """
        if self.poll_seconds is None:
            return await_readable(self.fileno(), timeout_seconds, reader)
        seconds = self.poll_seconds if timeout_seconds is None else min(self.poll_seconds, timeout_seconds)
        await_readable(-1, seconds, reader)
        return True

    def read(self) -> list[LogLine]:
        """The new lines. Does not block."""
        polled = self._watch is None or bool(self._missing)
        for directory in list(self._missing):
            self._watch_directory(directory)
        changed = None if self._watch is None else self._watch.changed()
        added: list[LogLine] = []
        for path, logs in self._logs.items():
            if polled or changed is None or not changed.isdisjoint(self._paths_to_watch[path]):
                self._watch_file(path)
                for name, log in logs:
                    with self._reporting(name):
                        added += self._wanted_lines(name, log)
        return in_order(iter(added))

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        for logs in self._logs.values():
            for _, log in logs:
                log.close()

    def _add(self, name: str, path: str, lines: int | None, since: str) -> None:
        # Watched before it is read, so that no line in between is missed.
        self._watch_file(path)
        growing = TailedFile(path)
        self._logs.setdefault(path, []).append((name, growing))
        self._last_times[name] = ""
        with self._reporting(name), contextlib.closing(OpenLog(path)) as log:
            last = [] if lines == 0 else log.tail(lines, since=since, name=name, wanted=self._wanted)
            self.first += last
            unfiltered = log.tail(1, name=name) if lines == 0 or self._wanted is not None else last
            self._last_times[name] = carry_times(unfiltered)
            growing.begin(log)

    @contextlib.contextmanager
    def _reporting(self, name: str) -> Iterator[None]:
        """Context manager: report a log that cannot be read; the others are read nevertheless."""
        try:
            yield
        except OSError as error:
            if self._unreadable is None:
                raise
            if name not in self._reported_unreadable:
                self._reported_unreadable.add(name)
                self._unreadable(name, error)
        else:
            self._reported_unreadable.discard(name)

    def _watch_file(self, path: str) -> None:
        """Watch the directory of the file; if it is a symbolic link, also the directory of the file it leads to."""
        link = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        paths = {link, os.path.realpath(link)}
        if self._paths_to_watch.get(path) != paths:
            self._paths_to_watch[path] = paths
            for watched in paths:
                self._watch_directory(os.path.dirname(watched))

    def _watch_directory(self, directory: str) -> None:
        if self._watch is None:
            return
        try:
            self._watch.add_if_new(directory)
        except OSError:
            self._missing.add(directory)
        else:
            self._missing.discard(directory)

    def _wanted_lines(self, name: str, log: TailedFile) -> list[LogLine]:
        lines = [parse_line(raw, name) for raw in log.read()]
        self._last_times[name] = carry_times(lines, self._last_times[name])
        return lines if self._wanted is None else self._wanted.filter_forwards(lines)


def follow(
    paths: Mapping[str, str],
    *,
    lines: int | None = 0,
    since: str = "",
    wanted: LineFilter | None = None,
    unreadable: Unreadable | None = None,
    reader: int = -1,
) -> Iterator[LogLine]:
    """Yield the last `lines` lines of each log, then every new line, if they pass `wanted`. Blocks between lines.

    Never ends. Raises BrokenPipeError when nothing reads from the pipe or socket `reader` any longer. For `unreadable`
    see Follower.
    """
    follower = Follower(paths, lines=lines, since=since, wanted=wanted, unreadable=unreadable)
    merge = LogReorderBuffer()
    try:
        # While one file was read, another may have got a line with an earlier time.
        yield from follower.first if len(paths) < 2 else merge.hold_back(follower.first)
        while True:
            fresh = follower.read()
            yield from fresh if len(paths) < 2 else merge.hold_back(fresh)
            if merge.holds:
                time.sleep(SETTLE_SECONDS)
            else:
                follower.wait_for_new_lines(None, reader=reader)
    finally:
        follower.close()


class LogReorderBuffer:
    """Sorts batches of lines by time. Each batch is held back until the next one, which may contain earlier lines."""

    def __init__(self) -> None:
        self._held: list[LogLine] = []

    @property
    def holds(self) -> bool:
        """Whether lines are held back; then the caller calls `hold_back` again SETTLE_SECONDS later."""
        return bool(self._held)

    def hold_back(self, lines: list[LogLine]) -> list[LogLine]:
        """Hold back `lines` until the next call, and return the lines held back before, sorted by time.

        A new line is returned at once if a line held back before is newer or has the same time.
        """
        newest = max((line.time for line in self._held), default="")
        merged = in_order(iter([*self._held, *lines]))
        due = sum(line.time <= newest for line in merged) if self._held else 0
        self._held = merged[due:]
        return merged[:due]
