"""Which pages of a zygote's memory a worker copies: those that it writes to.

Running a function writes to its code object, whose references are counted, and a new object is written into free memory
between others. So what every worker writes to is put onto pages of its own before the fork, and what it never
uses onto others.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import sys
from collections.abc import Collection, Iterator
from types import CodeType, FrameType, FunctionType

from ..platform import discard_pages

# Of Python's allocator (Objects/obmalloc.c): sizes of blocks, and of the pools of blocks of one size. Where they are
# others, or another allocator is used, at most this many bytes of a size are taken.
_BLOCK, _MAX_BLOCK = 16, 512
_POOL, _POOL_HEADER = 16 * 1024, 48
_MAX_GAPS = 64 * 1024
_BYTES_OVERHEAD = b"".__sizeof__()
_LARGE_BYTES = 16 * mmap.PAGESIZE
_NO_BYTES = bytes(mmap.PAGESIZE)
_kept: list[object] = []

Codes = dict[int, CodeType]  # by their id(): to hash a code object takes as long as to copy it


def fill_gaps() -> None:
    """Take the free memory between existing objects, so that new objects are put onto pages of their own.

    The first block of a pool shows that all pools of its size are full. Measured: 170 KiB less that a worker copies,
    for 300 KiB in the zygote and a millisecond.
    """
    for size in range(_BLOCK, _MAX_BLOCK + 1, _BLOCK):
        for _ in range(_MAX_GAPS // size):
            block = bytes(size - _BYTES_OVERHEAD) if size > 2 * _BLOCK else _small_object(size)
            if id(block) % _POOL == _POOL_HEADER:
                break
            _kept.append(block)


def _small_object(size: int) -> object:
    return object() if size == _BLOCK else float(str(size))


@contextlib.contextmanager
def noting_code() -> Iterator[Codes]:
    """The code that is run in this thread meanwhile."""
    codes: Codes = {}

    def note(frame: FrameType, event: str, argument: object) -> None:
        codes[id(frame.f_code)] = frame.f_code

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield codes
    finally:
        sys.setprofile(before)


def gather_code(codes: Codes, modules: Collection[str]) -> None:
    """Put the code of functions that is one of `codes`, or of a function of one of `modules`, next to each other.

    Each function gets an equal copy of its code, which has to be run a few times again before the interpreter has
    specialised it. Measured: 400 KiB less that a worker copies, for as much in the zygote and 5 ms.
    """
    fill_gaps()
    gc.unfreeze()  # get_objects() leaves frozen ones out
    for each in gc.get_objects():
        if type(each) is FunctionType and (id(each.__code__) in codes or each.__module__ in modules):
            _kept.append(each.__code__)  # freed, it would leave a gap
            each.__code__ = _copy(each.__code__)
    gc.freeze()


def _copy(code: CodeType) -> CodeType:
    constants = tuple(_copy(each) if type(each) is CodeType else each for each in code.co_consts)
    return code.replace(co_consts=constants)


def release_zeros(large: object) -> None:
    """Give back the pages of a large object that hold only zeros, if they are next to each other.

    They take memory again when they are written to. A loop of uvloop contains a buffer of 250 KB, and Python writes
    zeros to all of a new object.
    """
    size = type(large).__basicsize__
    if size < _LARGE_BYTES:
        return
    memory = memoryview((ctypes.c_char * size).from_address(id(large))).cast("B")
    first, page = -id(large) % mmap.PAGESIZE, mmap.PAGESIZE
    zeros = [
        start
        for start in range(first, size - page + 1, page)
        if memory[start : start + page].tobytes() == _NO_BYTES
    ]
    if zeros and zeros[-1] - zeros[0] == page * (len(zeros) - 1):
        discard_pages(id(large) + zeros[0], page * len(zeros))
