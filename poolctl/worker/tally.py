"""The tally: a shared memory page on which a worker counts its requests, and which its supervisor reads.

The worker only adds to integers; no message is sent, and no timer runs. The page is a file in memory that other
processes hold too, so that the counts outlive a worker that is killed. Standard library only.

After the page, the file has room for the stacks of the worker's threads and tasks, which takes no memory until it is
used. The supervisor asks for stacks with a signal instead of a message, so that a worker with a hung event loop answers
too. Their text has a maximum size, and can be read after the worker has been killed.

- ASK is handled by Python code in the main thread, even during a `time.sleep()`, a wait for a lock or a busy loop. This
  is safe at any time, also writes tasks and the names of threads, and reports when it is done.
- ASK_AGAIN is handled by `faulthandler`, for a main thread that is inside a C function. This runs no Python code and
  takes no lock, but reads the frames of other threads while they may run: it is sent only if ASK is not answered.

By default the system ignores ASK (SIGURG, as in Go's runtime): it never ends a process that has no handler. The values
of variables are not written, because they may be secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import fcntl
import gc
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any

# The first slot names the layout. This version does not read a page with a different layout.
LAYOUT = int.from_bytes(b"poolctl\x01", "big")

STARTED = 1  # requests with complete headers
DISCONNECTED = 2  # requests without a complete response because the client disconnected
BROKEN = 3  # requests without a complete response because the application failed
MALFORMED = 4  # inputs that were not valid requests
# The sum over all complete responses, from the headers of the request to the end of the response.
LATENCY_NS = 5
CONNECTIONS = 6  # connections accepted, or handed over by another worker
OPEN_CONNECTIONS = 7
WEBSOCKETS = 8
OPEN_WEBSOCKETS = 9
STATUS = 10  # responses by the first digit of their status: slot 11 counts 1xx, slot 15 counts 5xx
# Complete responses by latency: the first of BOUNDS_NS that it does not exceed; the last slot if none.
BUCKETS = 16
BOUNDS_NS = tuple(
    int(milliseconds * 1_000_000)
    for milliseconds in (0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
)
COUNTED = BUCKETS + len(BOUNDS_NS) + 1  # the counted slots end here

# Only the newest heartbeat is kept. Times are the supervisor's, on the system's monotonic clock: the application may
# have replaced the clock of the worker.
BEAT_ASKED_NS = 48  # when the supervisor asked; the supervisor writes this slot
BEAT_LAG_NS = 49  # how long the worker took to answer
BEAT_ANSWERED_NS = 50  # when the supervisor asked for the heartbeat answered last; 0: none is answered
_STACKS = 51  # 1 if the worker writes its stacks when it is signalled
BEAT_CPU_NS = 52  # processor time used by its process up to the answer

SIZE_BYTES = mmap.PAGESIZE
STACKS_AT, STACK_BYTES = SIZE_BYTES, 256 * 1024
_FILE_BYTES = STACKS_AT + STACK_BYTES
_PROMISED = (1).to_bytes(8, sys.byteorder)
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_GAUGES = (OPEN_CONNECTIONS, OPEN_WEBSOCKETS)  # current values, which are not summed up

# An application can write any number to its page: of those read here, the sum of two fits into a signed 64-bit integer.
MAX = 2**62 - 1

Counts = list[int]


def create_tally_page() -> int:
    """Create an empty page, which is a sealed memory file of counters; returns its descriptor."""
    fd = os.memfd_create("poolctl-tally", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(fd, LAYOUT.to_bytes(8, "little"), 0)
    os.ftruncate(fd, _FILE_BYTES)
    # Sealed, because the application has the page too and must not be able to shrink it under its readers or grow it.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def map_page(fd: int) -> memoryview:
    """Map the tally page `fd` as a sequence of writable 64-bit integers; the descriptor may be closed afterwards."""
    return memoryview(mmap.mmap(fd, SIZE_BYTES)).cast("Q")


def read_tally_page(fd: int) -> Counts | None:
    """Return the value of each slot of the tally page `fd`, at most MAX each; None if the page has another layout."""
    content = os.pread(fd, SIZE_BYTES, 0)
    if len(content) < SIZE_BYTES:
        return None
    counts = memoryview(content).cast("Q").tolist()
    if counts[0] != LAYOUT:
        return None
    counts[0] = 0
    return counts if max(counts) <= MAX else [bounded(count) for count in counts]


def bounded(number: int) -> int:
    """Return `number`, but at most MAX."""
    return min(number, MAX)


def promise_stacks(fd: int) -> None:
    """Record on the tally page `fd` that this worker can now dump its stacks when it is signaled."""
    os.pwrite(fd, _PROMISED, _STACKS * 8)


def writes_stacks(fd: int) -> bool:
    """Whether the worker of tally page `fd` can dump its stacks when signaled; False just after it was forked."""
    return os.pread(fd, 8, _STACKS * 8) == _PROMISED


def clear_and_rewind_stacks(fd: int) -> None:
    """Remove earlier stacks, and seek to where stacks begin: faulthandler writes at the current position."""
    written = len(read_stacks(fd))
    os.pwrite(fd, bytes(min(written + 1, STACK_BYTES)), STACKS_AT)
    os.lseek(fd, STACKS_AT, os.SEEK_SET)


def read_stacks(fd: int) -> bytes:
    """The stacks that were written last, or b""."""
    return os.pread(fd, STACK_BYTES, STACKS_AT).partition(b"\0")[0]


def add(counts: Counts, more: Counts) -> None:
    """Add `more`, the counts of another worker of the same server, to `counts` in place."""
    for slot in range(1, COUNTED):
        counts[slot] = bounded(counts[slot] + more[slot])


def final_counts(counts: Counts) -> Counts:
    """The final counts of an exited worker: no open connections; requests in progress count as DISCONNECTED."""
    final = [0, *counts[1:COUNTED]]
    final[DISCONNECTED] += in_flight(counts)
    for slot in _GAUGES:
        final[slot] = 0
    return final


def responses(counts: Counts) -> int:
    """The number of complete responses."""
    return sum(counts[BUCKETS:COUNTED])


def in_flight(counts: Counts) -> int:
    """The number of requests in progress."""
    return max(0, counts[STARTED] - responses(counts) - counts[DISCONNECTED] - counts[BROKEN])


ASK, ASK_AGAIN = signal.SIGURG, signal.SIGRTMAX - 5
# The first word of a group of tasks; their number, their names, and the reason why they wait follow.
TASKS = "Tasks"
_MAX_FRAMES = 100
_MAX_THREADS = 100
_MAX_GROUPS = 100
_MAX_NAMES = 5
_NAME_CHARACTERS = 100
_TEXT_CHARACTERS = 500
# Awaitable objects, by the names of their frame attribute and of the attribute for the object that they await.
_AWAITING = (("cr_frame", "cr_await"), ("ag_frame", "ag_await"), ("gi_frame", "gi_yieldfrom"))
_GENERATORS = (CoroutineType, AsyncGeneratorType, GeneratorType)

Location = tuple[CodeType, int | None]


class StackDumper:
    """Writes stacks when the supervisor's signals arrive.

    The handlers are set once, in the process from which workers are forked, because setting them would cost each worker
    150 KB for the touched pages.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._done: Callable[[], None] = lambda: None
        # The application's frame while a dump is written: a nested signal dumps it, not this code.
        self._interrupted: FrameType | None = None

    def install_signal_handlers(self, fd: int) -> None:
        """Handle the signals ASK and ASK_AGAIN: write thread stacks to descriptor `fd`, once `begin` has opened it."""
        self._fd = fd
        signal.signal(ASK, self._on_dump_signal)
        faulthandler.register(ASK_AGAIN, file=fd, all_threads=True, chain=False)

    def enable_for_page(self, page_fd: int, done: Callable[[], None]) -> None:
        """Write this worker's stacks to the file `page_fd` at each later signal; after the signal ASK, call `done`."""
        os.dup2(page_fd, self._fd, inheritable=False)
        self._done = done
        promise_stacks(page_fd)  # no signal is sent before, when the number may be another file's

    def disable_and_close(self) -> None:
        """Remove the signal handlers, and close the tally file. Called in a child that the application has forked."""
        if signal.getsignal(ASK) == self._on_dump_signal:
            signal.signal(ASK, signal.SIG_DFL)
        faulthandler.unregister(ASK_AGAIN)
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def _on_dump_signal(self, number: int, frame: FrameType | None) -> None:
        before, self._interrupted = self._interrupted, self._interrupted or frame
        # No error of this function may reach the application.
        try:
            text = "\n".join(describe_stacks(self._interrupted)).encode(errors="backslashreplace")[
                : STACK_BYTES - 1
            ]
            os.pwrite(self._fd, text + b"\0", STACKS_AT)
            self._done()
        except Exception:
            return
        finally:
            self._interrupted = before


STACK_DUMP = StackDumper()  # the only one in this process


def describe_stacks(
    frame: FrameType | None, main: int | None = None, loop: asyncio.AbstractEventLoop | None = None
) -> Iterator[str]:
    """Yield the lines that describe the stacks of all threads, the main thread first, then of the loop's tasks.

    `main` is the main thread's identifier, and `loop` the main thread's event loop. If `main` is None, the calling
    thread is taken as the main thread, with its running loop. `frame` is the main thread's current frame; None to look
    it up. The format is faulthandler's in Python 3.14. Tasks with equal stacks are counted together.
    """
    names = {ident: thread.name for ident, thread in list(threading._active.items())}  # type: ignore[attr-defined]
    frames = sys._current_frames()
    current = main or threading.get_ident()
    current_frame = frames.pop(current, None)
    threads = [(current, frame or current_frame), *frames.items()]
    for ident, top in threads[:_MAX_THREADS]:
        head = "Current thread" if ident == current else "Thread"
        name = f" [{_printable(names[ident])}]" if ident in names else ""
        yield f"{head} 0x{ident:016x}{name} (most recent call first):"
        yield from _lines(_frames_outwards(top))
    if len(threads) > _MAX_THREADS:
        yield "..."
    loop = loop if main else asyncio._get_running_loop()
    if loop is not None:
        yield from _describe_tasks(loop)


def _describe_tasks(loop: asyncio.AbstractEventLoop) -> Iterator[str]:
    groups: dict[tuple[str, tuple[Location, ...]], list[str]] = {}
    for task in asyncio.all_tasks(loop):
        key = _waits_for(task), tuple(_await_chain(task.get_coro()))
        groups.setdefault(key, []).append(task.get_name())
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), min(group[1])))
    for (waits_for, locations), names in ordered[:_MAX_GROUPS]:
        named = ", ".join(_printable(name) for name in sorted(names)[:_MAX_NAMES])
        yield f"{TASKS} {len(names)} [{named}] {waits_for} (most recent call first):"
        yield from _lines(reversed(locations))
    if len(ordered) > _MAX_GROUPS:
        yield "..."


def _waits_for(task: asyncio.Task[Any]) -> str:
    """The operation that the task waits for, in a few words."""
    waiter = getattr(task, "_fut_waiter", None)
    if isinstance(waiter, asyncio.Task):
        return f"waits for task {_printable(waiter.get_name()).replace(']', '?')}"
    if waiter is None:
        return "running or ready"
    return f"waits for a {type(waiter).__name__.strip('_')}"


def _await_chain(awaitable: object) -> Iterator[Location]:
    """Yield the line at which a coroutine is suspended, then the line of the coroutine that it awaits, and so on."""
    for _ in range(_MAX_FRAMES):
        if not isinstance(awaitable, _GENERATORS):
            # Only the garbage collector knows the owner of an asynchronous generator's step or a coroutine's iterator.
            owners = [
                referent for referent in gc.get_referents(awaitable) if isinstance(referent, _GENERATORS)
            ]
            awaitable = owners[0] if len(owners) == 1 else None
        for frame_name, awaited_name in _AWAITING:
            frame = getattr(awaitable, frame_name, None)
            if frame is not None:
                yield frame.f_code, frame.f_lineno
                awaitable = getattr(awaitable, awaited_name)
                break
        else:
            return


def _frames_outwards(frame: FrameType | None) -> Iterator[Location]:
    """The frames of a thread, from the innermost call outwards."""
    while frame is not None:
        yield frame.f_code, frame.f_lineno
        frame = frame.f_back


def _lines(locations: Iterator[Location]) -> Iterator[str]:
    for depth, (code, line) in enumerate(locations):
        if depth == _MAX_FRAMES:
            yield "  ..."
            return
        name, path = code.co_qualname, code.co_filename
        yield f'  File "{path[-_TEXT_CHARACTERS:]}", line {line or "???"} in {name[:_TEXT_CHARACTERS]}'


def _printable(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in str(name)[:_NAME_CHARACTERS])
