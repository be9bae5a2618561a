"""Performs what was decided, and reports back what came of it as changes of the entry."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable

from poolctl.clock import Clock
from poolctl.errors import ServerError
from poolctl.runners.protocol import Exit, Runner, WorkerFailed
from poolctl.units import format_duration

from .entry import Entry, Worker
from .policy import Next, judge
from .reconcile import LEAVING, Action, Close, Drain, Listener, Open, Phase, Spawn, Stop

logger = logging.getLogger("poolctl.supervisor")

START_FAILED = (1323, "ErrorPoolStart")
STOP_FAILED = (1324, "ErrorPoolStop")


class Executor:
    """One task for each worker's life and for each order to one. `touch` is told of every change."""

    def __init__(
        self, runner: Runner, clock: Clock, touch: Callable[[Entry], None], jitter: Callable[[], float]
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._touch = touch
        self._jitter = jitter
        self._tasks: set[asyncio.Task[None]] = set()

    def perform(self, entry: Entry, action: Action) -> None:
        """Begin the action; the entry shows at once that it has begun."""
        match action:
            case Open():
                entry.listener = Listener.OPENING
                self._spawn_task(self._open(entry))
            case Close():
                entry.listener = Listener.CLOSING
                self._spawn_task(self._close(entry))
            case Spawn(generation, index):
                worker = Worker(f"{entry.name}.{generation}.{index}", generation, index)
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
                    self._spawn_task(self._stop(entry, worker))

    def adopt(self, entry: Entry, worker: Worker) -> None:
        """Go on with a worker that another supervisor has placed."""
        worker.task = self._spawn_task(self._go_on(entry, worker))

    def kill(self, entry: Entry, worker: Worker) -> None:
        """End the worker at once, whatever it was told before."""
        worker.phase = Phase.STOPPING
        if worker.placement is not None:
            self._spawn_task(self._stop(entry, worker, 0))

    def _spawn_task(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Listeners.

    async def _open(self, entry: Entry) -> None:
        try:
            await self._runner.open(entry.config)
        except Exception as error:
            _expect(error)
            entry.listener = Listener.CLOSED
            message = getattr(error, "message", str(error))
            self._note(entry, message, getattr(error, "hint", ""), START_FAILED)
            if entry.wanted:
                self._after_death(entry, Exit(message=message), was_ready=False)
        else:
            entry.listener = Listener.OPEN
        self._touch(entry)

    async def _close(self, entry: Entry) -> None:
        await self._runner.close(entry.config.key)
        entry.listener = Listener.CLOSED
        self._touch(entry)

    # Workers.

    async def _live(self, entry: Entry, worker: Worker) -> None:
        if worker.phase is not Phase.PLACING:
            self._ended(entry, worker, Exit(message="was stopped before it was placed"))
            return
        ending = await self._begin(entry, worker)
        if ending is not None:
            self._ended(entry, worker, await ending)

    async def _begin(self, entry: Entry, worker: Worker) -> asyncio.Future[Exit] | None:
        """Place the worker and see it become ready; a future of its end, None when it could not be placed."""
        worker.placed_at = self._clock.time()
        try:
            placement = await self._runner.place(entry.config, worker.generation, worker.index)
        except Exception as error:
            _expect(error)
            message = getattr(error, "message", str(error))
            worker.failure = self._failure(entry, message, getattr(error, "hint", ""), START_FAILED)
            self._ended(entry, worker, Exit(message=message))
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
            await self._become_ready(entry, worker)
        elif worker.phase in LEAVING:
            leave = self._drain if worker.phase is Phase.DRAINING else self._stop
            self._spawn_task(leave(entry, worker))
        return ending

    async def _go_on(self, entry: Entry, worker: Worker) -> None:
        self._ended(entry, worker, await (await self._see_ready(entry, worker)))

    async def _become_ready(self, entry: Entry, worker: Worker) -> None:
        assert worker.placement is not None
        config = entry.config
        try:
            await self._runner.begun(worker.placement)
            async with asyncio.timeout(None if config.job else config.start_timeout):
                await self._runner.ready(worker.placement)
        except WorkerFailed as error:
            worker.failure = self._failure(entry, error.message, error.hint, START_FAILED)
        except TimeoutError:
            limit = format_duration(config.start_timeout)
            hint = f"poolctl logs {entry.name}; start_timeout says how long it may take"
            worker.failure = self._failure(entry, f"was not ready within {limit}", hint, START_FAILED)
            await self._runner.stop(worker.placement, 0)
        except Exception as error:
            _expect(error)
            worker.failure = self._failure(entry, str(error), f"poolctl logs {entry.name}", START_FAILED)
            await self._runner.stop(worker.placement, 0)
        else:
            if worker.phase is Phase.STARTING:
                worker.phase = Phase.READY
                worker.ready_at = self._clock.monotonic()
                self._touch(entry)

    async def _drain(self, entry: Entry, worker: Worker) -> None:
        assert worker.placement is not None
        await self._runner.drain(worker.placement)
        if worker.id in entry.workers:
            await self._stop(entry, worker)

    async def _stop(self, entry: Entry, worker: Worker, limit_seconds: float | None = None) -> None:
        assert worker.placement is not None
        limit = entry.config.stop_timeout if limit_seconds is None else limit_seconds
        try:
            exit_ = await self._runner.stop(worker.placement, limit)
        except TimeoutError:
            self._note(entry, "could not be ended, not even by SIGKILL", "see what it waits for", STOP_FAILED)
            self._touch(entry)
            return
        if exit_.signal == signal.SIGKILL:
            entry.warnings.append(f"{entry.name}: had to be killed after {format_duration(limit)}")

    # Ends.

    def _ended(self, entry: Entry, worker: Worker, exit_: Exit) -> None:
        entry.workers.pop(worker.id, None)
        if worker.phase not in LEAVING:
            self._unordered_end(entry, worker, exit_)
        self._touch(entry)

    def _unordered_end(self, entry: Entry, worker: Worker, exit_: Exit) -> None:
        was_ready = worker.ready_at is not None
        if not was_ready and not (entry.config.job and exit_.ok):
            failure = worker.failure or self._failure(
                entry, f"{exit_.message} before it was ready", f"poolctl logs {entry.name}", START_FAILED
            )
            entry.failures += 1
            entry.failure, entry.failed_since = failure, worker.placed_at
        serving = [
            each.generation
            for each in entry.workers.values()
            if each.phase is Phase.READY and each.generation != worker.generation
        ]
        if not was_ready and worker.generation == entry.generation and serving:
            # The replacement failed: the generation that serves stays.
            entry.generation = max(serving)
            return
        if worker.generation == entry.generation and entry.wanted:
            self._after_death(entry, exit_, was_ready=was_ready)

    def _after_death(self, entry: Entry, exit_: Exit, *, was_ready: bool) -> None:
        now = self._clock.monotonic()
        if entry.config.job:
            entry.done, entry.failed = exit_.ok, not exit_.ok
            return
        verdict = judge(
            entry.config.restart,
            exit_,
            was_ready=was_ready,
            restarts=entry.restart_times,
            now=now,
            jitter=self._jitter(),
        )
        if verdict.next is Next.DONE:
            entry.done = True
        elif verdict.next is Next.FAILED:
            entry.failed = True
            if was_ready or entry.config.restart.policy != "no":
                self._note(entry, verdict.reason, f"poolctl logs {entry.name}", START_FAILED)
        else:
            entry.restart_times.append(now)
            entry.restarts += 1
            self._hold(entry, verdict.delay_seconds)

    def _hold(self, entry: Entry, delay_seconds: float) -> None:
        if delay_seconds <= 0:
            return
        loop = asyncio.get_running_loop()
        entry.cancel_timers()
        entry.held = True
        entry.timers.append(loop.call_later(delay_seconds, self._release, entry))
        if delay_seconds > entry.config.start_timeout:
            entry.timers.append(loop.call_later(entry.config.start_timeout, self._refuse, entry))

    def _release(self, entry: Entry) -> None:
        entry.cancel_timers()
        self._touch(entry)

    def _refuse(self, entry: Entry) -> None:
        entry.refusing = True
        self._touch(entry)

    def _note(self, entry: Entry, message: str, hint: str, kind: tuple[int, str]) -> None:
        entry.failures += 1
        entry.failure = self._failure(entry, message, hint, kind)

    def _failure(self, entry: Entry, message: str, hint: str, kind: tuple[int, str]) -> ServerError:
        code, error = kind
        return ServerError(
            message, name=entry.name, bind=entry.config.bind, hint=hint, code=code, error=error
        )


def _expect(error: Exception) -> None:
    """Log an error that no runner should raise. The server has failed in any case, and no task may end unseen."""
    if not isinstance(error, (ServerError, WorkerFailed, OSError)):
        logger.error("not expected of a runner", exc_info=error)
