"""Finds things left by an import that forks cannot share: threads with their modules, processes, descriptors."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
import threading
import time
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from types import TracebackType
from typing import NamedTuple

# A thread that was joined, or a child that exited, may still exist for a moment.
_ENDING_SECONDS = 0.2
_PAUSE_SECONDS = 0.005
_MAX_NAMED = 3

# Names of threads that their library does not need after a fork. jemalloc holds its locks during a fork
# (pthread_atfork(3)), so the child is safe (pyarrow, pandas, scikit-learn: none of 300 forks hung).
_SPARED = frozenset({"jemalloc_bg_thd"})
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


class ProcessSnapshot(NamedTuple):
    """The threads and children of this process by id, and its descriptors with their targets."""

    threads: frozenset[int]
    children: frozenset[int]
    descriptors: dict[int, str]

    @classmethod
    def of_this_process(cls) -> ProcessSnapshot:
        """The current threads, children and descriptors of this process."""
        threads = frozenset(map(int, os.listdir("/proc/self/task")))
        kept = frozenset(each for each in threads if thread_name(each) not in _SPARED)
        return cls(kept, frozenset(_children(threads)), _descriptors())

    def left_since(self, origins: ThreadOrigins | None = None) -> str:
        """What was added since, as the end of a sentence that begins with "its import"; "" if nothing.

        `origins` knows which modules have started threads. This may fork once to find out.
        """
        if self._native_threads(ProcessSnapshot.of_this_process()):
            _fork()
        deadline = time.monotonic() + _ENDING_SECONDS
        while found := self._compared_with(ProcessSnapshot.of_this_process(), origins or ThreadOrigins()):
            if time.monotonic() >= deadline:
                break
            time.sleep(_PAUSE_SECONDS)
        return found

    def fix(self) -> str:
        """The setting that may prevent the current threads; "" if unknown."""
        return advice() if self._native_threads(ProcessSnapshot.of_this_process()) else ""

    def _native_threads(self, now: ProcessSnapshot) -> frozenset[int]:
        python = {each.native_id for each in threading.enumerate()}
        return now.threads - self.threads - python

    def _compared_with(self, now: ProcessSnapshot, origins: ThreadOrigins) -> str:
        # Several threads of one library count as one.
        words = list(
            dict.fromkeys(f"started {origins.named(each)}" for each in sorted(now.threads - self.threads))
        )
        words += [f"started the process {each}" for each in sorted(now.children - self.children)]
        words += [
            f"opened {_what(fd, target)}"
            for fd, target in sorted(now.descriptors.items())
            if self.descriptors.get(fd) != target
        ]
        more = len(words) - _MAX_NAMED
        return ", ".join(words[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _children(threads: frozenset[int]) -> list[int]:
    found: list[int] = []
    for thread in threads:
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children") as file:
            found += map(int, file.read().split())
    return found


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        # The descriptor of the listing itself is closed by now.
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _fork() -> None:
    """Fork once, so that libraries which stop their native threads before a fork do so now.

    OpenBLAS, which numpy loads, starts its threads when it is loaded and stops them before a fork (pthread_atfork(3)):
    afterwards this process has no such threads, and each fork that computes starts its own (500 forks: all correct,
    none hung).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork with threads
        child = os.fork()
        if child == 0:
            os._exit(0)
    with contextlib.suppress(ChildProcessError):  # an application may have its children reaped by the kernel
        os.waitpid(child, 0)


def _what(fd: int, target: str) -> str:
    if target.startswith("socket:"):
        return _socket(fd)
    if target == "anon_inode:[eventpoll]":
        return "an event loop"
    if target.startswith("pipe:"):
        return "a pipe"
    return target.removeprefix("anon_inode:")


def _socket(fd: int) -> str:
    with contextlib.suppress(OSError):
        sock = socket.socket(fileno=os.dup(fd))
        with sock, contextlib.suppress(OSError):
            peer = sock.getpeername()
            if isinstance(peer, tuple):
                return f"a connection to {peer[0]}:{peer[1]}"
            return f"a connection to {peer!r}" if peer else "a connection"
    return "a socket"


class ThreadOrigins:
    """Records, while entered, which module import has started which thread.

    `main` is the module that is imported first. This is a finder that finds nothing (sys.meta_path): unlike a wrapper
    around each import it adds no frame to the traceback of a failing one.
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
        with contextlib.suppress(ValueError):  # the application may have replaced the finders
            sys.meta_path.remove(self)
        self._check(self._main)

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Called when the import of `name` begins (importlib.abc.MetaPathFinder)."""
        self._check()
        self._last = name

    def named(self, thread: int) -> str:
        """A description of a thread, such as `the thread 'ticker' of shop.jobs`."""
        module = self._modules.get(thread, "")
        for each in threading.enumerate():
            if each.native_id == thread:
                module = _module_of(each) or module
                return f"the thread {each.name!r}" + (f" of {module}" if module else "")
        name = thread_name(thread)
        known = f"a thread {name!r}" if name and name != thread_name(os.getpid()) else "a thread"
        return f"{known} in {module}" if module else f"{known} ({thread})"

    def _check(self, importing: str = "") -> None:
        if found := _threads() - self._modules.keys():
            self._modules |= dict.fromkeys(found, _either(self._last, importing or _importing()))


def advice() -> str:
    """The setting that may prevent native threads, chosen by the loaded libraries; empty if no setting is known."""
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        files = {os.path.basename(row.split(None, 5)[-1].strip()) for row in maps if "/" in row}
        for part, variable in _LIBRARIES.items():
            if any(part in file for file in files):
                return f'env = {{ {variable} = "1" }} may prevent it'
    return ""


def thread_name(thread: int) -> str:
    """The name of a thread of this process, as the kernel has it.

    It is the name of the process unless the thread's library has set another.
    """
    with contextlib.suppress(OSError), open(f"{_TASKS}/{thread}/comm", errors="replace") as file:
        return file.read().strip()
    return ""


def _threads() -> set[int]:
    return set(map(int, os.listdir(_TASKS)))


def _either(last: str, importing: str) -> str:
    """The module that started a thread: `last`, whose import began last, or `importing`; both if that is uncertain."""
    spec = getattr(sys.modules.get(last), "__spec__", None)
    if str(getattr(spec, "origin", "")).endswith(tuple(EXTENSION_SUFFIXES)):
        return last  # its libraries were loaded
    if getattr(spec, "_initializing", False) or last == importing:
        return last
    if importing and last.partition(".")[0] in sys.stdlib_module_names:
        return importing  # a module of the standard library that is imported starts none by itself
    return f"{last} or {importing}" if spec is not None and importing else importing or last


def _importing() -> str:
    """The module whose code makes the current import."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file not in (__file__, importlib.__file__) and not file.startswith("<frozen importlib"):
            return str(frame.f_globals.get("__name__", ""))
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _module_of(thread: threading.Thread) -> str:
    """The module of the function that a thread runs, unless it belongs to the standard library."""
    target = getattr(thread, "_target", None)
    module = str(getattr(target, "__module__", None) or type(thread).__module__)
    return "" if module.partition(".")[0] in sys.stdlib_module_names else module
