"""Exits of workers: draining and stopping them, and the consequences when they end by themselves."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from poolctl.clock import Clock
from poolctl.config import Restart
from poolctl.errors import PoolError, PoolStartError, PoolStopError, ServerError
from poolctl.runners.protocol import Exit, Runner, WorkerFailed
from poolctl.units import format_duration

from .desired import Desired
from .registry import Registry
from .state import Entry, Worker
from .view import LEAVING, Phase
from .workqueue import Workqueue

_MORE_FILES = "raise the limit of open files where the pool is started: ulimit -n"
_FIXES = {
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: "raise the machine's limit of open files: fs.file-max",
    errno.ENOSPC: "free some space",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: "raise the limit of processes: ulimit -u, or the container's",
}

logger = logging.getLogger("poolctl.supervisor")


class Exits:
    """Notes in the entry the consequences of an exit."""

    def __init__(
        self, runner: Runner, clock: Clock, queue: Workqueue, registry: Registry, rng: random.Random
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._queue = queue
        self._registry = registry
        self._random = rng

    # Workers that are stopped.

    def leave(self, entry: Entry, worker: Worker) -> None:
        """Drain or stop a worker for which that was decided before it had a process."""
        leave = self.drain if worker.phase is Phase.DRAINING else self.stop
        self._queue.run(leave(entry, worker))

    async def drain(self, entry: Entry, worker: Worker, *, replaced: bool = False) -> None:
        """Let the worker finish its requests, then end it; `replaced`: another one takes over its connections."""
        assert worker.placement is not None
        replaced = replaced or _is_replaced(entry, worker)
        await self._runner.leave(worker.placement, replaced=replaced)
        worker.left = True
        self._queue.touch(entry, progressed=True)
        await self._runner.drain(worker.placement, replaced=replaced)
        if worker.id in entry.workers:
            await self.stop(entry, worker, replaced=replaced)

    async def stop(self, entry: Entry, worker: Worker, *, replaced: bool = False) -> None:
        """End the worker, killed after its `stop_seconds`; without them after its server's `stop_timeout`."""
        assert worker.placement is not None
        limit = worker.config.stop_timeout if worker.stop_seconds is None else worker.stop_seconds
        worker.unstoppable = False
        try:
            exit_ = await self._runner.stop(worker.placement, limit, replaced=replaced)
        except TimeoutError:
            worker.unstoppable = True
            message = f"could not be ended, not even by SIGKILL ({worker.placement.where})"
            self.note(entry, message, "see what it waits for", PoolStopError)
            self._queue.touch(entry, progressed=True)
            return
        if exit_.signal == signal.SIGKILL:
            entry.warnings.append(f"{entry.name}: had to be killed after {format_duration(limit)}")

    # Workers that have ended.

    def ended(self, entry: Entry, worker: Worker, exit_: Exit) -> None:
        """The worker has ended, stopped or by itself."""
        entry.workers.pop(worker.id, None)
        worker.exit = exit_
        if worker.phase not in LEAVING:
            self._unordered_end(entry, worker, exit_)
        self._queue.touch(entry, progressed=True)

    def _unordered_end(self, entry: Entry, worker: Worker, exit_: Exit) -> None:
        was_ready = worker.ready_at is not None
        if not was_ready and not (worker.config.job and exit_.ok):
            failure = worker.failure or failure_of(
                entry, f"{exit_.message} before it was ready", f"poolctl logs {entry.name}", PoolStartError
            )
            entry.failures += 1
            entry.failure, entry.failed_since = failure, worker.placed_at
        if not was_ready and worker.generation == entry.generation and self.go_back(entry):
            return
        if worker.given_up and exit_.ok:
            exit_ = Exit(message=exit_.message)  # it was stopped, and failed at its end
        if worker.generation == entry.generation and entry.wanted:
            self.died(entry, exit_, was_ready=was_ready)

    def go_back(self, entry: Entry) -> bool:
        """Whether an older generation serves: its replacement has failed, so it stays, with its configuration."""
        serving = [
            each
            for each in entry.workers.values()
            if each.phase is Phase.READY and each.generation != entry.generation
        ]
        if not serving:
            return False
        staying = max(serving, key=lambda each: each.generation)
        entry.generation = staying.generation
        entry.retries = True
        # Its workers are replaced by forks of the existing import, whatever was requested since.
        entry.code_since = 0.0
        self._registry.configure(entry, staying.config)
        return True

    def died(self, entry: Entry, exit_: Exit, *, was_ready: bool) -> None:
        """The server ended by itself or could not start: it is completed, failed, or in backoff."""
        now = self._clock.monotonic()
        entry.last_exit = exit_
        if entry.failed:
            return  # given up because of another worker
        if entry.config.job:
            entry.become(Desired.COMPLETED if exit_.ok else Desired.FAILED)
            return
        verdict = judge(
            entry.config.restart,
            exit_,
            was_ready=was_ready,
            restarts=entry.restart_times,
            now=now,
            jitter=self._random.uniform(-1, 1),
            retries=entry.retries,
        )
        if entry.completed and verdict.next is not Next.FAILED:
            return
        if verdict.next is Next.DONE and was_ready and entry.sleepy and not entry.needed:
            # It ended while idle, as socket-activated programs do, or because the previous supervisor had put it to
            # sleep. The next request wakes it.
            entry.called = False
        elif verdict.next is Next.DONE:
            entry.become(Desired.COMPLETED)
        elif verdict.next is Next.FAILED and entry.recovering and not was_ready and _serves(entry):
            # Serving workers stay although the replacement of an unhealthy one does not start.
            self._hold(entry, entry.config.restart.backoff.max)
        elif verdict.next is Next.FAILED:
            entry.become(Desired.FAILED)
            if was_ready or (entry.retries and entry.config.restart.policy != "no"):
                self.note(entry, verdict.reason, f"poolctl logs {entry.name}", PoolStartError)
        else:
            window = entry.config.restart.window
            entry.restart_times = [each for each in entry.restart_times if now - each <= window] + [now]
            entry.restarts += 1
            self._hold(entry, verdict.delay_seconds)

    def _hold(self, entry: Entry, delay_seconds: float) -> None:
        if delay_seconds <= 0:
            return
        loop = asyncio.get_running_loop()
        entry.become(Desired.BACKOFF)
        entry.timers.append(loop.call_later(delay_seconds, self._release, entry))
        if delay_seconds > entry.config.start_timeout:
            entry.timers.append(loop.call_later(entry.config.start_timeout, self._refuse, entry))

    def _release(self, entry: Entry) -> None:
        entry.become(Desired.RUN)
        self._queue.touch(entry, progressed=True)

    def _refuse(self, entry: Entry) -> None:
        entry.become(Desired.REFUSING)
        self._queue.touch(entry, progressed=True)

    def note(
        self,
        entry: Entry,
        message: str,
        hint: str,
        kind: type[PoolError],
        *,
        of_a_worker: bool = True,
        cause: Exception | None = None,
    ) -> None:
        """An attempt has failed; earlier output explains it only if it is of the workers of this attempt."""
        if not of_a_worker:
            entry.failed_since = self._clock.time()
        entry.failures += 1
        entry.failure = failure_of(entry, message, hint, kind, cause=cause)


class Next(StrEnum):
    """The consequences for the server."""

    RESTART = "restart"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, the pause before a restart, and the reason for giving up."""

    next: Next
    delay_seconds: float = 0.0
    reason: str = ""


def judge(
    policy: Restart,
    exit_: Exit,
    *,
    was_ready: bool,
    restarts: Sequence[float],
    now: float,
    jitter: float,
    retries: bool = True,
) -> Verdict:
    """The consequence of an exit without a command.

    `restarts` are the times of the restarts so far, `now` the time of this death (same clock), `jitter` a random number
    from -1 to 1. The first restart within the window is at once, if the worker had ever been ready. Without `retries`
    the exit of a worker that was never ready is final.
    """
    if not (retries or was_ready):
        return Verdict(Next.FAILED, reason=exit_.message)
    if exit_.ok and policy.policy != "always":
        return Verdict(Next.DONE)
    if policy.policy == "no":
        return Verdict(Next.FAILED, reason=exit_.message)
    recent = [moment for moment in restarts if now - moment <= policy.window]
    if len(recent) >= policy.limit:
        reason = f"{exit_.message}; restarted {len(recent)} times within {policy.window:g} s"
        return Verdict(Next.FAILED, reason=reason)
    if not recent and was_ready:
        return Verdict(Next.RESTART)
    backoff = policy.backoff
    steps = max(0, len(recent) - 1)
    # Past this exponent the maximum is reached in any case, and a float would overflow.
    delay = min(backoff.max, backoff.initial * backoff.factor ** min(steps, 64))
    return Verdict(Next.RESTART, delay * (1 + backoff.jitter * jitter))


def _serves(entry: Entry) -> bool:
    return any(each.phase is Phase.READY for each in entry.workers.values())


def failure_of(
    entry: Entry, message: str, hint: str, kind: type[PoolError], *, cause: Exception | None = None
) -> ServerError:
    """The failure of a server, with the code of the attempt."""
    failure = ServerError(
        message, name=entry.name, bind=entry.config.bind, hint=hint, code=kind.code, error=kind.error
    )
    # A runner's own ServerError is only reworded. Without the frames, which would live as long as the failure.
    original = cause.__cause__ if isinstance(cause, ServerError) else cause
    failure.__cause__ = None if original is None else original.with_traceback(None)
    return failure


def explained(error: Exception) -> tuple[str, str]:
    """The message and the hint for an exception of a runner.

    An unexpected one is logged: the server has failed in any case, and no exception may be lost.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return f"the machine refuses a worker: {os.strerror(error.errno)}", _FIXES.get(error.errno, "")
    if not isinstance(error, (ServerError, WorkerFailed, OSError)):
        logger.error("not expected of a runner", exc_info=error)
    return getattr(error, "message", str(error)), getattr(error, "hint", "")


def _is_replaced(entry: Entry, worker: Worker) -> bool:
    """Whether another worker takes over the connections that this one has."""
    return any(
        each.phase is Phase.READY
        and each.config.key == worker.config.key
        and bool(each.config.tls) is bool(worker.config.tls)
        for each in entry.workers.values()
    )
