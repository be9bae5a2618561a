"""Reads configuration files: bounded in size, and regular files only."""

from __future__ import annotations

import os
import stat

from poolctl.safe_open import open_to_read

LARGEST_BYTES = 8 * 1024 * 1024
SUFFIXES = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_CHUNK_BYTES = 1024 * 1024


class NotRegular(OSError):
    """The path is not a regular file but `what`."""

    def __init__(self, what: str) -> None:
        super().__init__(f"this is {what}, not a file")
        self.what = what


def read_regular(path: str, most_bytes: int = LARGEST_BYTES, *, for_another_user: bool = False) -> bytes:
    """The first `most_bytes` of a file. Raises NotRegular, other OSErrors, and ValueError for a NUL in the path.

    `for_another_user`: the content goes to a server of another user, whose links are to lead to none of our files.
    BlockingIOError is a file of the kernel's that has nothing to say now, such as /proc/kmsg.
    """
    # A FIFO would wait for its writer, a terminal become the controlling one.
    if for_another_user:
        descriptor = open_to_read(path)
    else:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise NotRegular(next((words for test, words in _KINDS if test(mode)), "something else"))
        content = b""
        # Until the end: what fstat says of the size of a file in /proc is 0.
        while len(content) < most_bytes:
            chunk = os.read(descriptor, min(_CHUNK_BYTES, most_bytes - len(content)))
            if not chunk:
                break
            content += chunk
        return content
    finally:
        os.close(descriptor)
