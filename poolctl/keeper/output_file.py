"""The file for the output of the pool's own processes: several of them append to it, and none may fill the disk."""

from __future__ import annotations

import contextlib
import os
import re
import stat

MAX_SIZE_BYTES = 1024 * 1024
_REPEATED_LINES = re.compile(rb"^(.*\n)\1+", re.MULTILINE)


def rotate_if_large(path: str) -> None:
    """Move the content of a file above MAX_SIZE_BYTES to `path.1`: its last part, with repeated lines counted.

    The file is truncated, not replaced: processes that are not notified have it open (O_APPEND). On a full disk the
    content is dropped. Raises OSError, FileNotFoundError among them.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_size <= MAX_SIZE_BYTES:
        return
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            _keep_old(fd, f"{path}.1")
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def _keep_old(fd: int, path: str) -> None:
    left_out = os.fstat(fd).st_size - MAX_SIZE_BYTES
    kept = os.pread(fd, MAX_SIZE_BYTES, left_out)
    kept = _REPEATED_LINES.sub(_counted, kept[kept.find(b"\n") + 1 :])
    with open(path, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as old:
        old.write(b"(%d bytes before this were left out)\n" % left_out)
        old.write(kept)


def _counted(lines: re.Match[bytes]) -> bytes:
    repeated = len(lines[0]) // len(lines[1]) - 1
    return b"%s(the line above was repeated %d time%s)\n" % (lines[1], repeated, b"s" * (repeated > 1))
