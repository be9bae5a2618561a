"""Log files as they grow: whole lines, over rotation, several files merged."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator, Mapping

from .inotify import Watch
from .line import Line, parse_line
from .read import OpenLog, carry_times, in_order

_READ_BYTES = 256 * 1024
_POLL_SECONDS = 0.1

Finished = tuple[int, int, int]


class Growing:
    """One log file that is read as it grows, also when it is rotated, emptied, or not there yet."""

    __slots__ = ("_fd", "_inode", "_offset", "_older", "_partial", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._inode = 0
        self._offset = 0
        self._partial = b""
        self._older: set[Finished] = set()

    def begin(self, log: OpenLog) -> None:
        """Read on from where `log` ends; its unfinished last line counts as read."""
        self._older = {_finished(os.fstat(fd)) for fd, _ in log.parts[1:]}
        if log.parts:
            fd, self._offset = log.parts[0]
            self._fd = os.dup(fd)
            self._inode = os.fstat(fd).st_ino

    def read(self) -> list[bytes]:
        """The whole lines that came since the last call, without their ends."""
        found = self._rest()
        while self._advance(found):
            found += self._rest()
        return found

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _rest(self) -> list[bytes]:
        if self._fd < 0:
            return []
        if os.fstat(self._fd).st_size < self._offset:  # emptied by another program
            self._offset, self._partial = 0, b""
        found = []
        while data := os.pread(self._fd, _READ_BYTES, self._offset):
            self._offset += len(data)
            *whole, self._partial = (self._partial + data).split(b"\n")
            found += whole
        return found

    def _advance(self, found: list[bytes]) -> bool:
        """Go on to the file after this one, if there is one; adds what was still written to this one."""
        while True:
            place = self._place()
            if place == 0:
                return False
            following = self._oldest_unread() if place is None else place - 1
            try:
                fd = os.open(self._name(following), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
            if self._place() != place:  # rotated once more in this moment
                os.close(fd)
                continue
            found += self._rest()
            if self._partial:
                found.append(self._partial)
            self._leave()
            self._fd, self._offset, self._partial = fd, 0, b""
            self._inode = os.fstat(fd).st_ino
            return True

    def _name(self, number: int) -> str:
        return f"{self.path}.{number}" if number else self.path

    def _leave(self) -> None:
        if self._fd >= 0:
            self._older.add(_finished(os.fstat(self._fd)))
            self.close()

    def _files(self) -> Iterator[os.stat_result | None]:
        """The file and its predecessors, newest first; None for a file that is not there."""
        number = 0
        while True:
            try:
                yield os.stat(self._name(number))
            except OSError:
                if number:
                    return
                yield None
            number += 1

    def _place(self) -> int | None:
        """Under which number the open file is found: 0 for the current one; None if it was removed."""
        if self._fd < 0:
            return None
        for number, status in enumerate(self._files()):
            if status is not None and status.st_ino == self._inode:
                return number
        return None

    def _oldest_unread(self) -> int:
        oldest = 0
        for number, status in enumerate(self._files()):
            if number and status is not None and _finished(status) in self._older:
                break
            oldest = number
        return oldest


def _finished(status: os.stat_result) -> Finished:
    """What identifies a file that is not written to any more; the inode alone is soon used again."""
    return status.st_ino, status.st_mtime_ns, status.st_size


class Follower:
    """The lines of several logs (paths by server name) as they come, each batch in the order of time.

    `first` holds the last `lines` lines of each that were there before, not older than `since`. Without
    inotify the files are looked at ten times a second.
    """

    def __init__(self, paths: Mapping[str, str], *, lines: int | None = 0, since: str = "") -> None:
        self._logs: dict[str, list[tuple[str, Growing]]] = {}
        self._last_times: dict[str, str] = {}
        self._missing: set[str] = set()
        self._watch = _new_watch()
        self.first: list[Line] = []
        for name, path in paths.items():
            self._add(name, os.path.abspath(path), lines, since)
        self.first = in_order(iter(self.first))

    def fileno(self) -> int:
        """A descriptor that is readable when there may be new lines; -1 when there is none such."""
        return self._watch.fd if self._watch else -1

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Whether there may be new lines, at the latest after that time."""
        if self._watch is not None and not self._missing:
            milliseconds = None if timeout_seconds is None else timeout_seconds * 1000
            poll = select.poll()
            poll.register(self._watch.fd, select.POLLIN)
            return bool(poll.poll(milliseconds))
        time.sleep(_POLL_SECONDS if timeout_seconds is None else min(_POLL_SECONDS, timeout_seconds))
        return True

    def read(self) -> list[Line]:
        """What is new. Does not block."""
        polled = self._watch is None or bool(self._missing)
        for directory in list(self._missing):
            self._watch_directory(directory)
        changed = None if self._watch is None else self._watch.changed()
        found: list[Line] = []
        for path, logs in self._logs.items():
            if polled or changed is None or path in changed:
                for name, log in logs:
                    found += self._lines(name, log)
        return in_order(iter(found))

    def close(self) -> None:
        """Close every file."""
        if self._watch is not None:
            self._watch.close()
        for logs in self._logs.values():
            for _, log in logs:
                log.close()

    def _add(self, name: str, path: str, lines: int | None, since: str) -> None:
        self._watch_directory(
            os.path.dirname(path)
        )  # first, so that nothing comes between reading and watching
        growing = Growing(path)
        log = OpenLog(path)
        try:
            last = log.tail(1, name=name) if lines == 0 else log.tail(lines, since=since, name=name)
            self._last_times[name] = carry_times(last)
            self.first += [] if lines == 0 else last
            growing.begin(log)
        finally:
            log.close()
        self._logs.setdefault(path, []).append((name, growing))

    def _watch_directory(self, directory: str) -> None:
        if self._watch is None:
            return
        try:
            self._watch.add(directory)
        except OSError:
            self._missing.add(directory)
        else:
            self._missing.discard(directory)

    def _lines(self, name: str, log: Growing) -> list[Line]:
        lines = [parse_line(raw, name) for raw in log.read()]
        self._last_times[name] = carry_times(lines, self._last_times[name])
        return lines


def follow(
    paths: Mapping[str, str],
    *,
    lines: int | None = 0,
    since: str = "",
    until: Callable[[], bool] | None = None,
) -> Iterator[Line]:
    """The last `lines` lines of each log, then every new one as it comes; blocks in between.

    Ends when `until` is true (asked ten times a second) and what is there by then has been given; never
    without it.
    """
    follower = Follower(paths, lines=lines, since=since)
    try:
        yield from follower.first
        over = False
        while not over:
            over = until is not None and until()
            yield from follower.read()
            if not over:
                follower.wait(None if until is None else _POLL_SECONDS)
    finally:
        follower.close()


def _new_watch() -> Watch | None:
    try:
        return Watch()
    except (OSError, AttributeError):
        return None
