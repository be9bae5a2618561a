"""Writes the stacks of a worker's threads and tasks when its supervisor sends a signal. Standard library only.

No message is needed, so that a worker whose event loop hangs answers as well. The text goes into the part of the
worker's page file behind its counts (see tally): there it is bounded, and readable after the worker has been killed.

- ASK runs in the main thread between two bytecodes, also in a `time.sleep()`, a lock or a busy loop. It is safe at any
time, writes tasks and the names of threads as well, and reports that it is done. - ASK_AGAIN is `faulthandler`'s, for a
main thread that is inside a C function. It runs no Python and takes no lock, but reads the frames of other threads
while these may run: it is sent only if ASK is not answered.

By default the system ignores ASK (SIGURG, which Go's runtime uses alike): it never ends a process that has no handler.
No variable's value is written: it may be a secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any

from .tally import STACK_BYTES, STACKS_AT, promise_stacks

ASK, ASK_AGAIN = signal.SIGURG, getattr(signal, "SIGRTMAX", 64) - 5  # not every system has the latter
# The header of a group of tasks, with their number, the named tasks among them, and the reason why they wait.
TASKS = "Tasks"
_MOST_FRAMES = 100
_MOST_THREADS = 100
_MOST_GROUPS = 100
_MOST_NAMES = 5
_NAME_CHARACTERS = 100
_TEXT_CHARACTERS = 500
# Awaitable objects, by the names of their frame attribute and of the attribute for the object that they await.
_AWAITING = (("cr_frame", "cr_await"), ("ag_frame", "ag_await"), ("gi_frame", "gi_yieldfrom"))
_GENERATORS = (CoroutineType, AsyncGeneratorType, GeneratorType)

Location = tuple[CodeType, int | None]


class StackDump:
    """Writes stacks when the supervisor's signals arrive.

    The handlers are set once, in the process from which workers are forked, because setting them would cost each worker
    150 KB for the touched pages.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._done: Callable[[], None] = lambda: None
        self._interrupted: FrameType | None = (
            None  # the application's call, while another answer is being written
        )

    def prepare(self, fd: int) -> None:
        """Set the signal handlers in this process and its forks. Each has its page file at descriptor `fd` later."""
        self._fd = fd
        signal.signal(ASK, self._answer)
        faulthandler.register(ASK_AGAIN, file=fd, all_threads=True, chain=False)

    def begin(self, page_fd: int, done: Callable[[], None]) -> None:
        """Write stacks to this page file from now on; `done` is called when the answer to ASK is complete."""
        os.dup2(page_fd, self._fd, inheritable=False)
        self._done = done
        promise_stacks(page_fd)  # before that the number may be any other file's: no signal may be sent

    def end(self) -> None:
        """Restore the default handlers, in a child that the application forks, where the descriptor is another file."""
        if signal.getsignal(ASK) == self._answer:
            signal.signal(ASK, signal.SIG_DFL)
        faulthandler.unregister(ASK_AGAIN)
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        before, self._interrupted = self._interrupted, self._interrupted or frame
        # The application must not see an error that is not its own.
        try:
            text = "\n".join(describe(self._interrupted)).encode(errors="backslashreplace")[: STACK_BYTES - 1]
            os.pwrite(self._fd, text + b"\0", STACKS_AT)
            self._done()
        except Exception:
            return
        finally:
            self._interrupted = before


STACK_DUMP = StackDump()  # of this process


def describe(
    frame: FrameType | None, main: int | None = None, loop: asyncio.AbstractEventLoop | None = None
) -> Iterator[str]:
    """The lines for all threads, beginning with `main` (default: the caller's), and for the tasks of its loop.

    `frame` is where the main one is. In the form of faulthandler (of Python 3.14, with the names of threads); tasks of
    equal stacks are counted.
    """
    names = {ident: thread.name for ident, thread in list(threading._active.items())}  # type: ignore[attr-defined]
    frames = sys._current_frames()
    current = main or threading.get_ident()
    own = frames.pop(current, None)
    threads = [(current, frame or own), *frames.items()]
    for ident, top in threads[:_MOST_THREADS]:
        head = "Current thread" if ident == current else "Thread"
        name = f" [{_printable(names[ident])}]" if ident in names else ""
        yield f"{head} 0x{ident:016x}{name} (most recent call first):"
        yield from _lines(_outwards(top))
    if len(threads) > _MOST_THREADS:
        yield "..."
    loop = loop if main else asyncio._get_running_loop()
    if loop is not None:
        yield from _describe_tasks(loop)


def _describe_tasks(loop: asyncio.AbstractEventLoop) -> Iterator[str]:
    groups: dict[tuple[str, tuple[Location, ...]], list[str]] = {}
    for task in asyncio.all_tasks(loop):
        key = _waits_for(task), tuple(_awaited(task.get_coro()))
        groups.setdefault(key, []).append(task.get_name())
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), min(group[1])))
    for (waits_for, locations), names in ordered[:_MOST_GROUPS]:
        named = ", ".join(_printable(name) for name in sorted(names)[:_MOST_NAMES])
        yield f"{TASKS} {len(names)} [{named}] {waits_for} (most recent call first):"
        yield from _lines(reversed(locations))
    if len(ordered) > _MOST_GROUPS:
        yield "..."


def _waits_for(task: asyncio.Task[Any]) -> str:
    """The operation that the task waits for, in a few words."""
    waiter = getattr(task, "_fut_waiter", None)
    if isinstance(waiter, asyncio.Task):
        return f"waits for task {_printable(waiter.get_name()).replace(']', '?')}"
    if waiter is None:
        return "running or ready"
    return f"waits for a {type(waiter).__name__.strip('_')}"


def _awaited(awaitable: object) -> Iterator[Location]:
    """The place in a suspended coroutine, then the place in each coroutine that it awaits."""
    for _ in range(_MOST_FRAMES):
        if not isinstance(awaitable, _GENERATORS):
            # The step of an asynchronous generator, or the iterator of a coroutine: only the collector sees its owner.
            found = [each for each in gc.get_referents(awaitable) if isinstance(each, _GENERATORS)]
            awaitable = found[0] if len(found) == 1 else None
        for frame_name, awaited_name in _AWAITING:
            frame = getattr(awaitable, frame_name, None)
            if frame is not None:
                yield frame.f_code, frame.f_lineno
                awaitable = getattr(awaitable, awaited_name)
                break
        else:
            return


def _outwards(frame: FrameType | None) -> Iterator[Location]:
    """The current place of a thread, and each of its callers."""
    while frame is not None:
        yield frame.f_code, frame.f_lineno
        frame = frame.f_back


def _lines(locations: Iterator[Location]) -> Iterator[str]:
    for depth, (code, line) in enumerate(locations):
        if depth == _MOST_FRAMES:
            yield "  ..."
            return
        name, path = code.co_qualname, code.co_filename
        yield f'  File "{path[-_TEXT_CHARACTERS:]}", line {line or "???"} in {name[:_TEXT_CHARACTERS]}'


def _printable(name: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in str(name)[:_NAME_CHARACTERS])
