"""Follows one log file in whole lines, across rotations."""

from __future__ import annotations

import os
from collections.abc import Iterator

from poolctl.safe_open import UnsafePath, open_file

from .read import LONGEST_LINE_BYTES, MOST_FILES, OpenLog

_READ_BYTES = 256 * 1024
# The most to read at once: a file that other users can write may grow by any amount.
_MOST_BYTES = 64 * 1024 * 1024

Finished = tuple[int, int, int]


class TailedFile:
    """One log file that is read as it grows, also when it is rotated, emptied, or does not exist yet."""

    __slots__ = ("_fd", "_inode", "_offset", "_older", "_partial", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._inode = 0
        self._offset = 0
        self._partial = b""
        self._older: set[Finished] = set()

    def begin(self, log: OpenLog) -> None:
        """Continue from the end of `log`; its incomplete last line counts as read."""
        self._older = {_finished(os.fstat(fd)) for fd, _ in log.parts[1:]}
        if log.parts:
            fd, self._offset = log.parts[0]
            self._fd = os.dup(fd)
            self._inode = os.fstat(fd).st_ino

    def read(self) -> list[bytes]:
        """The whole lines added since the last call, without their ends."""
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
        size = os.fstat(self._fd).st_size
        if size < self._offset:  # emptied by another program
            self._offset, self._partial = 0, b""
        found = []
        if size - self._offset > _MOST_BYTES:
            skipped = size - _MOST_BYTES - self._offset
            found.append(self._partial + b"... (%d bytes are left out here)" % skipped)
            self._offset, self._partial = self._offset + skipped, b""
        while data := os.pread(self._fd, _READ_BYTES, self._offset):
            self._offset += len(data)
            *whole, self._partial = (self._partial + data).split(b"\n")
            found += whole
            if len(self._partial) > LONGEST_LINE_BYTES:
                found.append(self._partial)
                self._partial = b""
        return found

    def _advance(self, found: list[bytes]) -> bool:
        """Switch to the next newer file, if there is one; adds the rest of this one."""
        while True:
            place = self._place()
            if place == 0:
                return False
            following = self._oldest_unread() if place is None else self._newer(place)
            try:
                fd = open_file(self._name(following), os.O_RDONLY)
            except (FileNotFoundError, UnsafePath):
                return False
            if self._place() != place:  # rotated once more in between
                os.close(fd)
                continue
            found += self._rest()
            if self._partial:
                found.append(self._partial)
            self._leave()
            self._fd, self._offset, self._partial = fd, 0, b""
            self._inode = os.fstat(fd).st_ino
            return True

    def _newer(self, place: int) -> int:
        """The number of the file that was begun after this one."""
        missing = place > 1 and not os.path.exists(self._name(place - 1))
        return place - 2 if missing else place - 1

    def _name(self, number: int) -> str:
        return f"{self.path}.{number}" if number else self.path

    def _leave(self) -> None:
        if self._fd >= 0:
            self._older.add(_finished(os.fstat(self._fd)))
            self.close()

    def _files(self) -> Iterator[os.stat_result | None]:
        """The file and its predecessors, newest first; None for a missing one."""
        number = missing = 0
        while missing < 2 and number < MOST_FILES:
            try:
                yield os.stat(self._name(number))
                missing = 0
            except OSError:
                missing += number > 0
                yield None
            number += 1

    def _place(self) -> int | None:
        """The number of the open file: 0 for the current one; None if it was removed."""
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
            if status is not None or not number:
                oldest = number
        return oldest


def _finished(status: os.stat_result) -> Finished:
    """What identifies a file that is not written to any more; the inode alone is soon used again."""
    return status.st_ino, status.st_mtime_ns, status.st_size
