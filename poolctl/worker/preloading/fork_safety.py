"""What an import leaves behind in its process that a fork cannot share: threads, children, descriptors."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import warnings
from typing import NamedTuple

from .thread_origins import ThreadOrigins, advice, thread_name

# A thread that was joined, or a child, may still be there for a moment.
_ENDING_SECONDS = 0.2
_PAUSE_SECONDS = 0.005
_MOST_NAMED = 3

# Threads whose library works without them after a fork, by the name that it gives them. jemalloc holds its locks over
# a fork (pthread_atfork(3)), and the child does without (pyarrow, pandas, scikit-learn: 300 forks computed, none hung).
_SPARED = frozenset({"jemalloc_bg_thd"})


class ProcessSnapshot(NamedTuple):
    """The threads and children of this process by id, and its descriptors with what each of them is."""

    threads: frozenset[int]
    children: frozenset[int]
    descriptors: dict[int, str]

    @classmethod
    def of_this_process(cls) -> ProcessSnapshot:
        """As they are now."""
        threads = frozenset(map(int, os.listdir("/proc/self/task")))
        kept = frozenset(each for each in threads if thread_name(each) not in _SPARED)
        return cls(kept, frozenset(_children(threads)), _descriptors())

    def left_since(self, origins: ThreadOrigins | None = None) -> str:
        """What has come since, as the end of a sentence that begins with "its import"; "" for nothing.

        `origins` know which modules have started threads. A fork may be made to find it out.
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
        """The setting that may prevent the current threads; empty when unknown."""
        return advice() if self._native_threads(ProcessSnapshot.of_this_process()) else ""

    def _native_threads(self, now: ProcessSnapshot) -> frozenset[int]:
        python = {each.native_id for each in threading.enumerate()}
        return now.threads - self.threads - python

    def _compared_with(self, now: ProcessSnapshot, origins: ThreadOrigins) -> str:
        # Several threads of one library are one thing that was started.
        words = list(
            dict.fromkeys(f"started {origins.named(each)}" for each in sorted(now.threads - self.threads))
        )
        words += [f"started the process {each}" for each in sorted(now.children - self.children)]
        words += [
            f"opened {_what(fd, target)}"
            for fd, target in sorted(now.descriptors.items())
            if self.descriptors.get(fd) != target
        ]
        more = len(words) - _MOST_NAMED
        return ", ".join(words[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _children(threads: frozenset[int]) -> list[int]:
    found: list[int] = []
    for thread in threads:
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children") as file:
            found += map(int, file.read().split())
    return found


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        # The one that the listing itself is read from is gone by now.
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _fork() -> None:
    """Fork once, only so that libraries stop the native threads that they stop before every fork.

    So does OpenBLAS (pthread_atfork(3)), which starts its threads when it is loaded, with numpy: after the fork there
    are none in this process, and each that computes starts its own again (500 forks: all correct, none hung).
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
