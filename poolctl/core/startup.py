"""The life of a worker: started, awaited until it is ready, watched until it ends."""

from __future__ import annotations

import asyncio

from poolctl.clock import Clock
from poolctl.errors import PoolStartError
from poolctl.runners.protocol import Exit, Runner, WorkerFailed, app_state
from poolctl.units import format_duration

from .certificates import report_expired
from .events import Recorder
from .exits import Exits, explained, failure_of
from .file_digests import certificate_ends, digests
from .health import HealthChecks
from .state import Entry, Worker
from .view import LEAVING, Phase
from .workqueue import Workqueue


class Startup:
    """Notes in the entry the progress of its workers."""

    def __init__(
        self,
        runner: Runner,
        clock: Clock,
        queue: Workqueue,
        exits: Exits,
        health: HealthChecks,
        recorder: Recorder,
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._queue = queue
        self._exits = exits
        self._health = health
        self._recorder = recorder

    async def live(self, entry: Entry, worker: Worker) -> None:
        """Place the worker and watch it until it ends."""
        if worker.phase is not Phase.PLACING:
            self._exits.ended(entry, worker, Exit(message="was stopped before it was placed"))
            return
        ending = await self._begin(entry, worker)
        if ending is not None:
            self._ended(entry, worker, await ending)

    async def go_on(self, entry: Entry, worker: Worker) -> None:
        """Watch a worker that another supervisor has placed until it ends."""
        self._exits.ended(entry, worker, await (await self._see_ready(entry, worker)))

    async def _begin(self, entry: Entry, worker: Worker) -> asyncio.Future[Exit] | None:
        """Place the worker and wait until it is ready; a future of its exit, None when it could not be placed."""
        worker.placed_at = self._clock.time()
        worker.certificate_ends = certificate_ends(worker.config)
        worker.files_before, worker.files = entry.files, digests(worker.config)
        if worker.generation == entry.generation:
            entry.files = worker.files
            self._queue.note(entry)
        try:
            if worker.config.preload and not await self._prepare(entry, worker):
                self._exits.ended(
                    entry, worker, Exit(message="was stopped before its application was imported")
                )
                return None
            app_state.set(entry.app_state)  # in the context of this worker's task
            placement = await self._runner.place(worker.config, worker.generation, worker.index)
        except Exception as error:
            worker.failure = failure_of(entry, *explained(error), PoolStartError, cause=error)
            message = worker.failure.message
            self._ended(entry, worker, Exit(message=message))
            return None
        worker.placement = placement
        self._check_certificate(entry, worker)
        if worker.phase is Phase.PLACING:
            worker.phase = Phase.STARTING
            self._queue.touch(entry, progressed=True)
        return await self._see_ready(entry, worker)

    def _ended(self, entry: Entry, worker: Worker, exit_: Exit) -> None:
        """Report the exit; files read by a worker that failed before it was ready are not in use."""
        if worker.ready_at is None and worker.phase not in LEAVING and entry.files == worker.files:
            entry.files = worker.files_before or entry.files
        self._exits.ended(entry, worker, exit_)

    def _check_certificate(self, entry: Entry, worker: Worker) -> None:
        """Report a file whose certificate has expired."""
        assert worker.placement is not None
        expired, used = worker.certificate_ends, worker.placement.certificate_ends
        if expired is None or expired > self._clock.time():
            return
        if used is not None and used > expired:
            worker.certificate_ends, worker.passed_over = used, expired
            # For the next reload, the file still differs from the one in use.
            if worker.generation == entry.generation and "tls" in worker.files_before:
                entry.files = {**entry.files, "tls": worker.files_before["tls"]}
        report_expired(self._recorder, entry, worker, expired)

    async def _see_ready(self, entry: Entry, worker: Worker) -> asyncio.Future[Exit]:
        assert worker.placement is not None
        ending = asyncio.ensure_future(self._runner.watch(worker.placement))
        if worker.phase is Phase.STARTING:
            await self._become_ready(entry, worker, ending)
        elif worker.phase in LEAVING:
            self._exits.leave(entry, worker)
        return ending

    async def _become_ready(self, entry: Entry, worker: Worker, ending: asyncio.Future[Exit]) -> None:
        assert worker.placement is not None
        config = worker.config
        try:
            await self._runner.begun(worker.placement)
            async with asyncio.timeout(None if config.job else config.start_timeout):
                await self._runner.ready(worker.placement)
                if config.health.gated:
                    await self._health.admit(entry, worker, ending)
        except WorkerFailed as error:
            worker.failure = failure_of(entry, error.message, error.hint, PoolStartError, cause=error)
        except TimeoutError as error:
            limit = format_duration(config.start_timeout)
            hint = f"poolctl logs {entry.name}; start_timeout says how long it may take"
            why = self._health.message(entry, worker)
            message = f"was not ready within {limit}{f': {why}' if why else ''}"
            worker.failure = failure_of(entry, message, hint, PoolStartError, cause=error)
            worker.given_up = True
            await self._runner.stop(worker.placement, 0)
        except Exception as error:
            message, hint = explained(error)
            hint = hint or f"poolctl logs {entry.name}"
            worker.failure = failure_of(entry, message, hint, PoolStartError, cause=error)
            worker.given_up = True
            await self._runner.stop(worker.placement, 0)
        else:
            if worker.phase is Phase.STARTING:
                worker.phase = Phase.READY
                worker.ready_at = self._clock.monotonic()
                entry.count_restart(worker)
                entry.called = True
                entry.retries = entry.retries or entry.complete
                if worker.generation == entry.generation:
                    entry.certificate_ends = worker.certificate_ends
                self._queue.touch(entry, progressed=True)

    async def _prepare(self, entry: Entry, worker: Worker) -> bool:
        """Import the application before the worker is placed; False if the worker is not wanted any more.

        Raises ServerError or WorkerFailed, as the runner does.
        """
        worker.preparing = asyncio.ensure_future(self._runner.prepare(worker.config, entry.code_since))
        await asyncio.wait({worker.preparing})
        if worker.preparing.cancelled():
            return False
        entry.preload_problem = worker.preparing.result()
        warning = f"{entry.name}: preload = true has no effect: {entry.preload_problem}"
        if entry.preload_problem and warning not in entry.warnings:
            entry.warnings.append(warning)
        return worker.phase is Phase.PLACING


def cancel(worker: Worker) -> None:
    """Give up a worker without a process that is not wanted any more."""
    if worker.preparing is not None:
        worker.preparing.cancel()
