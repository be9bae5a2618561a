"""Memory that a worker need not hold: pages of the event loop that are still blank."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

_DONTNEED = 4  # MADV_DONTNEED of madvise(2)
_PAGE = mmap.PAGESIZE
_LEAST_BYTES = 100_000

# By address, and with types that are settled here: what a worker does once should not cost it pages of its own.
_libc = ctypes.CDLL(None)
_compare = _libc.memcmp
_compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_advise = _libc.madvise
_advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_BLANK = mmap.mmap(-1, _PAGE)
_blank_address = ctypes.addressof(ctypes.c_char.from_buffer(_BLANK))


def give_back_blank_pages(loop: Any) -> int:
    """How many bytes of the loop's own memory went back to the system, which hands out blank pages again on use.

    uvloop keeps a receive buffer of 250 KB inside its loop object, and the interpreter blanks it at its creation: a
    twentieth of a worker, before the first byte has come. Call it before anything runs in the loop.
    """
    size = type(loop).__basicsize__
    if size < _LEAST_BYTES:
        return 0
    # Its few other fields are at the edges.
    first = -(-(id(loop) + _PAGE) // _PAGE) * _PAGE
    length = (id(loop) + size) // _PAGE * _PAGE - _PAGE - first
    # Blank is what begins with a blank page and is the same one page further on.
    if _compare(first, _blank_address, _PAGE) or _compare(first, first + _PAGE, length - _PAGE):
        return 0
    return 0 if _advise(first, length, _DONTNEED) else length
