"""With the gaps filled, what is allocated next lies beyond everything that was there."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys
from poolctl.worker.sharing.gaps import fill_gaps

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = (ctypes.c_size_t,)
libc.sbrk.restype = ctypes.c_void_p
small = [bytearray(3000) for _ in range(300)]
del small[::2]
end = libc.sbrk(0)
if sys.argv[1] == "fill":
    fill_gaps()
    from poolctl.worker.sharing.gaps import _Mallinfo2
    libc.mallinfo2.restype = _Mallinfo2
    end -= libc.mallinfo2().keepcost
inside = sum(libc.malloc(2000) < end for _ in range(50))
print(inside)
"""


def allocated_inside(how: str, **env: str) -> int:
    argv = [sys.executable, "-c", SCRIPT, how]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=True, env={**os.environ, **env}, timeout=20
    )
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library is not glibc 2.33")
def test_a_heap_full_of_gaps_has_none_afterwards() -> None:
    assert allocated_inside("leave") == 50
    assert allocated_inside("fill") == 0


def test_it_ends_also_where_the_interpreter_has_its_objects_from_the_same_heap() -> None:
    assert 0 <= allocated_inside("fill", PYTHONMALLOC="malloc") <= 50
