"""Performs what was decided, and reports back what came of it as changes of the entry."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from poolctl.clock import Clock
from poolctl.config.model import ServerConfig
from poolctl.errors import PoolStartError, PoolStopError
from poolctl.runners.protocol import Exit, Runner, WorkerFailed
from poolctl.units import format_duration

from .addresses import Addresses
from .contents import digests
from .deaths import Deaths, expect, failure_of
from .doors import Doors
from .entry import Entry, Worker, is_gated
from .preloading import Preloading
from .probing import Probing
from .reconcile import (
    LEAVING,
    Action,
    Attend,
    Close,
    Drain,
    Listener,
    Open,
    Phase,
    Release,
    Rotate,
    Spawn,
    Stop,
)
from .sleep import Arm, Disarm, Sleep
from .watch import Watch


class Executor:
    """One task for each worker's life and for each order to one.

    `touch` is told of every change; `configure` gives an entry back the configuration whose replacement failed.
    """

    def __init__(
        self,
        runner: Runner,
        clock: Clock,
        addresses: Addresses,
        touch: Callable[[Entry], None],
        configure: Callable[[Entry, ServerConfig], None],
        jitter: Callable[[], float],
        probing: Probing,
    ) -> None:
        self._probing = probing
        self._runner = runner
        self._clock = clock
        self._touch = touch
        self._deaths = Deaths(clock, touch, configure, jitter)
        self._doors = Doors(runner, addresses, self._deaths, touch)
        self._watch = Watch(runner, touch)
        self._preloading = Preloading(runner)
        self._tasks: set[asyncio.Task[None]] = set()

    def perform(self, entry: Entry, action: Action) -> None:
        """Begin the action; the entry shows at once that it has begun."""
        match action:
            case Open():
                entry.listener, entry.bound = Listener.OPENING, entry.config
                self._spawn_task(self._doors.open(entry))
            case Close():
                entry.listener = Listener.CLOSING
                self._spawn_task(self._doors.close(entry))
            case Release(key):
                held = next(each for each in entry.former if each.key == key)
                entry.former.remove(held)
                entry.releasing.append(held)
                self._spawn_task(self._doors.release(entry, held))
            case Spawn(generation, index):
                worker = Worker(f"{entry.name}.{generation}.{index}", generation, index, entry.config)
                worker.resting = is_gated(entry.config) and not entry.config.command
                entry.workers[worker.id] = worker
                worker.task = self._spawn_task(self._live(entry, worker))
            case Drain(name):
                worker = entry.workers[name]
                worker.phase = Phase.DRAINING
                self._spawn_task(self._drain(entry, worker))
            case Stop(name):
                worker = entry.workers[name]
                worker.phase = Phase.STOPPING
                if worker.placement is not None:
                    # One that its successor waits for leaves its connections to it.
                    successor = entry.wanted and (worker.relieved or not worker.config.overlap)
                    self._spawn_task(self._stop(entry, worker, replaced=successor))
                else:
                    self._preloading.give_up(worker)
            case Rotate(name, in_rotation):
                worker = entry.workers[name]
                worker.out = not in_rotation
                self._spawn_task(self._rotate(worker))
            case Attend(name, accepting):
                worker = entry.workers[name]
                worker.resting = not accepting
                assert worker.placement is not None
                self._spawn_task(self._runner.attend(worker.placement, accepting))
            case Arm():
                self._watch.arm(entry)
                self._preloading.ahead(entry)
            case Disarm():
                self._watch.disarm(entry)
            case Sleep():
                self._sleep(entry)

    def adopt(self, entry: Entry, worker: Worker) -> None:
        """Go on with a worker that another supervisor has placed."""
        worker.task = self._spawn_task(self._go_on(entry, worker))

    def kill(self, entry: Entry, worker: Worker) -> None:
        """End the worker at once, whatever it was told before."""
        worker.phase = Phase.STOPPING
        if worker.placement is not None:
            self._spawn_task(self._stop(entry, worker, 0))
        else:
            self._preloading.give_up(worker)

    def close(self, held: ServerConfig) -> None:
        """Close a listener that is no server's any more."""
        self._spawn_task(self._runner.close(held.key))

    def _spawn_task(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def idle_after(self, entry: Entry, seconds: float) -> None:
        """Let the entry's workers tell when they have been without traffic for so long."""
        for worker in entry.workers.values():
            worker.idle = False
            if worker.placement is not None:
                self._runner.idle_after(worker.placement, seconds)

    def disarm(self, entry: Entry) -> None:
        """Watch for no request any more."""
        self._watch.disarm(entry)

    def preload(self, entry: Entry) -> None:
        """Import the application of a server that sleeps, in the code of now."""
        self._preloading.ahead(entry)

    def _sleep(self, entry: Entry) -> None:
        # The bell, or the next worker, takes over what these have.
        entry.called = False
        entry.next_generation()
        for worker in entry.workers.values():
            if worker.phase is Phase.READY:
                worker.phase = Phase.DRAINING
                self._spawn_task(self._drain(entry, worker, replaced=True))
        self._touch(entry)

    # Workers.

    async def _live(self, entry: Entry, worker: Worker) -> None:
        if worker.phase is not Phase.PLACING:
            self._deaths.ended(entry, worker, Exit(message="was stopped before it was placed"))
            return
        ending = await self._begin(entry, worker)
        if ending is not None:
            self._deaths.ended(entry, worker, await ending)

    async def _begin(self, entry: Entry, worker: Worker) -> asyncio.Future[Exit] | None:
        """Place the worker and see it become ready; a future of its end, None when it could not be placed."""
        worker.placed_at = self._clock.time()
        if worker.generation == entry.generation:
            entry.files = digests(worker.config)
        try:
            if worker.config.preload and not await self._preloading.prepare(entry, worker):
                self._deaths.ended(
                    entry, worker, Exit(message="was stopped before its application was imported")
                )
                return None
            placement = await self._runner.place(worker.config, worker.generation, worker.index)
        except Exception as error:
            expect(error)
            message = getattr(error, "message", str(error))
            worker.failure = failure_of(entry, message, getattr(error, "hint", ""), PoolStartError)
            self._deaths.ended(entry, worker, Exit(message=message))
            return None
        worker.placement = placement
        if worker.phase is Phase.PLACING:
            worker.phase = Phase.STARTING
            self._touch(entry)
        return await self._see_ready(entry, worker)

    async def _see_ready(self, entry: Entry, worker: Worker) -> asyncio.Future[Exit]:
        assert worker.placement is not None
        ending = asyncio.ensure_future(self._runner.watch(worker.placement))
        if worker.phase is Phase.STARTING:
            await self._become_ready(entry, worker, ending)
        elif worker.phase in LEAVING:
            leave = self._drain if worker.phase is Phase.DRAINING else self._stop
            self._spawn_task(leave(entry, worker))
        return ending

    async def _go_on(self, entry: Entry, worker: Worker) -> None:
        self._deaths.ended(entry, worker, await (await self._see_ready(entry, worker)))

    async def _become_ready(self, entry: Entry, worker: Worker, ending: asyncio.Future[Exit]) -> None:
        assert worker.placement is not None
        config = worker.config
        try:
            await self._runner.begun(worker.placement)
            async with asyncio.timeout(None if config.job else config.start_timeout):
                await self._runner.ready(worker.placement)
                if is_gated(config):
                    await self._admit(entry, worker, ending)
        except WorkerFailed as error:
            worker.failure = failure_of(entry, error.message, error.hint, PoolStartError)
        except TimeoutError:
            limit = format_duration(config.start_timeout)
            hint = f"poolctl logs {entry.name}; start_timeout says how long it may take"
            why = self._probing.message(entry, worker)
            message = f"was not ready within {limit}{f': {why}' if why else ''}"
            worker.failure = failure_of(entry, message, hint, PoolStartError)
            worker.given_up = True
            await self._runner.stop(worker.placement, 0)
        except Exception as error:
            expect(error)
            worker.failure = failure_of(entry, str(error), f"poolctl logs {entry.name}", PoolStartError)
            worker.given_up = True
            await self._runner.stop(worker.placement, 0)
        else:
            if worker.phase is Phase.STARTING:
                worker.phase = Phase.READY
                worker.ready_at = self._clock.monotonic()
                entry.called = True
                self._touch(entry)

    async def _admit(self, entry: Entry, worker: Worker, ending: asyncio.Future[Exit]) -> None:
        """Return when its probes have passed. Raises WorkerFailed when it has ended before."""
        passing = asyncio.ensure_future(self._probing.admit(entry, worker))
        try:
            either: set[asyncio.Future[Any]] = {passing, ending}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            passing.cancel()
        if ending.done():
            exit_ = ending.result()
            hint = f"poolctl logs {entry.name}"
            raise WorkerFailed(f"{exit_.message} before it was ready", hint=hint, exit=exit_)
        await passing

    async def _drain(self, entry: Entry, worker: Worker, *, replaced: bool = False) -> None:
        assert worker.placement is not None
        replaced = replaced or _is_replaced(entry, worker)
        await self._runner.leave(worker.placement, replaced=replaced)
        worker.left = True
        self._touch(entry)
        await self._runner.drain(worker.placement, replaced=replaced)
        if worker.id in entry.workers:
            await self._stop(entry, worker, replaced=replaced)

    async def renew_tls(self, entry: Entry) -> None:
        """Give the workers of the server its certificates as they are now. Raises ServerError."""
        entry.files = digests(entry.config)
        for worker in list(entry.workers.values()):
            if worker.placement is not None and worker.phase not in LEAVING:
                await self._runner.renew_tls(worker.placement, entry.config)

    async def _rotate(self, worker: Worker) -> None:
        assert worker.placement is not None
        await self._runner.rotate(worker.placement, not worker.out)

    async def _stop(
        self, entry: Entry, worker: Worker, limit_seconds: float | None = None, *, replaced: bool = False
    ) -> None:
        assert worker.placement is not None
        limit = worker.config.stop_timeout if limit_seconds is None else limit_seconds
        try:
            exit_ = await self._runner.stop(worker.placement, limit, replaced=replaced)
        except TimeoutError:
            self._deaths.note(
                entry, "could not be ended, not even by SIGKILL", "see what it waits for", PoolStopError
            )
            self._touch(entry)
            return
        if exit_.signal == signal.SIGKILL:
            entry.warnings.append(f"{entry.name}: had to be killed after {format_duration(limit)}")


def _is_replaced(entry: Entry, worker: Worker) -> bool:
    """Whether another worker takes over the connections that this one has."""
    return any(
        each.phase is Phase.READY
        and each.config.key == worker.config.key
        and bool(each.config.tls) is bool(worker.config.tls)
        for each in entry.workers.values()
    )
