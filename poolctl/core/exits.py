"""What follows when a worker has ended: nothing, a restart at once or later, or giving up."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable

from poolctl.clock import Clock
from poolctl.config import ServerConfig
from poolctl.errors import PoolError, PoolStartError, ServerError
from poolctl.runners.protocol import Exit, WorkerFailed

from . import restart_policy
from .decide import LEAVING, Phase
from .restart_policy import Next
from .state import Entry, Worker

_MORE_FILES = "raise the limit of open files where the pool is started: ulimit -n"
_MENDS = {
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: "raise the machine's limit of open files: fs.file-max",
    errno.ENOSPC: "free some space",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: "raise the limit of processes: ulimit -u, or the container's",
}

logger = logging.getLogger("poolctl.supervisor")


class Deaths:
    """Shows in the entry what came of an end; `touch` is told.

    `configure` gives an entry back the configuration whose replacement failed; `jitter` gives random numbers from -1
    to 1.
    """

    def __init__(
        self,
        clock: Clock,
        touch: Callable[[Entry], None],
        configure: Callable[[Entry, ServerConfig], None],
        jitter: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._touch = touch
        self._configure = configure
        self._jitter = jitter

    def ended(self, entry: Entry, worker: Worker, exit_: Exit) -> None:
        """The worker is gone, told to or not."""
        entry.workers.pop(worker.id, None)
        worker.exit = exit_
        if worker.phase not in LEAVING:
            self._unordered_end(entry, worker, exit_)
        self._touch(entry)

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
            exit_ = Exit(message=exit_.message)  # it did as it was told, and has failed all the same
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
        # Whoever replaces a worker of it is forked from the import that is there, whatever has been ordered since.
        entry.code_since = 0.0
        self._configure(entry, staying.config)
        return True

    def died(self, entry: Entry, exit_: Exit, *, was_ready: bool) -> None:
        """Nobody ordered it: done, failed, or to be tried again."""
        now = self._clock.monotonic()
        entry.last_exit = exit_
        if entry.config.job:
            entry.done, entry.failed = exit_.ok, not exit_.ok
            return
        verdict = restart_policy.judge(
            entry.config.restart,
            exit_,
            was_ready=was_ready,
            restarts=entry.restart_times,
            now=now,
            jitter=self._jitter(),
        )
        if verdict.next is Next.DONE and was_ready and entry.sleepy and not entry.needed:
            # It has had enough for now, as programs do that are started by a socket; or the supervisor before had told
            # it to sleep. The next request wakes it.
            entry.called = False
        elif verdict.next is Next.DONE:
            entry.done = True
        elif verdict.next is Next.FAILED and entry.recovering and not was_ready and _serves(entry):
            # Those that serve are not taken away because one that was to take an ailing one's place does not start.
            self._hold(entry, entry.config.restart.backoff.max)
        elif verdict.next is Next.FAILED:
            entry.failed = True
            if was_ready or entry.config.restart.policy != "no":
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

    def note(
        self, entry: Entry, message: str, hint: str, kind: type[PoolError], *, of_a_worker: bool = True
    ) -> None:
        """An attempt has failed; what workers have printed before explains it only if it was one of theirs."""
        if not of_a_worker:
            entry.failed_since = self._clock.time()
        entry.failures += 1
        entry.failure = failure_of(entry, message, hint, kind)


def _serves(entry: Entry) -> bool:
    return any(each.phase is Phase.READY for each in entry.workers.values())


def failure_of(entry: Entry, message: str, hint: str, kind: type[PoolError]) -> ServerError:
    """The failure of a server, with the code of what was tried."""
    return ServerError(
        message, name=entry.name, bind=entry.config.bind, hint=hint, code=kind.code, error=kind.error
    )


def explained(error: Exception) -> tuple[str, str]:
    """The message and the hint of what a runner has raised.

    What none should raise is logged: the server has failed in any case, and no task may end unseen.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return f"the machine refuses a worker: {os.strerror(error.errno)}", _MENDS.get(error.errno, "")
    if not isinstance(error, (ServerError, WorkerFailed, OSError)):
        logger.error("not expected of a runner", exc_info=error)
    return getattr(error, "message", str(error)), getattr(error, "hint", "")
