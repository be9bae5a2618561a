"""A log file that is written in whole lines and rotated by size and age; a full disk only causes lost lines."""

from __future__ import annotations

import errno
import os
import stat
from itertools import pairwise

from poolctl.clock import Clock
from poolctl.private_directory import recreate_pool_directory
from poolctl.safe_open import open_file, open_parent_directory

from .log_line import parse_line, seconds_of, stamp

_FILE_MODE = 0o640
_CHECK_SECONDS = 1.0
_ROTATE_AGAIN_AFTER_SECONDS = 60.0
_FIRST_LINE_BYTES = 64
_MAX_SURPLUS_FILES = 100


class LogFile:
    """Appends blocks of whole lines to `path`; old files are `path.1` (the newest) to `path.keep`.

    If `path` is a symbolic link, the link stays, and the old files are next to its target. Missing directories are
    created for `owner` (uid, gid; by default this process's user); `pool_directory` is created private if the file is
    in it (see recreate_pool_directory). 0 for `max_size_bytes` or `max_age_seconds` means no limit.

    No method raises OSError: the return value says how much was written, and `error` why the rest was not. Every append
    tries again.
    """

    def __init__(
        self,
        path: str,
        *,
        max_size_bytes: int = 0,
        keep: int = 0,
        max_age_seconds: float = 0,
        owner: tuple[int, int] | None = None,
        pool_directory: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.path = path
        self._owner = owner
        is_in_pool = pool_directory is not None and path.startswith(f"{pool_directory}/")
        self._pool_directory = pool_directory if is_in_pool else None
        self.error = ""
        self.users = 0
        self.lost_bytes = 0  # bytes not stored since the last successful append
        self._clock = clock or Clock()
        self._fd = -1
        self._size = 0
        self._regular = True
        self._has_incomplete_end = False
        self._first_time = ""
        self._check_at = 0.0
        self._rotate_at = 0.0
        self.limit(max_size_bytes=max_size_bytes, keep=keep, max_age_seconds=max_age_seconds)

    def __repr__(self) -> str:
        return f"<LogFile {self.path}, {self.error or 'open'}>"

    def limit(self, *, max_size_bytes: int, keep: int, max_age_seconds: float) -> None:
        """Set the size and the age at which the file is rotated, and the number `keep` of old files that are kept."""
        self._max_size = max_size_bytes
        self._keep = keep
        self._max_age = max_age_seconds

    def append_and_count_written(self, block: bytes) -> int:
        """Append `block`; returns how many of its bytes were written: all, or as many whole lines as possible."""
        self._reopen_or_rotate_if_due()
        done = 0
        while done < len(block) and self._fd >= 0:
            end = self._fitting_end(block, done)
            if end == done:
                self._try_rotate()
                continue
            written = self._write(block[done:end])
            done += written
            if self.error:
                break
        return done

    def rotate_when_old(self) -> float | None:
        """Rotate the file if it is old enough; returns the seconds until the next check, or None without a limit."""
        if not self._max_age:
            return None
        if self._fd >= 0 or os.path.lexists(self.path):
            self._reopen_or_rotate_if_due()
        if self._fd < 0 or not self._size or not self._regular:
            return self._max_age
        clock = self._clock
        until_old = seconds_of(self._first_time) + self._max_age - clock.time()
        return max(until_old, self._rotate_at - clock.monotonic())

    def close(self) -> None:
        """Close the file, so that the next line opens its path again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _reopen_or_rotate_if_due(self) -> None:
        now = self._clock.monotonic()
        if self._fd >= 0 and self._regular and now >= self._check_at:
            self._check_at = now + _CHECK_SECONDS
            if not self._refresh_size_and_check_path():
                self.close()
        if self._fd < 0:
            self._try_open()
        if self._fd >= 0 and self._is_old():
            self._try_rotate()

    def _is_old(self) -> bool:
        if not self._max_age or not self._size or self._clock.monotonic() < self._rotate_at:
            return False
        return self._first_time <= stamp(self._clock.time() - self._max_age)

    def _try_open(self) -> None:
        try:
            if self._pool_directory is not None:
                recreate_pool_directory(self._pool_directory)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._fd = open_file(self.path, flags, _FILE_MODE, owner=self._owner, below=self._pool_directory)
            status = os.fstat(self._fd)
        except OSError as error:
            self.error = error.strerror or str(error)
            return
        self._regular = stat.S_ISREG(status.st_mode)
        self._size = status.st_size if self._regular else 0
        self._has_incomplete_end, self._first_time = self._read_ends()
        self._check_at = self._clock.monotonic() + _CHECK_SECONDS
        self.error = ""

    def _read_ends(self) -> tuple[bool, str]:
        """Whether the last line is incomplete, and the timestamp of the first line."""
        now = stamp(self._clock.time())
        if not self._size:
            return False, now
        try:
            fd = open_file(self.path, os.O_RDONLY)
        except OSError:
            return False, now
        try:
            torn = os.pread(fd, 1, self._size - 1) != b"\n"
            first = os.pread(fd, _FIRST_LINE_BYTES, 0).replace(b'{"time": "', b"").replace(b'"', b" ", 1)
        finally:
            os.close(fd)
        return torn, parse_line(first).time or now

    def _refresh_size_and_check_path(self) -> bool:
        try:
            current = os.stat(self.path)
        except OSError:
            return False
        opened = os.fstat(self._fd)
        self._size = opened.st_size  # another program may have truncated it
        return (current.st_dev, current.st_ino) == (opened.st_dev, opened.st_ino)

    def _fitting_end(self, block: bytes, start: int) -> int:
        """The index up to which `block[start:]` fits, in whole lines; `start` if the file must be rotated first."""
        if not self._max_size or not self._regular or self._clock.monotonic() < self._rotate_at:
            return len(block)
        room = self._max_size - self._size
        if len(block) - start <= room:
            return len(block)
        end = block.rfind(b"\n", start, max(start, start + room)) + 1
        if end <= start:
            return start if self._size else block.index(b"\n", start) + 1
        return end

    def _write(self, block: bytes) -> int:
        """Write the block; returns how many bytes of whole lines were written. Sets `error` if some were not."""
        self.error = ""
        missing_end = b"\n" if self._has_incomplete_end else b""
        block = missing_end + block
        done = 0
        try:
            while done < len(block):
                done += os.write(self._fd, block[done:])
            self._has_incomplete_end = False
        except OSError as error:
            self.error = error.strerror or str(error)
            done = self._truncate_to_whole_lines(block, done)
        self._size += done
        return max(0, done - len(missing_end))

    def _truncate_to_whole_lines(self, block: bytes, done: int) -> int:
        """Remove an incomplete last line from the file, after a failed write has stored `done` bytes of `block`.

        Return the size in bytes of the whole lines of `block` that were written.
        """
        whole = block.rfind(b"\n", 0, done) + 1
        self._has_incomplete_end = self._has_incomplete_end and not whole
        if whole == done:
            return done
        try:
            if os.fstat(self._fd).st_size != self._size + done:
                raise OSError(errno.EBUSY, "another program writes to it")
            os.ftruncate(self._fd, self._size + whole)
        except OSError:
            self._has_incomplete_end = True
            self._size += done - whole
        return whole

    def _try_rotate(self) -> None:
        if not self._regular:
            return
        try:
            self._shift_log_files()
        except OSError as error:
            # The directory may not be writable: letting the file grow is better than losing lines.
            self.error = f"cannot be rotated: {error.strerror}"
            self._rotate_at = self._clock.monotonic() + _ROTATE_AGAIN_AFTER_SECONDS
            return
        self.close()
        self._try_open()

    def _shift_log_files(self) -> None:
        # If a writer was killed during a rotation, a number is free: only the files before it are renamed.
        with open_parent_directory(self.path, follow_last=True) as (directory, name):
            # Bounded, because a user may create any number of such files in a directory of their own.
            free, most = 1, self._keep + _MAX_SURPLUS_FILES
            while free < most and _exists(f"{name}.{free}", directory):
                free += 1
            while free > max(self._keep, 1):
                free -= 1
                os.unlink(f"{name}.{free}", dir_fd=directory)
            if not self._keep:
                os.unlink(name, dir_fd=directory)
                return
            names = [name, *(f"{name}.{number}" for number in range(1, free + 1))]
            for newer, older in reversed(list(pairwise(names))):
                os.rename(newer, older, src_dir_fd=directory, dst_dir_fd=directory)


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
