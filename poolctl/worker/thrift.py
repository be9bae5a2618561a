"""Memory that a worker need not hold: pages of the event loop that are still blank."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

_DONTNEED = 4  # MADV_DONTNEED of madvise(2)
_libc = ctypes.CDLL(None)
_BLANK = bytes(mmap.PAGESIZE)


def give_back_blank_pages(loop: Any) -> int:
    """How many bytes of the loop's own memory went back to the system, which hands out blank pages again on use.

    uvloop keeps a receive buffer of 250 KB inside its loop object, and the interpreter blanks it at its creation: as
    much as a twentieth of a worker, before the first byte has come. Call it before anything runs in the loop.
    """
    first = -(-id(loop) // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (id(loop) + type(loop).__basicsize__) // mmap.PAGESIZE * mmap.PAGESIZE
    given = 0
    for page in range(first, end, mmap.PAGESIZE):
        # The same afterwards as before, whatever the page is for: blank.
        if ctypes.string_at(page, mmap.PAGESIZE) == _BLANK:
            given += mmap.PAGESIZE * (not _libc.madvise(ctypes.c_void_p(page), mmap.PAGESIZE, _DONTNEED))
    return given
