"""Follows several logs, merged."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping

from ..platform import await_readable
from .inotify import DirectoryWatch
from .log_line import LogLine, parse_line
from .read import OpenLog, carry_times, in_order
from .tail_file import TailedFile

_POLL_SECONDS = 0.1
# Longer than the delay from a line's time to its storage, and than a reader's pass over the files.
SETTLE_SECONDS = 0.03


class Follower:
    """The new lines of several logs (paths by server name), each batch in the order of time.

    `first` holds the last `lines` lines of each from before, not older than `since`. Without inotify the
    files are polled ten times a second.
    """

    def __init__(self, paths: Mapping[str, str], *, lines: int | None = 0, since: str = "") -> None:
        self._logs: dict[str, list[tuple[str, TailedFile]]] = {}
        self._last_times: dict[str, str] = {}
        self._missing: set[str] = set()
        self._watch = _new_watch()
        self.first: list[LogLine] = []
        for name, path in paths.items():
            self._add(name, os.path.abspath(path), lines, since)
        self.first = in_order(iter(self.first))

    def fileno(self) -> int:
        """A descriptor that is readable when there may be new lines; -1 without inotify."""
        return self._watch.fd if self._watch else -1

    def wait(self, timeout_seconds: float | None = None, *, reader: int = -1) -> bool:
        """Whether there may be new lines; returns after `timeout_seconds` at the latest.

        Raises BrokenPipeError when the pipe or socket `reader` has lost its reader.
        """
        if self._watch is not None and not self._missing:
            return await_readable(self._watch.fd, timeout_seconds, reader)
        seconds = _POLL_SECONDS if timeout_seconds is None else min(_POLL_SECONDS, timeout_seconds)
        await_readable(-1, seconds, reader)
        return True

    def read(self) -> list[LogLine]:
        """The new lines. Does not block."""
        polled = self._watch is None or bool(self._missing)
        for directory in list(self._missing):
            self._watch_directory(directory)
        changed = None if self._watch is None else self._watch.changed()
        found: list[LogLine] = []
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
        )  # first, so that no line is missed between reading and watching
        growing = TailedFile(path)
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

    def _lines(self, name: str, log: TailedFile) -> list[LogLine]:
        lines = [parse_line(raw, name) for raw in log.read()]
        self._last_times[name] = carry_times(lines, self._last_times[name])
        return lines


def follow(
    paths: Mapping[str, str],
    *,
    lines: int | None = 0,
    since: str = "",
    until: Callable[[], bool] | None = None,
    reader: int = -1,
) -> Iterator[LogLine]:
    """The last `lines` lines of each log, then every new one; blocks in between.

    Ends when `until` is true (called ten times a second) and the lines up to then have been returned; never
    without it. Raises BrokenPipeError when the pipe or socket `reader` has lost its reader.
    """
    follower = Follower(paths, lines=lines, since=since)
    merge = Merge()
    try:
        # While one file's last lines were read, an earlier line may have been added to another, as at every reading.
        yield from follower.first if len(paths) < 2 else merge.take(follower.first)
        over = False
        while not over:
            over = until is not None and until()
            fresh = follower.read()
            yield from fresh if len(paths) < 2 else merge.take(fresh)
            if merge.holds:
                time.sleep(SETTLE_SECONDS)
            elif not over:
                follower.wait(None if until is None else _POLL_SECONDS, reader=reader)
        yield from merge.rest()
    finally:
        follower.close()


def _new_watch() -> DirectoryWatch | None:
    try:
        return DirectoryWatch()
    except (OSError, AttributeError):
        return None


class Merge:
    """Holds each batch back until the next: while one file was read, an earlier line may have been added to another."""

    def __init__(self) -> None:
        self._held: list[LogLine] = []

    @property
    def holds(self) -> bool:
        """Whether lines are held back: call `take` again SETTLE_SECONDS later."""
        return bool(self._held)

    def take(self, lines: list[LogLine]) -> list[LogLine]:
        """The lines that no earlier one can precede any more, in order; `lines` were read just now."""
        newest = max((line.time for line in self._held), default="")
        merged = in_order(iter([*self._held, *lines]))
        due = sum(line.time <= newest for line in merged) if self._held else 0
        self._held = merged[due:]
        return merged[:due]

    def rest(self) -> list[LogLine]:
        """The lines held back."""
        held, self._held = self._held, []
        return held
