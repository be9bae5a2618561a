"""Gaps in memory, filled before the first fork.

What the imports freed is scattered over all pages. A process that allocates there copies a page for each object; with
the gaps filled it allocates on pages of its own (measured: 0.4 MB less for each worker).
"""

from __future__ import annotations

import ctypes
from typing import Any

_FILLERS = 150
_SIZES = range(0, 480, 16)
# From the largest to the smallest: what is left of a gap is filled by those that follow.
_BLOCKS = (*range(60_000, 4096, -1024), *range(4096, 1024, -64), *range(1024, 16, -16))
# Free blocks of small sizes that glibc keeps for each thread, and counts as used.
_CACHED_BYTES = 256 * 1024

_filling: list[list[Any]] = []


def fill_gaps() -> None:
    """Fill what is free between what is used, in the interpreter's pools and in the heap of the C library."""
    small: list[list[Any]] = [
        [object() for _ in range(_FILLERS)],
        [float(number) for number in range(_FILLERS)],
    ]
    _filling.extend([*small, *([bytes(size) for _ in range(_FILLERS)] for size in _SIZES)])
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallinfo2"):  # of glibc since 2.33; other libraries keep their free memory elsewhere
        _fill_heap(libc)


class _Mallinfo2(ctypes.Structure):
    """struct mallinfo2 of mallinfo(3): of ten sizes that of all that is free, and of the free block at the end."""

    _fields_ = (("others", ctypes.c_size_t * 8), ("fordblks", ctypes.c_size_t), ("keepcost", ctypes.c_size_t))


def _fill_heap(libc: ctypes.CDLL) -> None:
    libc.mallinfo2.restype = _Mallinfo2
    libc.sbrk.restype = libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    # No more than there is to fill: an interpreter that has its own objects from this heap (PYTHONMALLOC=malloc) makes
    # a new gap with each step.
    left = libc.mallinfo2().fordblks + _CACHED_BYTES
    for size in _BLOCKS:
        while left > 0:
            # Beyond the last block in use nothing is shared with anybody.
            end = (libc.sbrk(0) or 0) - libc.mallinfo2().keepcost
            block = libc.malloc(size)
            if block is None or block >= end:
                libc.free(block)
                break
            left -= size
