"""The page of memory on which the workers of one server see how many connections each of them has open.

Each worker writes its own slot, and holds a lock on it (fcntl(2), F_SETLK) that the kernel releases when the worker
ends, however it does: the slot of a worker that was killed does not count. Standard library only.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time

# The first word names the layout of the others.
_LAYOUT = int.from_bytes(b"peers\x02", "big")
_USED = 1  # slots that have been in use
_ANNOUNCED_UNTIL_NS = 2  # by the system's monotonic clock
# The slots: 0 for a worker that accepts nothing now, otherwise one more than its open connections, and above these bits
# how many of them are WebSockets.
_FIRST = 8
_BITS = 32
_MASK = 2**_BITS - 1
_END = mmap.PAGESIZE // 8
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MOMENT_NS = 50_000_000
_FLOCK = struct.Struct("hhqqi4x")


def new_page() -> int:
    """The descriptor of an empty page."""
    fd = os.memfd_create("poolctl-peers", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(fd, _LAYOUT.to_bytes(8, "little"), 0)
    os.ftruncate(fd, mmap.PAGESIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


class PeerCounts:
    """One worker's slot, with access to the other workers' slots. Owns the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._page = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")
        self._slot = self._free_slot()
        self.publish(None)

    @property
    def alone(self) -> bool:
        """Whether no other worker has ever used the page."""
        return self._page[_USED] == 1

    def publish(self, connections: int | None, websockets: int = 0) -> None:
        """Publish the number of open connections and of WebSockets among them; None if the worker does not accept."""
        used = self._slot - _FIRST + 1
        # At first, and again if another worker that joined at the same moment has overwritten it.
        if self._page[_USED] < used:
            self._page[_USED] = used
        self._page[self._slot] = 0 if connections is None else websockets << _BITS | connections + 1

    def others(self) -> list[int]:
        """The number of open connections of each other worker that accepts connections."""
        return [(each & _MASK) - 1 for each in self._others()]

    def others_websockets(self) -> list[int]:
        """The number of open WebSockets of each other worker that accepts connections."""
        return [each >> _BITS for each in self._others()]

    def _others(self) -> list[int]:
        end = min(_FIRST + self._page[_USED], _END)
        return [
            self._page[slot]
            for slot in range(_FIRST, end)
            if self._page[slot] and slot != self._slot and self._is_alive(slot)
        ]

    def announce_handover(self) -> None:
        """Announce that this worker is about to hand over connections, because it has too many."""
        self._page[_ANNOUNCED_UNTIL_NS] = time.monotonic_ns() + _MOMENT_NS

    @property
    def handover_announced(self) -> bool:
        """Whether a worker has just announced a handover."""
        now_ns = time.monotonic_ns()
        # No later than any of them announces it.
        return now_ns < self._page[_ANNOUNCED_UNTIL_NS] <= now_ns + _MOMENT_NS

    def close(self) -> None:
        """Free this worker's slot on the page."""
        self._page[self._slot] = 0
        os.close(self._fd)

    def _free_slot(self) -> int:
        for slot in range(_FIRST, _END):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
            except BlockingIOError:
                continue
            return slot
        raise BlockingIOError("no slot is free")

    def _is_alive(self, slot: int) -> bool:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0)
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_GETLK, asked))
        return bool(kind != fcntl.F_UNLCK)
