"""Asks workers, even hung ones, for their stacks by signals (see poolctl.worker.stack_dump). Waits only briefly."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from poolctl.json_form import from_json
from poolctl.platform import kernel_threads, status_of
from poolctl.worker.stack_dump import ASK, ASK_AGAIN

from ..listener_opener import in_daemon_thread
from ..untrusted_messages import printable
from .fork_verification import Children
from .local_worker import LocalWorker

if TYPE_CHECKING:
    from ..stack_report import KernelThread, WorkerStacks

# Shares of a request's time: for an answer by Python, then for faulthandler's. The rest is for reading /proc.
_FIRST, _SECOND = 0.6, 0.25
_MOST_THREADS = 50
_AT_ONCE = 8  # threads that read /proc: a read may block


class StackReader:
    """Reads the stacks of the `workers`, which are given by id (see Stacks)."""

    def __init__(self, children: Children, workers: Mapping[str, LocalWorker]) -> None:
        self._children = children
        self._workers = workers
        self._asked: dict[str, asyncio.Task[WorkerStacks]] = {}
        self._reading = asyncio.Semaphore(_AT_ONCE)

    async def stacks(self, worker: str, seconds: float) -> WorkerStacks:
        """See Stacks. Requests at the same time get the same answer."""
        from ..stack_report import WorkerStacks  # no start needs it; recovery imports it soon afterwards

        found = self._workers.get(worker)
        if found is None or found.exited.done():
            name = worker.rsplit(".", 2)[0]
            return WorkerStacks(name=name, worker=worker, pid=None, problem="it has exited")
        asked = self._asked.get(worker)
        if asked is None:
            asked = self._asked[worker] = asyncio.ensure_future(self._request_stacks(found, seconds))
            asked.add_done_callback(lambda _: self._asked.pop(worker))
        return await asyncio.shield(asked)

    async def _request_stacks(self, worker: LocalWorker, seconds: float) -> WorkerStacks:
        from ..stack_report import FAULTHANDLER, PYTHON, WorkerStacks, parse, place_of

        problem, source, written = _reason_not_to_ask(worker), "", b""
        if not problem:
            until = asyncio.get_running_loop().time() + (_FIRST + _SECOND) * seconds
            if await self._signal(worker, ASK, until - _SECOND * seconds):
                source = PYTHON
            elif _handles_signal(worker, ASK_AGAIN):
                source = PYTHON if await self._signal(worker, ASK_AGAIN, until) else FAULTHANDLER
            written = worker.tally.stacks() if worker.tally is not None else b""
            problem = _explain_missing_stacks(worker, source if written else "")
        threads, tasks = parse(written, source, worker.server)
        return WorkerStacks(
            name=worker.placement.server,
            worker=worker.placement.id,
            pid=worker.placement.pid,
            source=source if threads else "",
            problem=problem,
            place=place_of(threads),
            threads=tuple(threads),
            tasks=tuple(tasks),
            kernel=()
            if source == PYTHON
            else await self._kernel_threads(worker, (1 - _FIRST - _SECOND) * seconds),
        )

    async def _signal(self, worker: LocalWorker, number: int, until: float) -> bool:
        """Signal the worker to write its stacks. Returns whether it reported them in time."""
        assert worker.tally is not None
        worker.tally.clear_stacks()
        worker.wrote_stacks.clear()
        try:
            async with asyncio.timeout_at(until):
                await self._children.signal(worker.process, worker.exited, number)
                await worker.wrote_stacks.wait()
        except TimeoutError:
            return False
        return True

    async def _kernel_threads(self, worker: LocalWorker, seconds: float) -> tuple[KernelThread, ...]:
        from ..stack_report import KernelThread

        pid = worker.placement.pid
        assert pid is not None
        try:
            async with asyncio.timeout(seconds), self._reading:
                found = await in_daemon_thread(functools.partial(kernel_threads, pid, _MOST_THREADS))
        except TimeoutError:
            return ()
        return tuple(from_json(KernelThread, {**each, "name": printable(each["name"])}) for each in found)


def _reason_not_to_ask(worker: LocalWorker) -> str:
    """The reason why the worker cannot be asked; "" if it can."""
    if worker.server.command:
        return "a program has no Python stacks here; its threads, as the kernel sees them:"
    if status_of(worker.placement.pid or 0).get(b"State", b"").startswith((b"T", b"t")):
        return "it is stopped (SIGSTOP, or a debugger): kill -CONT lets it continue"
    if worker.tally is None or not worker.tally.has_stacks:
        return "it cannot be asked: it has just been forked"
    return ""


def _explain_missing_stacks(worker: LocalWorker, source: str) -> str:
    """The reason why the answer is missing or incomplete; "" for a complete one."""
    if source == "python":
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
    caught = status_of(worker.placement.pid or 0).get(b"SigCgt", b"0")
    return bool(int(caught, 16) >> (number - 1) & 1)
