"""Performs what was decided, and reports back what came of it as changes of the entry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from poolctl.clock import Clock
from poolctl.config import ServerConfig
from poolctl.errors import PoolStartError
from poolctl.runners.protocol import Runner

from .activation import Waking
from .addresses import Addresses
from .decide import (
    LEAVING,
    Action,
    Attend,
    Check,
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
from .exits import Deaths, explained
from .file_digests import certificate_ends, digests
from .health import Probing
from .listeners import Doors
from .preloading import Preloading
from .retiring import Retiring
from .sleep import Arm, Disarm, Sleep
from .startup import Births
from .state import Entry, Worker

# An interpreter may take 30 s until it can fork.
_CHECK_SECONDS = 40.0


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
        report_expired: Callable[[Entry, Worker, float], None],
    ) -> None:
        self._runner = runner
        self._touch = touch
        self._deaths = Deaths(clock, touch, configure, jitter)
        self._doors = Doors(runner, addresses, self._deaths, touch)
        self._waking = Waking(runner, touch)
        self._preloading = Preloading(runner)
        self._retiring = Retiring(runner, self._deaths, touch)
        self._births = Births(
            runner, clock, self._deaths, self._preloading, probing, touch, self._leave, report_expired
        )
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
                worker.resting = entry.config.health.gated and not entry.config.command
                entry.workers[worker.id] = worker
                worker.task = self._spawn_task(self._births.live(entry, worker))
            case Check():
                entry.checking = True
                self._spawn_task(self._check(entry, entry.generation))
            case Drain(name):
                worker = entry.workers[name]
                worker.phase = Phase.DRAINING
                self._spawn_task(self._retiring.drain(entry, worker))
            case Stop(name):
                worker = entry.workers[name]
                worker.phase = Phase.STOPPING
                if worker.placement is not None:
                    # One that its successor waits for leaves its connections to it.
                    successor = entry.wanted and (worker.relieved or not worker.config.overlap)
                    self._spawn_task(self._retiring.stop(entry, worker, replaced=successor))
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
                self._waking.arm(entry)
                self._preloading.ahead(entry)
            case Disarm():
                self._waking.disarm(entry)
            case Sleep():
                self._sleep(entry)

    def adopt(self, entry: Entry, worker: Worker) -> None:
        """Go on with a worker that another supervisor has placed."""
        worker.task = self._spawn_task(self._births.go_on(entry, worker))

    def kill(self, entry: Entry, worker: Worker) -> None:
        """End the worker at once, whatever it was told before."""
        worker.phase = Phase.STOPPING
        if worker.placement is not None:
            self._spawn_task(self._retiring.stop(entry, worker, 0))
        else:
            self._preloading.give_up(worker)

    def close(self, held: ServerConfig) -> None:
        """Close a listener that is no server's any more."""
        self._spawn_task(self._runner.close(held.key))

    def idle_after(self, entry: Entry, seconds: float) -> None:
        """Let the entry's workers tell when they have been without traffic for so long."""
        for worker in entry.workers.values():
            worker.idle = False
            if worker.placement is not None:
                self._runner.idle_after(worker.placement, seconds)

    def disarm(self, entry: Entry) -> None:
        """Watch for no request any more."""
        self._waking.disarm(entry)

    def preload(self, entry: Entry) -> None:
        """Import the application of a server that sleeps, in the code of now."""
        self._preloading.ahead(entry)

    async def renew_tls(self, entry: Entry) -> None:
        """Give the workers of the server its certificates as they are now. Raises ServerError."""
        entry.files, ends = digests(entry.config), certificate_ends(entry.config)
        for worker in list(entry.workers.values()):
            if worker.placement is not None and worker.phase not in LEAVING:
                await self._runner.renew_tls(worker.placement, entry.config)
                worker.certificate_ends, worker.passed_over = ends, None
        entry.certificate_ends = ends

    def _sleep(self, entry: Entry) -> None:
        # The bell, or the next worker, takes over what these have.
        entry.called = False
        entry.next_generation()
        for worker in entry.workers.values():
            if worker.phase is Phase.READY:
                worker.phase = Phase.DRAINING
                self._spawn_task(self._retiring.drain(entry, worker, replaced=True))
        self._touch(entry)

    async def _check(self, entry: Entry, generation: int) -> None:
        """Check that workers of the generation can be started; if not, it is given up and the running workers stay."""
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await self._runner.check(entry.config)
        except Exception as error:
            if entry.wanted and entry.generation == generation:
                message, hint = explained(error)
                message = message or f"checking that a worker can start took longer than {_CHECK_SECONDS:g} s"
                self._deaths.note(entry, message, hint, PoolStartError, of_a_worker=False)
                self._deaths.go_back(entry)
        # Without running workers to keep, the start itself reports the problem.
        entry.feasible = generation
        entry.checking = False
        self._touch(entry)

    async def _rotate(self, worker: Worker) -> None:
        assert worker.placement is not None
        await self._runner.rotate(worker.placement, not worker.out)

    def _leave(self, entry: Entry, worker: Worker) -> None:
        leave = self._retiring.drain if worker.phase is Phase.DRAINING else self._retiring.stop
        self._spawn_task(leave(entry, worker))

    def _spawn_task(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
