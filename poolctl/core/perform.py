"""Performs the decided actions, and notes their outcome in the entries."""

from __future__ import annotations

import asyncio
import random
from functools import partial

from poolctl.clock import Clock
from poolctl.config import ServerConfig
from poolctl.errors import ServerError
from poolctl.runners.runner_protocol import Exit, Runner, WorkerFailed

from .address_changes import Addresses
from .decide import (
    Action,
    Arm,
    Attend,
    Check,
    Close,
    Disarm,
    Drain,
    EndHook,
    FallAsleep,
    Open,
    Release,
    Rotate,
    RunHook,
    Spawn,
    Stop,
)
from .decision_input import ASLEEP, Desired, Listener, Phase
from .health_checks import HealthChecks
from .server_changes import Recorder, Workqueue, caused_by
from .server_entry import Entry, RunningHook, Worker
from .server_hooks import ServerHooks
from .servers import Servers
from .stack_reports import StackReports
from .worker_lifecycle import WorkerLifecycle, cancel, explained

# An interpreter may take 30 s until it can fork.
_CHECK_SECONDS = 40.0


class Executor:
    """One task for the life of each worker, and one for each action on it."""

    def __init__(
        self,
        runner: Runner,
        clock: Clock,
        queue: Workqueue,
        addresses: Addresses,
        servers: Servers,
        health: HealthChecks,
        stacks: StackReports,
        recorder: Recorder,
        rng: random.Random,
    ) -> None:
        self._runner = runner
        self._sleep = runner.capabilities.sleep
        self._queue = queue
        self._addresses = addresses
        self.workers = WorkerLifecycle(runner, clock, queue, servers, health, stacks, recorder, rng)
        self.hooks = ServerHooks(runner, clock, queue, self.workers, recorder)

    def perform(self, entry: Entry, action: Action) -> None:
        """Begin the action; the entry shows at once that it has begun."""
        match action:
            case Open():
                entry.listener.state, entry.listener.bound = Listener.OPENING, entry.config
                self._queue.run(self._open(entry))
            case Close():
                entry.listener.state = Listener.CLOSING
                self._queue.run(self._close(entry))
            case Release(key):
                held = next(each for each in entry.listener.former if each.key == key)
                entry.listener.former.remove(held)
                entry.listener.releasing.append(held)
                self._queue.run(self._release(entry, held))
            case Spawn(generation, index):
                self._spawn(entry, generation, index)
            case Check():
                entry.observed.checking = True
                self._queue.run(self._check(entry, entry.desired.generation))
            case Drain(name):
                worker = entry.observed.workers[name]
                worker.phase = Phase.DRAINING
                self._queue.run(self.workers.drain(entry, worker))
            case Stop(name):
                self._stop(entry, entry.observed.workers[name])
            case Rotate(name, in_rotation):
                worker = entry.observed.workers[name]
                worker.out = not in_rotation
                assert worker.placement is not None
                self._queue.run(self._runner.rotate(worker.placement, in_rotation))
            case Attend(name, accepting):
                worker = entry.observed.workers[name]
                worker.resting = not accepting
                assert worker.placement is not None
                self._queue.run(self._runner.attend(worker.placement, accepting))
            case Arm():
                self._arm(entry)
            case Disarm():
                self.disarm(entry)
            case FallAsleep():
                self._fall_asleep(entry)
            case RunHook(hook):
                self.hooks.begin(entry, RunningHook(hook))
            case EndHook():
                self.hooks.end(entry)

    def _spawn(self, entry: Entry, generation: int, index: int) -> None:
        config = entry.config_of(generation)
        worker = Worker(f"{entry.name}.{generation}.{index}", generation, index, config)
        worker.resting = config.health.gated and not config.command
        entry.observed.workers[worker.id] = worker
        worker.task = self._queue.run(self.workers.live(entry, worker))

    def _stop(self, entry: Entry, worker: Worker) -> None:
        worker.phase = Phase.STOPPING
        if worker.placement is not None:
            # A worker whose successor waits for its end leaves its connections to that.
            successor = entry.wanted and (worker.relieved or not worker.config.overlap)
            self._queue.run(self.workers.stop(entry, worker, replaced=successor))
        else:
            cancel(worker)

    def adopt(self, entry: Entry, worker: Worker) -> None:
        """Continue with a worker that another supervisor has placed."""
        worker.task = self._queue.run(self.workers.go_on(entry, worker))

    def kill(self, entry: Entry, worker: Worker) -> None:
        """End the worker at once, although it may be leaving already."""
        worker.phase = Phase.STOPPING
        worker.stop_seconds = 0
        if worker.placement is not None:
            self._queue.run(self.workers.stop(entry, worker))
        else:
            cancel(worker)

    def close(self, held: ServerConfig) -> None:
        """Close a listener that belongs to no server any more."""
        self._addresses.closed(held.key)
        self._queue.run(self._runner.close(held.key))

    async def _check(self, entry: Entry, generation: int) -> None:
        """Check that workers of the generation can be started; if not, it is given up and the running workers stay."""
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await self._runner.check(entry.config)
        except Exception as error:
            if entry.wanted and entry.desired.generation == generation:
                message, hint = explained(error)
                message = message or f"checking that a worker can start took longer than {_CHECK_SECONDS:g} s"
                self.workers.note(entry, message, hint, of_a_worker=False)
                self.workers.go_back(entry)
        # Without running workers to keep, the start itself reports the problem.
        entry.observed.feasible = generation
        entry.observed.checking = False
        self._queue.touch(entry, progressed=True)

    # Listeners.

    async def _open(self, entry: Entry) -> None:
        """Open the listener that the entry is bound to."""
        assert entry.listener.bound is not None
        try:
            opened = await self._runner.open(entry.listener.bound)
        except Exception as error:
            entry.listener.state, entry.listener.bound = Listener.CLOSED, None
            if entry.wanted:  # otherwise it was stopped meanwhile, which is no failure
                message, hint = explained(error)
                self.workers.note(entry, message, hint, of_a_worker=False, cause=error)
                if not self.workers.go_back(entry):
                    self.workers.died(entry, Exit(message=message), was_ready=False)
        else:
            entry.listener.state = Listener.OPEN
            self._addresses.opened(entry, opened)
        self._queue.touch(entry, progressed=True)

    async def _close(self, entry: Entry) -> None:
        """Close the listener of the entry, unless another server takes it over."""
        assert entry.listener.bound is not None
        await self._release(entry, entry.listener.bound)
        entry.listener.state, entry.listener.bound, entry.listener.vacates = Listener.CLOSED, None, False
        self._queue.touch(entry, progressed=True)

    async def _release(self, entry: Entry, held: ServerConfig) -> None:
        """Close a listener that the entry had before, unless another server takes it over."""
        if self._addresses.give_up(entry, held):
            self._addresses.closed(held.key)
            await self._runner.close(held.key)
        if held in entry.listener.releasing:
            entry.listener.releasing.remove(held)
        self._queue.touch(entry, progressed=True)

    # Sleep: the runner watches the listener, and the first request wakes the server.

    def _arm(self, entry: Entry) -> None:
        assert self._sleep is not None, "entries are sleepy only with a runner that can watch listeners"
        entry.listener.armed = entry.config
        self._sleep.arm(entry.config, partial(self._called, entry))
        self.preload(entry)

    def disarm(self, entry: Entry) -> None:
        """Stop watching for a request; the workers that come take the waiting connections."""
        if entry.listener.armed is not None:
            if self._sleep is not None:
                self._sleep.disarm(entry.listener.armed.key)
            entry.listener.armed = None

    def wake(self, entry: Entry) -> None:
        """Wake the server if it sleeps or falls asleep, without a connection that waits for it."""
        if entry.listener.armed is not None:
            self.disarm(entry)
            self._called(entry)
        elif (
            entry.sleeps
            and entry.observed.workers
            and entry.desired.state is Desired.RUN
            and entry.kept != ASLEEP
        ):
            self._called(entry)

    def idle_after(self, entry: Entry, seconds: float) -> None:
        """Have the entry's workers report when they have had no traffic for so long."""
        for worker in entry.observed.workers.values():
            worker.idle = False
            if self._sleep is not None and worker.placement is not None:
                self._sleep.idle_after(worker.placement, seconds)

    def _fall_asleep(self, entry: Entry) -> None:
        # The activator, or the next worker, takes over the connections that these have.
        entry.observed.called, entry.desired.automatic = False, None
        entry.next_generation()
        for worker in entry.observed.workers.values():
            if worker.phase is Phase.READY:
                worker.phase = Phase.DRAINING
                self._queue.run(self.workers.drain(entry, worker, replaced=True))
        self._queue.touch(entry, progressed=True)

    def preload(self, entry: Entry) -> None:
        """Import the current application of a sleeping server, so that waking it takes only a fork."""
        if entry.config.preload:
            self._queue.run(self._preload(entry))

    async def _preload(self, entry: Entry) -> None:
        try:
            entry.observed.preload_problem = await self._runner.prepare(
                entry.config, entry.desired.code_since
            )
        except (ServerError, WorkerFailed, OSError):
            # Its next start reports the problem; until then it is in the server's log.
            return
        self._queue.note(entry)

    def _called(self, entry: Entry) -> None:
        entry.listener.armed = None
        entry.observed.called = True
        loop = asyncio.get_running_loop()
        loop.call_later(entry.config.start_timeout, self._give_up, entry, entry.desired.newest)
        with caused_by("a request"):
            self._queue.touch(entry, progressed=True)

    def _give_up(self, entry: Entry, newest: int) -> None:
        """Close the connections that wait for a wake that has failed; later ones wait for the next attempt."""
        if entry.desired.newest != newest or entry.ready or entry.listener.armed is not None:
            return
        coming = [
            each for each in entry.observed.workers.values() if each.phase in (Phase.PLACING, Phase.STARTING)
        ]
        for worker in coming[:1]:
            # It has begun: no connection is closed before that attempt is over.
            assert worker.task is not None
            worker.task.add_done_callback(partial(self._came_to_nothing, entry, worker, newest))
            return
        if self._sleep is not None:
            self._sleep.dismiss(entry.config.key)

    def _came_to_nothing(self, entry: Entry, worker: Worker, newest: int, ended: asyncio.Task[None]) -> None:
        if worker.ready_at is None:
            self._give_up(entry, newest)
