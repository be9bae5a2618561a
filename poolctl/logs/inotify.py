"""Reports changes of files in a directory (inotify(7)); Linux only."""

from __future__ import annotations

import ctypes
import os
import struct

_MODIFY, _MOVED_TO, _CREATE = 0x2, 0x80, 0x100
_ATTRIB, _MOVED_FROM, _DELETE = 0x4, 0x40, 0x200
_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 * 1024


class DirectoryWatch:
    """Reports which files in some directories were written or moved there. Raises OSError without inotify.

    With `departures` also those that were removed, moved away, or given other rights.
    """

    __slots__ = ("_directories", "_libc", "_mask", "fd")

    def __init__(self, *, departures: bool = False) -> None:
        self._mask = _MODIFY | _MOVED_TO | _CREATE
        if departures:
            self._mask |= _ATTRIB | _MOVED_FROM | _DELETE
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._directories: dict[int, str] = {}
        self.fd = _checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, directory: str) -> None:
        """Watch one more directory. Raises OSError (FileNotFoundError if it does not exist)."""
        number = _checked(self._libc.inotify_add_watch(self.fd, os.fsencode(directory), self._mask))
        self._directories[number] = directory

    def changed(self) -> set[str] | None:
        """The paths that changed since the last call; None if there were too many. Does not block."""
        found: set[str] = set()
        try:
            events = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return found
        at = 0
        while at < len(events):
            number, _, _, length = _EVENT.unpack_from(events, at)
            if number not in self._directories:
                return None
            name = events[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
            found.add(os.path.join(self._directories[number], os.fsdecode(name)))
            at += _EVENT.size + length
        return found

    def close(self) -> None:
        """Stop watching."""
        os.close(self.fd)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
