"""Objects that forks share without copying them: immortal ones, which reference counting does not write to.

A worker copies each page of its zygote's memory that it writes to, and taking or dropping a reference to an object
writes to it. Since Python 3.12 an object whose count has a certain value is immortal: its count is not written again
(PEP 683). No public function gives existing objects that value, so the counts are written through ctypes here.
Measured on Python 3.12 and 3.13 with 60 workers: 3.2 and 3.4 MiB a worker (PSS) instead of 4.8 and 5.1.

This makes the parts of code immortal: modules, classes, functions, descriptors, code objects, and the constants and
names that they hold. They are never freed. Other containers and instances stay as they are, so that a file is closed
and a finalizer runs when the application drops the last reference.

Why this is safe:
- Only on the minor versions in `VERSIONS`, on which the whole test suite runs with it; on 64 bit, with the lock
  (GIL), not in debug builds; and only if the count of a new object is found where it is expected.
- The process has one thread, and counts are only ever raised.
- Code that tests whether a reference is the only one sees many, and copies.
- The collector moves immortal objects that it meets to the permanent generation.
- An extension for the stable ABI of Python before 3.12 counts immortal objects, as it counts None. The object is then
  mortal while the extension holds a reference, with a count of 2³² and more, and is immortal again afterwards: 2³¹
  unmatched decrements would be needed before it can be freed. Tried with such an extension: 10⁸ references held while
  the object was used, 10⁶ dropped that had not been taken, psutil and cryptography in a loop: none was freed.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from types import (
    BuiltinFunctionType,
    CellType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    ModuleType,
    WrapperDescriptorType,
)

VERSIONS = frozenset({(3, 12), (3, 13)})
# The switch is a variable of the pool's environment: the number of forks after which a zygote makes its objects
# immortal, or "never". With fewer workers than these the memory saved is not worth the time.
VARIABLE = "POOLCTL_IMMORTAL_AFTER"
_DEFAULT_FORKS = 8
_IMMORTAL = 0xFFFF_FFFF  # _Py_IMMORTAL_REFCNT of these versions
_ADDRESSES = 1 << 48  # of a process, on x86-64 and AArch64; higher ones are for programs that ask for them

# Read now: applications do not see the variable.
_chosen = os.environ.get(VARIABLE, "")
AFTER_FORKS = math.inf if _chosen == "never" else int(_chosen) if _chosen.isdecimal() else _DEFAULT_FORKS

# Parts of code that the collector tracks; classes come in addition.
_PARTS = frozenset(
    {
        BuiltinFunctionType, CellType, ClassMethodDescriptorType, FunctionType, GetSetDescriptorType,
        MemberDescriptorType, MethodDescriptorType, ModuleType, WrapperDescriptorType,
        classmethod, frozenset, property, staticmethod, tuple,
    }
)  # fmt: skip
_VALUES = frozenset({bytes, complex, float, frozenset, int, str, tuple})


def make_immortal() -> bool:
    """Make the parts of all code in this process immortal; False where that is not known to be safe.

    All objects are in the collector's permanent generation afterwards (gc.freeze). It takes 40 to 90 ms of processor
    time when uvicorn, starlette and uvloop have been imported: 150,000 references are followed.
    """
    counts = _reference_counts()
    if counts is None:
        return False
    gc.unfreeze()  # get_objects() leaves frozen ones out
    parts = [each for each in gc.get_objects() if type(each) in _PARTS or isinstance(each, type)]
    parts += [vars(each) for each in parts if type(each) is ModuleType]
    for part in parts:
        counts[id(part) >> 3] = _IMMORTAL
    # Not what modules themselves refer to: in Python 3.12 that of asyncio names dead objects, which it keeps for reuse.
    # Dropping the reference to one would free it a second time, and two futures would then share it.
    for value in gc.get_referents(*(each for each in parts if type(each) is not ModuleType)):
        if type(value) in _VALUES:
            counts[id(value) >> 3] = _IMMORTAL
    # The collector does not track code objects, and what they hold.
    codes = [each.__code__ for each in parts if type(each) is FunctionType]
    while codes:
        values: list[object] = []
        for code in codes:
            counts[id(code) >> 3] = counts[id(code.co_consts) >> 3] = _IMMORTAL
            values += code.co_consts
            values += code.co_names
        for value in values:
            if type(value) in _VALUES:
                counts[id(value) >> 3] = _IMMORTAL
        codes = [value for value in values if type(value) is CodeType]
    gc.freeze()
    return True


def _reference_counts() -> memoryview | None:
    """The memory of this process as words, an object's count at `id(it) >> 3`; None if that cannot be relied on."""
    free_threaded, debug_build = "t" in sys.abiflags, hasattr(sys, "gettotalrefcount")
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in VERSIONS or sys.maxsize < 1 << 32:
        return None
    if free_threaded or debug_build:
        return None
    try:
        import ctypes
    except ImportError:  # built without libffi
        return None
    words = memoryview((ctypes.c_int64 * (_ADDRESSES >> 3)).from_address(0)).cast("B").cast("q")
    fresh = object()
    return words if words[id(fresh) >> 3] == sys.getrefcount(fresh) - 1 else None
