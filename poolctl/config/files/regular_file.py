"""Reads configuration files: bounded in size, and regular files only."""

from __future__ import annotations

import contextlib
import os
import re
import stat

from poolctl.safe_open import open_to_read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

LARGEST_BYTES = 8 * 1024 * 1024
SUFFIXES = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# A variable that is named by a key that ends in _env; compiled when it is used.
_NAMED = rb"""_env["']?\s*[=:]\s*["']?([A-Za-z_][A-Za-z0-9_]*)"""
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


def variables_named_in(files: Iterable[str]) -> set[str]:
    """The variables that `*_env` keys seem to name, found without parsing: for processes that start before that."""
    found: set[str] = set()
    for path in files:
        for name in _files(path):
            with contextlib.suppress(OSError, ValueError):
                content = read_regular(name)
                found.update(match.decode() for match in re.findall(_NAMED, content))
    return found


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    with contextlib.suppress(OSError):
        return [
            entry.path for entry in os.scandir(path) if os.path.splitext(entry.name)[1].lower() in SUFFIXES
        ]
    return []
