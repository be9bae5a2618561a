"""Which module's import started a thread, and how to prevent that."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from importlib.machinery import EXTENSION_SUFFIXES
from types import TracebackType
from typing import Any

_TASKS = "/proc/self/task"

# Libraries that compute on threads of their own, by a part of their file's name, and the variable that limits them.
_LIBRARIES = {
    "openblas": "OPENBLAS_NUM_THREADS",
    "mkl_": "MKL_NUM_THREADS",
    "blis": "BLIS_NUM_THREADS",
    "libgomp": "OMP_NUM_THREADS",
    "libomp": "OMP_NUM_THREADS",
    "libiomp": "OMP_NUM_THREADS",
}


class ThreadOrigins:
    """While entered, looks at each import of a module for threads that have come since the one before.

    `main` is the module that is imported first. This is a finder that finds nothing (sys.meta_path): unlike a wrapper
    around each import it leaves no frame in the traceback of one that fails. A few microseconds for each module.
    """

    def __init__(self, main: str = "") -> None:
        self._main = main
        self._modules: dict[int, str] = {}
        self._last = ""

    def __enter__(self) -> ThreadOrigins:
        self._modules = dict.fromkeys(_threads(), "")
        sys.meta_path.insert(0, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ValueError):  # the application may have put its own finders there
            sys.meta_path.remove(self)
        self._look(self._main)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Called when the import of `name` begins (importlib.abc.MetaPathFinder)."""
        self._look()
        self._last = name

    def named(self, thread: int) -> str:
        """What is known of a thread, such as `the thread 'ticker' of shop.jobs`."""
        module = self._modules.get(thread, "")
        for each in threading.enumerate():
            if each.native_id == thread:
                module = _module_of(each) or module
                return f"the thread {each.name!r}" + (f" of {module}" if module else "")
        name = thread_name(thread)
        known = f"a thread {name!r}" if name and name != thread_name(os.getpid()) else "a thread"
        return f"{known} in {module}" if module else f"{known} ({thread})"

    def _look(self, importing: str = "") -> None:
        if found := _threads() - self._modules.keys():
            self._modules |= dict.fromkeys(found, _either(self._last, importing or _importing()))


def advice() -> str:
    """The setting that may prevent native threads, by the loaded libraries; empty when none of them is known."""
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        files = {os.path.basename(row.split(None, 5)[-1].strip()) for row in maps if "/" in row}
        for part, variable in _LIBRARIES.items():
            if any(part in file for file in files):
                return f'env = {{ {variable} = "1" }} may prevent it'
    return ""


def thread_name(thread: int) -> str:
    """The name of a thread of this process, which is the process's own unless its library gave it one."""
    with contextlib.suppress(OSError), open(f"{_TASKS}/{thread}/comm", errors="replace") as file:
        return file.read().strip()
    return ""


def _threads() -> set[int]:
    return set(map(int, os.listdir(_TASKS)))


def _either(last: str, importing: str) -> str:
    """The module that has started a thread: the one whose import began last, or the one that is being imported."""
    spec = getattr(sys.modules.get(last), "__spec__", None)
    if str(getattr(spec, "origin", "")).endswith(tuple(EXTENSION_SUFFIXES)):
        return last  # its libraries were loaded
    if getattr(spec, "_initializing", False) or last == importing:
        return last
    if importing and last.partition(".")[0] in sys.stdlib_module_names:
        return importing  # a module of the standard library that is imported starts none by itself
    return f"{last} or {importing}" if spec is not None and importing else importing or last


def _importing() -> str:
    """The module whose code makes the import that is under way."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file not in (__file__, importlib.__file__) and not file.startswith("<frozen importlib"):
            return str(frame.f_globals.get("__name__", ""))
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _module_of(thread: threading.Thread) -> str:
    """The module of what a thread runs, unless it is the standard library's."""
    target = getattr(thread, "_target", None)
    module = str(getattr(target, "__module__", None) or type(thread).__module__)
    return "" if module.partition(".")[0] in sys.stdlib_module_names else module
