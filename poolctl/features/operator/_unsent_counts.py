"""Counts of requests that no operator knows of yet, by service, in a file that outlives the process that counts.

The file is mapped into memory: to count is to add to an integer, and SIGKILL loses nothing. Standard library only.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import secrets

PREFIX = "operator-counts."
# Identifies the layout; a file with another layout is left alone.
LAYOUT = int.from_bytes(b"poolop\x00\x01", "big")
# A record: its count, when its service may be reported again (ns of the system's monotonic clock), the length of the
# service's name, and the name. The first record is the header: the layout, and the number of records.
RECORD_BYTES = 512
_WORDS = RECORD_BYTES // 8
COUNT, DUE_NS, _LENGTH, _NAME = 0, 1, 2, 3
MOST_NAME_BYTES = RECORD_BYTES - 8 * _NAME
_FIRST_RECORDS = 8

logger = logging.getLogger("poolctl.gateway")


class UnsentCounts:
    """A page of counts. `words[slot]` is the count of a service, and `words[slot + DUE_NS]` when it may be reported.

    With a directory the page is a file in it, which this process has locked; otherwise it is memory of this process.
    `words` is replaced when the page grows.
    """

    def __init__(self, directory: str = "") -> None:
        self.words = memoryview(bytearray(RECORD_BYTES * _FIRST_RECORDS)).cast("Q")
        self._directory = directory
        self._path = ""
        self._fd = -1
        self._free: list[int] = []
        if directory:
            try:
                self._create()
            except OSError as error:
                self._only_in_memory(error)
        self.words[0] = LAYOUT

    def __repr__(self) -> str:
        return f"<UnsentCounts: {self.words[1]} services{', ' if self._path else ''}{self._path}>"

    def slot(self, service: str) -> int:
        """Allocate a place for the counts of a new service."""
        name = service.encode()
        slot = self._free.pop() if self._free else self._new()
        # A process killed here leaves a place without a count.
        self.words[slot : slot + _NAME] = memoryview(bytes(8 * _NAME)).cast("Q")
        self.words[slot + _LENGTH] = length = len(name) if len(name) <= MOST_NAME_BYTES else 0
        if length:
            # With a longer name the counts do not outlive the process.
            place = memoryview(self.words).cast("B")
            place[(slot + _NAME) * 8 : (slot + _NAME) * 8 + length] = name
        return slot

    def release(self, slot: int) -> None:
        """Let another service have the place."""
        self.words[slot + COUNT] = 0
        self._free.append(slot)

    def close(self) -> None:
        """Leave the counts to the process that takes them over; without any the file is removed."""
        if self._fd >= 0:
            if self._path and not any(count for _, count, _ in _records(self.words)):
                _unlink(self._path)
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # the mapping has a descriptor of its own
            os.close(self._fd)
            self._fd, self._path = -1, ""

    def others(self) -> list[OtherCounts]:
        """The counts of other processes in the directory, whether they still run or have ended."""
        if not self._path:
            return []
        try:
            names = os.listdir(self._directory)
        except OSError:
            return []
        paths = [os.path.join(self._directory, name) for name in names if name.startswith(PREFIX)]
        return [other for path in paths if path != self._path and (other := _opened(path)) is not None]

    def _create(self) -> None:
        # Locked before another process can find it.
        name = f"{os.getpid()}.{secrets.token_hex(4)}"
        path = os.path.join(self._directory, f".{PREFIX}{name}")
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._map(RECORD_BYTES * _FIRST_RECORDS)
        self.words[0] = LAYOUT
        self._path = os.path.join(self._directory, PREFIX + name)
        os.rename(path, self._path)

    def _map(self, size: int) -> None:
        # Fails on a full disk; without it a write into the memory would end the process by SIGBUS.
        os.posix_fallocate(self._fd, 0, size)
        self.words = memoryview(mmap.mmap(self._fd, size)).cast("Q")

    def _new(self) -> int:
        number = self.words[1] + 1
        if (number + 1) * _WORDS > len(self.words):
            self._grow(2 * self.words.nbytes)
        self.words[1] = number
        return number * _WORDS

    def _grow(self, size: int) -> None:
        before = self.words
        if self._fd >= 0:
            try:
                self._map(size)
            except OSError as error:
                self._only_in_memory(error)
            else:
                return
        self.words = memoryview(bytearray(size)).cast("Q")
        self.words[: len(before)] = before

    def _only_in_memory(self, error: OSError) -> None:
        """Continue without a file: unsent counts are lost if the process is killed."""
        logger.error("unsent counts for the operator are kept in memory only: %s", error)
        if self._fd >= 0:
            if self._path:
                _unlink(self._path)
            os.close(self._fd)
        self._fd, self._path = -1, ""


class OtherCounts:
    """The counts of another process, which this process may take over when the other has ended."""

    def __init__(self, path: str, fd: int, words: memoryview) -> None:
        self.path = path
        self._fd = fd
        self._words = words

    def __repr__(self) -> str:
        return f"<OtherCounts {self.path}>"

    def due_ns(self) -> dict[str, int]:
        """When each of its services may be reported again."""
        return {name: self._words[slot + DUE_NS] for name, _, slot in _records(self._words)}

    def is_left(self) -> bool:
        """Whether its process has ended; if so, this process now holds the lock."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def counts(self) -> list[tuple[str, int, int]]:
        """The services with a count, the counts, and their slots for `taken`."""
        return [each for each in _records(self._words) if each[1]]

    def taken(self, slot: int) -> None:
        """Clear this count, which has been taken over."""
        self._words[slot + COUNT] = 0

    def remove(self) -> None:
        """Remove the file, because all of its counts were taken."""
        _unlink(self.path)
        self.close()

    def close(self) -> None:
        """Close the file without changing it."""
        self._words.release()
        os.close(self._fd)


def _opened(path: str) -> OtherCounts | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        words = memoryview(mmap.mmap(fd, os.fstat(fd).st_size)).cast("Q")
        if words[0] == LAYOUT:
            return OtherCounts(path, fd, words)
    except (OSError, ValueError, IndexError, TypeError):
        logger.warning("%s holds no counts", path)
    os.close(fd)
    return None


def _records(words: memoryview) -> list[tuple[str, int, int]]:
    """Name, count and slot of each record."""
    content, found = words.cast("B"), []
    last = min(words[1], len(words) // _WORDS - 1)
    for slot in range(_WORDS, (last + 1) * _WORDS, _WORDS):
        start, length = (slot + _NAME) * 8, min(words[slot + _LENGTH], MOST_NAME_BYTES)
        if length:
            name = bytes(content[start : start + length]).decode(errors="replace")
            found.append((name, words[slot + COUNT], slot))
    return found


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
