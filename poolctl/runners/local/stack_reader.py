"""Reads the Python and kernel stacks of workers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping

from poolctl import platform
from poolctl.daemon_threads import THREADS, in_daemon_thread
from poolctl.json_form import from_json
from poolctl.worker.tally import ASK, ASK_AGAIN, clear_and_rewind_stacks, read_stacks, writes_stacks

from ..process_link import sanitize_and_truncate_text
from ..stack_report import (
    FAULTHANDLER,
    PYTHON,
    KernelThread,
    WorkerStacks,
    find_main_thread_hang,
    parse,
)
from .children import Children
from .local_worker import LocalWorker

# Shares of a request's time: for an answer by Python, then for faulthandler's. The rest is for reading /proc.
_PYTHON_SHARE, _FAULTHANDLER_SHARE = 0.6, 0.25
_MAX_THREADS = 50
_MAX_READING = THREADS // 2  # the number of threads that read /proc, where a read may block


class StackReader:
    """Reads the Python and kernel stacks of `workers`, which are given by worker id."""

    def __init__(self, children: Children, workers: Mapping[str, LocalWorker]) -> None:
        self._children = children
        self._workers = workers
        self._requests: dict[str, asyncio.Task[WorkerStacks]] = {}
        self._reading = asyncio.Semaphore(_MAX_READING)

    async def stacks(self, worker: str, seconds: float) -> WorkerStacks:
        """The worker's stacks; concurrent requests share one answer."""
        process = self._workers.get(worker)
        if process is None or process.exited.done():
            name = worker.rsplit(".", 2)[0]
            return WorkerStacks(name=name, worker=worker, pid=None, problem="it has exited")
        request = self._requests.get(worker)
        if request is None:
            request = self._requests[worker] = asyncio.ensure_future(self._request_stacks(process, seconds))
            request.add_done_callback(lambda _: self._requests.pop(worker))
        return await asyncio.shield(request)

    async def _request_stacks(self, worker: LocalWorker, seconds: float) -> WorkerStacks:
        problem, source, written = _reason_stacks_unavailable(worker), "", b""
        if not problem:
            until = asyncio.get_running_loop().time() + (_PYTHON_SHARE + _FAULTHANDLER_SHARE) * seconds
            if await self._request_stack_dump(worker, ASK, until - _FAULTHANDLER_SHARE * seconds):
                source = PYTHON
            elif _handles_signal(worker, ASK_AGAIN):
                source = PYTHON if await self._request_stack_dump(worker, ASK_AGAIN, until) else FAULTHANDLER
            written = read_stacks(worker.tally.fileno()) if worker.tally is not None else b""
            problem = _explain_missing_stacks(worker, source if written else "")
        directories = (worker.server.app_dir, worker.server.base_dir)
        # In a thread: the worker writes whatever it likes, up to 256 KiB.
        threads, tasks = await in_daemon_thread(functools.partial(parse, written, source, directories))
        return WorkerStacks(
            name=worker.placement.server,
            worker=worker.placement.id,
            pid=worker.placement.pid,
            source=source if threads else "",
            problem=problem,
            place=find_main_thread_hang(threads),
            threads=tuple(threads),
            tasks=tuple(tasks),
            kernel=()
            if source == PYTHON
            else await self._kernel_threads(worker, (1 - _PYTHON_SHARE - _FAULTHANDLER_SHARE) * seconds),
        )

    async def _request_stack_dump(self, worker: LocalWorker, signal_number: int, until: float) -> bool:
        """Signal the worker to write its stacks; returns whether it did so before `until`, a time of the event loop."""
        if worker.tally is None:
            return False  # it has exited
        clear_and_rewind_stacks(worker.tally.fileno())
        worker.wrote_stacks.clear()
        try:
            async with asyncio.timeout_at(until):
                await self._children.try_signal(worker.process, worker.exited, signal_number)
                await worker.wrote_stacks.wait()
        except TimeoutError:
            return False
        return True

    async def _kernel_threads(self, worker: LocalWorker, seconds: float) -> tuple[KernelThread, ...]:
        pid = worker.placement.pid
        assert pid is not None
        try:
            async with asyncio.timeout(seconds), self._reading:
                threads = await in_daemon_thread(
                    functools.partial(platform.kernel_state_of_threads, pid, _MAX_THREADS)
                )
        except TimeoutError:
            return ()
        return tuple(
            from_json(KernelThread, {**thread, "name": sanitize_and_truncate_text(thread["name"])})
            for thread in threads
        )


def _reason_stacks_unavailable(worker: LocalWorker) -> str:
    """The reason why the worker cannot be asked for its stacks; "" if it can."""
    if worker.server.command:
        return "a program has no Python stacks here; its threads, as the kernel sees them:"
    if platform.status_of(worker.placement.pid or 0).get(b"State", b"").startswith((b"T", b"t")):
        return "it is stopped (SIGSTOP, or a debugger): kill -CONT lets it continue"
    if worker.tally is None or not writes_stacks(worker.tally.fileno()):
        return "it cannot be asked: it has just been forked"
    return ""


def _explain_missing_stacks(worker: LocalWorker, source: str) -> str:
    """Return why stacks are missing (`source` is "") or incomplete (from faulthandler); "" if `source` is PYTHON."""
    if source == PYTHON:
        return ""
    if worker.exited.done():
        return "it has exited"
    if source:
        return "its tasks are unknown: its main thread is inside a C function, or its application handles SIGURG itself"
    return (
        "it does not answer: it cannot run now, or its application has replaced the handlers of the signals"
    )


def _handles_signal(worker: LocalWorker, number: int) -> bool:
    """Whether the process handles the signal, which would otherwise end it."""
    caught = platform.status_of(worker.placement.pid or 0).get(b"SigCgt", b"0")
    return bool(int(caught, 16) >> (number - 1) & 1)
