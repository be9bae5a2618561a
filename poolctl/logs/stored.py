"""How much of a block of lines a writer that was killed has put into a file."""

from __future__ import annotations

import os

from poolctl.safe_open import open_file

_MOST_FILES = 100
_HEAD_BYTES = 28  # the time that every line of the block begins with


def stored_part(path: str, block: bytes) -> int:
    """The length of the longest beginning of `block` with which the log ends, rotated files included."""
    text = _ending(path, len(block))
    head = block[:_HEAD_BYTES]
    at = text.find(head)
    while at >= 0:
        if block.startswith(text[at:]):
            return len(text) - at
        at = text.find(head, at + 1)
    if text.endswith(b"\n"):
        return 0
    return next((length for length in range(len(head), 0, -1) if text.endswith(head[:length])), 0)


def _ending(path: str, length: int) -> bytes:
    """The last bytes of a log; the file itself may be missing when it has just been rotated."""
    found = b""
    number = 0
    while len(found) < length and number < _MOST_FILES:
        try:
            fd = open_file(f"{path}.{number}" if number else path, os.O_RDONLY)
        except OSError:
            if number:
                break
        else:
            size = os.fstat(fd).st_size
            wanted = min(size, length - len(found))
            found = os.pread(fd, wanted, size - wanted) + found
            os.close(fd)
        number += 1
    return found
