"""Performs the decided actions on listeners and workers, and records the results in the entries."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Awaitable
from functools import partial

from poolctl.clock import Clock
from poolctl.config import ServerConfig
from poolctl.errors import PoolStopError, ServerError
from poolctl.runners.runner_protocol import Exit, Runner, WorkerFailed, app_state
from poolctl.states import Status
from poolctl.units import format_duration

from . import decide
from .addresses import AddressRegistry, listeners_beside, same_listener
from .configuration_diff import expired_message, read_certificate_expiry, read_digests_by_key
from .decide import ASLEEP, Action
from .exits import ExitHandler, has_older_worker
from .explain import (
    LAST_LINES,
    cause_of,
    describe_hang,
    explain_last_lines,
    explanatory_lines,
    failure_of,
    final_line,
    is_quoted,
    logged_exceptions,
    message_and_hint,
    note_failure,
    record_warning,
    warn_once,
)
from .health_checks import HealthChecks
from .hooks import HookRunner
from .server_entry import RUN_FAILED, STEADY_SECONDS, Entry
from .server_state import Desired, ListenerState, RunningHook
from .servers import ServerRegistry
from .worker import LEAVING, Worker, WorkerPhase
from .workqueue import Recorder, Workqueue, caused_by

logger = logging.getLogger("poolctl.supervisor")


# An interpreter may take 30 s until it can fork.
_CHECK_SECONDS = 40.0
# Added to a timeout: time to read reports that have already arrived.
_REPORT_GRACE_SECONDS = 0.1
# Time for a worker with a stuck event loop to recover and end by itself.
STUCK_SECONDS = 1.0
_SOCKET_HINT = (
    "the pool listens there for it: have it take that socket ({fd}, LISTEN_FDS), "
    'or write socket = "program" to let it open its own'
)


class Executor:
    """Performs actions in tasks: one for the whole life of each worker, and a further one for each action on it.

    They record the progress of workers and the consequences of exits in the entry.
    """

    def __init__(
        self,
        runner: Runner,
        clock: Clock,
        queue: Workqueue,
        addresses: AddressRegistry,
        servers: ServerRegistry,
        health: HealthChecks,
        recorder: Recorder,
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._queue = queue
        self._addresses = addresses
        self._health = health
        self._recorder = recorder
        self.hooks = HookRunner(runner, clock, queue, recorder)
        self.exits = ExitHandler(
            clock, queue, addresses, servers, recorder, on_roll_back=self.change_socket_access_or_warn
        )

    def perform(self, entry: Entry, action: Action) -> None:
        """Begin the action. The entry shows at once that it has begun."""
        match action:
            case decide.Open():
                entry.listener.state, entry.listener.bound = ListenerState.OPENING, entry.config
                entry.listener.returned = False
                self._queue.run(self._open_listener(entry))
            case decide.Close() | decide.Refuse():
                entry.listener.state = ListenerState.CLOSING
                self._queue.run(self._close_listener(entry, refuses=isinstance(action, decide.Refuse)))
            case decide.Release(key):
                held = next(config for config in entry.listener.previous_configs if config.key == key)
                entry.listener.previous_configs.remove(held)
                entry.listener.releasing.append(held)
                self._queue.run(self._close_unless_claimed(entry, held))
            case decide.Spawn(generation, index):
                self._spawn(entry, generation, index)
            case decide.Check():
                entry.observed.checking = True
                self._queue.run(self._check_startable(entry, entry.desired.generation))
            case decide.Drain(name):
                self._end(entry, entry.observed.workers[name], WorkerPhase.DRAINING, replaced=False)
            case decide.Stop(name):
                worker = entry.observed.workers[name]
                # A replacement that waits for the worker's end takes over its connections.
                replaced = not entry.wants_no_worker and _takes_connections_of(worker, entry.config)
                self._end(entry, worker, WorkerPhase.STOPPING, replaced=replaced)
            case decide.Rotate(name, in_rotation):
                worker = entry.observed.workers[name]
                worker.out = not in_rotation
                assert worker.placement is not None
                self._queue.run(self._runner.set_in_rotation(worker.placement, in_rotation))
            case decide.Accept(name, accepting):
                worker = entry.observed.workers[name]
                worker.resting = not accepting
                assert worker.placement is not None
                self._queue.run(self._runner.set_accepting(worker.placement, accepting))
            case decide.Arm():
                entry.desired.fallback = None
                entry.listener.armed = entry.config
                self._runner.arm(entry.config, partial(self._on_request, entry))
                self.preload(entry)
            case decide.Disarm():
                self.stop_watching_listener(entry)
            case decide.FallAsleep():
                self._fall_asleep(entry)
            case decide.RunHook(hook):
                self.hooks.run(entry, RunningHook(hook))
            case decide.EndHook():
                self.hooks.end(entry, entry.config.stop_timeout)

    def _spawn(self, entry: Entry, generation: int, index: int) -> None:
        config = entry.config
        worker = Worker(f"{entry.name}.{generation}.{index}", generation, index, config)
        may_accept = self._addresses.may_accept(entry)
        worker.resting = not config.command and (config.health.gated or not may_accept)
        entry.observed.workers[worker.id] = worker
        worker.task = self._queue.run(self._supervise(entry, worker, self._run_worker(entry, worker)))

    def _end(self, entry: Entry, worker: Worker, phase: WorkerPhase, *, replaced: bool) -> None:
        """Drain or stop the worker, as `phase` says. If it has no process yet, it is ended as soon as it has one."""
        worker.phase = phase
        if phase is WorkerPhase.STOPPING:
            self._addresses.touch_with_parties(entry)
        if worker.placement is not None:
            end = self._drain_worker if phase is WorkerPhase.DRAINING else self._stop_worker
            self._queue.run(end(entry, worker, replaced=replaced))
        elif worker.preloading is not None:
            worker.preloading.cancel()

    def adopt(self, entry: Entry, worker: Worker) -> None:
        """Manage a worker that another supervisor has started."""
        worker.task = self._queue.run(self._supervise(entry, worker, self._watch_until_exit(entry, worker)))

    def kill(self, entry: Entry, worker: Worker) -> None:
        """Kill the worker at once, even if it is already leaving."""
        worker.stop_seconds = 0
        self._end(entry, worker, WorkerPhase.STOPPING, replaced=False)

    async def _check_startable(self, entry: Entry, generation: int) -> None:
        """Check that workers of the generation can be started. If not, abandon it: the old workers stay."""
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await self._runner.check_startable(entry.config)
        except Exception as error:
            if entry.wanted and entry.desired.generation == generation:
                message, hint = message_and_hint(error)
                message = message or f"checking that a worker can start took longer than {_CHECK_SECONDS:g} s"
                # Output from before the check does not explain the failure.
                entry.observed.failed_since, entry.observed.failed_worker = self._clock.time(), ""
                note_failure(entry, failure_of(entry, message, hint))
                self.exits.roll_back(entry)
        # If there is nothing to roll back to, the start itself reports the problem.
        entry.observed.feasible = generation
        entry.observed.checking = False
        self._queue.touch(entry, progressed=True)

    async def _open_listener(self, entry: Entry) -> None:
        server = entry.listener.bound
        assert server is not None
        try:
            if entry.config is server and (holder := self._addresses.other_holder(entry)):
                message = (
                    f"its address is used by {holder.name}, which went back to its previous configuration"
                )
                raise ServerError(message, hint=f"poolctl logs {holder.name}; poolctl reload")
            beside = [held.key for held in listeners_beside(entry) if held.key != server.key]
            endpoints = await self._runner.open(server, beside)
        except Exception as error:
            entry.listener.state, entry.listener.bound = ListenerState.CLOSED, None
            if entry.wanted:  # otherwise it was stopped meanwhile, and has not failed
                message, hint = message_and_hint(error)
                entry.observed.failed_since, entry.observed.failed_worker = self._clock.time(), ""
                note_failure(entry, failure_of(entry, message, hint, cause=error))
                if not self.exits.roll_back(entry):
                    self.exits.handle_failed_listener(entry, message)
        else:
            entry.listener.state = ListenerState.OPEN
            self._addresses.record_opened(entry, server.key, endpoints)
        self._queue.touch(entry, progressed=True)

    def change_socket_access(self, entry: Entry) -> None:
        """Give the file of the server's open Unix socket its configured mode and owner. Raises ServerError."""
        held = entry.listener.bound if entry.listener.state is ListenerState.OPEN else None
        if held is not None and same_listener(held, entry.config):
            self._runner.change_socket_access(entry.config)

    def change_socket_access_or_warn(self, entry: Entry) -> None:
        """Like `change_socket_access`, but an error is a warning."""
        try:
            self.change_socket_access(entry)
        except ServerError as error:
            record_warning(self._recorder, entry, "socket unchanged", error.message)

    async def _close_listener(self, entry: Entry, *, refuses: bool) -> None:
        held = entry.listener.bound
        assert held is not None
        await self._close_unless_claimed(entry, held)
        listener = entry.listener
        listener.state, listener.bound, listener.must_reopen = ListenerState.CLOSED, None, False
        self._queue.touch(entry, progressed=True)
        if refuses and held.address.kind == "fd":
            self._runner.close_arriving(held)

    async def _close_unless_claimed(self, entry: Entry, held: ServerConfig) -> None:
        bound = entry.listener.bound
        if bound is not None and bound is not held and bound.key == held.key:
            # The new listener has the same key (`:80` and `0.0.0.0:80`): close only what it does not need.
            endpoints = self._runner.close_unneeded(bound)
            self._addresses.record_opened(entry, bound.key, endpoints)
        elif self._addresses.release_unless_claimed(entry, held):
            self._addresses.record_closed(held.key)
            with logged_exceptions(f"{held.key} cannot be closed"):
                await self._runner.close(held.key)
        if held in entry.listener.releasing:
            entry.listener.releasing.remove(held)
        self._queue.touch(entry, progressed=True)

    # Sleep: the runner watches the listener, and the first request wakes the server.

    def stop_watching_listener(self, entry: Entry) -> None:
        """Stop watching for a request. The next workers take the waiting connections."""
        if entry.listener.armed is not None:
            self._runner.disarm(entry.listener.armed.key)
            entry.listener.armed = None

    def wake(self, entry: Entry) -> None:
        """Wake the server if it sleeps or is falling asleep, even if no connection waits for it."""
        falls_asleep = entry.should_sleep and entry.observed.workers and entry.window_demand != ASLEEP
        if entry.listener.armed is not None:
            self.stop_watching_listener(entry)
            self._on_request(entry)
        elif falls_asleep and entry.desired.state is Desired.RUN:
            self._on_request(entry)

    def watch_idleness(self, entry: Entry, seconds: float) -> None:
        """Have the entry's workers report when they have had no traffic for this number of seconds."""
        for worker in entry.observed.workers.values():
            worker.idle = False
            if worker.placement is not None:
                self._runner.watch_idleness(worker.placement, seconds)

    def _fall_asleep(self, entry: Entry) -> None:
        # The activator, or the next worker, takes over the connections of the ready workers.
        entry.observed.has_pending_request, entry.desired.automatic = False, None
        entry.begin_generation()
        entry.fill_vacant_slots()
        for worker in entry.observed.staying:
            self._end(entry, worker, WorkerPhase.DRAINING, replaced=True)
        self._queue.touch(entry, progressed=True)

    def preload(self, entry: Entry) -> None:
        """Import the current application of a sleeping server, so that waking it requires only a fork."""
        if entry.config.preload:
            self._queue.run(self._preload(entry))

    async def _preload(self, entry: Entry) -> None:
        config, since = entry.config, entry.desired.code_since
        try:
            entry.observed.preload_problem = await self._runner.preload_application(config, since)
        except (ServerError, WorkerFailed, OSError):
            # The next start reports the problem; until then it is only in the server's log.
            return
        self._queue.note(entry)

    def _on_request(self, entry: Entry) -> None:
        entry.listener.armed = None
        entry.observed.has_pending_request = True
        loop = asyncio.get_running_loop()
        loop.call_later(
            entry.config.start_timeout, self._close_waiting_if_not_started, entry, entry.desired.newest
        )
        with caused_by("a request"):
            self._queue.touch(entry, progressed=True)

    def _close_waiting_if_not_started(self, entry: Entry, newest: int) -> None:
        """Close the connections that wait for the first worker of a woken server.

        Does nothing if the server is ready, sleeps again, or has a generation newer than `newest`. While a worker is
        starting, the connections are closed only after this worker has failed.
        """
        if entry.desired.newest != newest or entry.ready or entry.listener.armed is not None:
            return
        for worker in entry.observed.workers.values():
            if worker.phase in (WorkerPhase.PLACING, WorkerPhase.STARTING):
                self._queue.run(self._close_connections_after_failed_start(entry, worker, newest))
                return
        self._runner.close_waiting(entry.config.key)

    async def _close_connections_after_failed_start(self, entry: Entry, worker: Worker, newest: int) -> None:
        assert worker.task is not None
        await asyncio.wait({worker.task})
        if worker.ready_at is None:
            self._close_waiting_if_not_started(entry, newest)

    # Workers that start.

    async def _supervise(self, entry: Entry, worker: Worker, life: Awaitable[Exit]) -> None:
        """Await the worker's exit, the result of `life`, and handle it. An unexpected exception ends the worker."""
        try:
            exit_ = await life
        except Exception as error:
            message, hint = message_and_hint(error)
            worker.failure = failure_of(entry, message, hint, cause=error)
            exit_ = Exit(message=message)
            with logged_exceptions(f"worker {worker.id} may still run"):
                if worker.placement is not None:
                    await self._end_worker(entry, worker, 0, replaced=False)
                    exit_ = await self._runner.wait_for_exit(worker.placement)
        await self._handle_worker_exit(entry, worker, exit_)

    async def _run_worker(self, entry: Entry, worker: Worker) -> Exit:
        exit_ = Exit(message="was stopped before it was placed")
        if worker.phase is WorkerPhase.PLACING:
            exit_ = await self._place_and_watch(entry, worker)
        worker.exit = exit_
        self._queue.touch(entry)  # now: a gateway must stop sending it requests while its output is read
        if worker.ready_at is None and worker.phase not in LEAVING and entry.observed.files == worker.files:
            # Files read by a worker that failed before it was ready are not in use.
            entry.observed.files = worker.files_before or entry.observed.files
        if worker.phase not in LEAVING:
            await self._add_cause_to_failure(entry, worker, exit_)
        return exit_

    async def _add_cause_to_failure(self, entry: Entry, worker: Worker, exit_: Exit) -> None:
        """Add the cause found in the worker's output to `worker.failure`, if the exit status alone explains nothing.

        For a worker that failed after it was ready, the output is read only if no restart follows at once: the restart
        policy is "no", or its index was restarted within the restart window.
        """
        failure, config = worker.failure, worker.config
        if exit_.ok and config.restart_policy != "always" and not config.job and config.every is None:
            worker.last_line = await explain_last_lines(
                self._runner, entry.name, worker.placed_at, final_line, worker.id
            )
        since = self._clock.monotonic() - config.restart.window
        restarts = entry.slot(worker.index).restart_times
        no_restart_at_once = entry.restart_policy == "no" or any(restart >= since for restart in restarts)
        if worker.ready_at is not None and no_restart_at_once and not exit_.ok:
            failure = worker.failure = failure_of(entry, exit_.message)
        timed_out = worker.given_up and bool(config.command)
        if failure is None or not (
            timed_out or failure.message in (exit_.message, exit_.message_before_ready(""))
        ):
            return
        refused = bool(exit_.status) and not timed_out and worker.ready_at is None
        explain = partial(cause_of, server=config, refused=refused)
        printed_by = worker.id if worker.placement is not None else ""
        cause = await explain_last_lines(self._runner, entry.name, worker.placed_at, explain, printed_by)
        worker.address_taken = cause.own_address and worker.ready_at is None
        if cause.text and (cause.own_address or not timed_out) and not is_quoted(cause.text, failure.message):
            pool_has_address = worker.address_taken and config.command and not config.binds_itself
            hint = f"{_SOCKET_HINT}; {failure.hint}" if pool_has_address else failure.hint
            worker.failure = failure_of(entry, f"{failure.message}: {cause.text}", hint, cause=failure)

    async def _place_and_watch(self, entry: Entry, worker: Worker) -> Exit:
        worker.placed_at = self._clock.time()
        worker.certificate_ends = read_certificate_expiry(worker.config)
        worker.files_before = _file_digests_before_replacement(entry, worker)
        worker.files = read_digests_by_key(worker.config)
        siblings = [other for other in entry.observed.staying if entry.is_current(other)]
        if entry.is_current(worker) and all(sibling.files == worker.files for sibling in siblings):
            entry.observed.files = worker.files
            self._queue.note(entry)
        try:
            if worker.config.preload and not await self._preload_while_wanted(entry, worker):
                return Exit(message="was stopped before its application was imported")
            app_state.set(entry.desired.app_state)  # in the context of this worker's task
            worker.placement = await self._runner.place(
                worker.config, worker.generation, worker.index, resting=worker.resting
            )
        except Exception as error:
            worker.failure = failure_of(entry, *message_and_hint(error), cause=error)
            return Exit(message=worker.failure.message)
        self._report_certificate_if_expired(entry, worker)
        if worker.phase is WorkerPhase.PLACING:
            worker.phase = WorkerPhase.STARTING
            self._queue.touch(entry, progressed=True)
        return await self._watch_until_exit(entry, worker)

    def _report_certificate_if_expired(self, entry: Entry, worker: Worker) -> None:
        ends = worker.certificate_ends
        if ends is None or ends > self._clock.time():
            return
        message = expired_message(entry.config, ends)
        logger.warning("%s: %s", entry.name, message)
        self._recorder.record(
            "config",
            "expired certificate in use",
            server=entry.name,
            bind=entry.config.key,
            message=message,
            worker=worker.id,
            severity="warning",
        )

    async def _watch_until_exit(self, entry: Entry, worker: Worker) -> Exit:
        """Wait until the worker is ready, unless it is leaving already, and then until it ends; returns its exit."""
        assert worker.placement is not None
        ending = asyncio.ensure_future(self._runner.wait_for_exit(worker.placement))
        if worker.phase is WorkerPhase.STARTING:
            await self._mark_ready_or_stop(entry, worker, ending)
        elif worker.phase in LEAVING:
            # The end was ordered before there was a process.
            self._end(entry, worker, worker.phase, replaced=False)
        return await ending

    async def _mark_ready_or_stop(self, entry: Entry, worker: Worker, ending: asyncio.Future[Exit]) -> None:
        assert worker.placement is not None
        config, logs = worker.config, f"poolctl logs {entry.name}"
        missing_sign = _missing_readiness_sign(entry, worker)
        try:
            await self._runner.wait_for_begin_or_exit(worker.placement)
            unlimited = config.job or config.is_ready_by_running
            async with _timeout_unless_held_up(None if unlimited else config.start_timeout):
                await self._runner.wait_until_ready(worker.placement)
                missing_sign = ""
                if config.health.gated:
                    await self._health.wait_until_probes_pass(entry, worker, ending)
            if worker.generation == entry.desired.unproven:
                await self._health.prove(entry, worker)
        except WorkerFailed as error:
            if not (config.job and error.exit is not None and error.exit.ok):
                worker.failure = failure_of(entry, error.message, error.hint, cause=error)
        except Exception as error:
            if worker.phase in LEAVING:
                return  # its stop is in progress: it may have accepted, although it has not reported that
            message, hint = message_and_hint(error)
            if isinstance(error, TimeoutError):
                why = self._health.worker_problem(worker) or missing_sign
                message = (
                    f"was not ready within {format_duration(config.start_timeout)}{f': {why}' if why else ''}"
                )
                message = await describe_hang(self._runner, self._recorder, entry, worker, message)
                hint = f"{logs}; start_timeout says how long it may take"
                if missing_sign and config.ready_line:
                    hint += (
                        '; lines may wait in a buffer: env = { PYTHONUNBUFFERED = "1" } has Python write them at once, '
                        'command = ["stdbuf", "-oL", …] many other programs'
                    )
            worker.failure = failure_of(entry, message, hint or logs, cause=error)
            worker.given_up = True
            await self._end_worker(entry, worker, 0, replaced=False)
        else:
            # The run of a job with a schedule never becomes ready: it ends.
            if worker.phase is WorkerPhase.STARTING and config.every is None:
                worker.phase = WorkerPhase.READY
                worker.ready_at = self._clock.monotonic()
                self.exits.record_start(entry, worker)
                entry.count_restart_if_commanded(worker)
                self.note_ready(entry, worker)
                entry.observed.has_pending_request = True
                entry.desired.fallback = None
                if worker.generation == entry.desired.unproven:
                    entry.desired.unproven = 0
                entry.desired.retries = entry.desired.retries or entry.is_fully_ready
                if entry.is_current(worker):
                    entry.observed.certificate_ends = worker.certificate_ends
                self._addresses.touch_with_parties(entry)

    def note_ready(self, entry: Entry, worker: Worker) -> None:
        """Record that the worker is ready; after STEADY_SECONDS, the short lives of its index are forgotten."""
        entry.observed.was_up = True
        if not entry.is_current(worker):
            return
        slot = entry.slot(worker.index)
        slot.note_ready()
        if not slot.short_lives or worker.ready_at is None or slot.steady_timer is not None:
            return

        def forget_short_lives() -> None:
            slot.short_lives, slot.steady_timer = 0, None
            self._queue.touch(entry)

        delay = worker.ready_at + STEADY_SECONDS - self._clock.monotonic()
        slot.steady_timer = asyncio.get_running_loop().call_later(max(0.0, delay), forget_short_lives)

    async def _preload_while_wanted(self, entry: Entry, worker: Worker) -> bool:
        """Import the application before starting the worker. False if the worker is no longer needed.

        Raises ServerError or WorkerFailed, as the runner does.
        """
        preload = self._runner.preload_application(worker.config, entry.desired.code_since)
        worker.preloading = asyncio.ensure_future(preload)
        await asyncio.wait({worker.preloading})
        if worker.preloading.cancelled():
            return False
        entry.observed.preload_problem = worker.preloading.result()
        if entry.observed.preload_problem:
            warn_once(entry, f"preload = true has no effect: {entry.observed.preload_problem}")
        return worker.phase is WorkerPhase.PLACING

    # Workers that are stopped.

    async def _drain_worker(self, entry: Entry, worker: Worker, *, replaced: bool) -> None:
        """Let the worker finish its requests and then end. With `replaced`, its connections go to another worker."""
        assert worker.placement is not None
        replaced = replaced or any(
            _takes_connections_of(worker, ready.config) for ready in entry.observed.ready
        )
        with logged_exceptions(f"worker {worker.id} cannot be drained"):
            await self._runner.begin_drain(worker.placement, replaced=replaced)
            worker.stopped_accepting = True
            self._addresses.touch_with_parties(entry)
            await self._runner.drain(worker.placement, replaced=replaced)
        if entry.observed.workers.get(worker.id) is worker:
            await self._stop_worker(entry, worker, replaced=replaced)

    async def _stop_worker(self, entry: Entry, worker: Worker, *, replaced: bool) -> None:
        """Stop the worker; it is killed after its `stop_seconds` or, if unset, its server's `stop_timeout`.

        A stuck worker is killed after at most STUCK_SECONDS, because it cannot finish any request.
        """
        limit = worker.config.stop_timeout if worker.stop_seconds is None else worker.stop_seconds
        if worker.stuck:
            limit = min(limit, STUCK_SECONDS)
        exit_ = await self._end_worker(entry, worker, limit, replaced=replaced)
        if exit_ is not None and exit_.signal == signal.SIGKILL:
            warn_once(entry, f"had to be killed after {format_duration(limit)}")

    async def _end_worker(
        self, entry: Entry, worker: Worker, limit_seconds: float, *, replaced: bool
    ) -> Exit | None:
        """Stop the worker, and kill it after the time limit; returns its exit.

        If the worker cannot be ended, records a failed stop, marks it `unstoppable`, and returns None.
        """
        assert worker.placement is not None
        worker.unstoppable = False
        try:
            return await self._runner.stop(worker.placement, limit_seconds, replaced=replaced)
        except TimeoutError:
            message, hint = "still running after SIGKILL", "see what it waits for"
        except Exception as error:
            reason, hint = message_and_hint(error)
            message = f"could not be ended: {reason}"
        worker.unstoppable = True
        if worker.failure is not None:
            message = f"{worker.failure.message}; {message}"
        message = f"{message} ({worker.placement.where})"
        note_failure(entry, failure_of(entry, message, hint, PoolStopError))
        self._queue.touch(entry, progressed=True)
        return None

    # Workers that have ended.

    async def _handle_worker_exit(self, entry: Entry, worker: Worker, exit_: Exit) -> None:
        health_before, last_run = entry.health, entry.schedule.last_run
        self._addresses.touch_with_parties(entry)
        entry.observed.workers.pop(worker.id, None)
        self._health.stop_probes(worker)
        self.exits.handle(entry, worker, exit_)
        if entry.schedule.last_run is not last_run and entry.on_schedule:
            await self._record_run(entry, worker, health_before)

    async def _record_run(self, entry: Entry, worker: Worker, before: Status) -> None:
        run, after = entry.schedule.last_run, entry.health
        record = partial(
            self._recorder.record, "health", server=entry.name, bind=entry.config.key,
            before=before.value, after=after.value, worker=worker.id,
        )  # fmt: skip
        if run["result"] == RUN_FAILED:
            since = run["started_at"]
            lines = await explain_last_lines(self._runner, entry.name, since, explanatory_lines, worker.id)
            record("run failed", message=run["message"], severity="error", output=lines[-LAST_LINES:])
        elif after is not before:
            record("run succeeded")


def _file_digests_before_replacement(entry: Entry, worker: Worker) -> dict[str, str]:
    """Return the digests of the files in use now or, during the replacement of a generation, before the replacement."""
    if any(ready.generation < worker.generation for ready in entry.observed.ready):
        for sibling in entry.observed.workers.values():
            if sibling.generation == worker.generation and sibling.files:
                return sibling.files_before
    return entry.observed.files


@contextlib.asynccontextmanager
async def _timeout_unless_held_up(seconds: float | None) -> AsyncIterator[None]:
    """Like asyncio.timeout, but does not count time in which this process was held up.

    Otherwise the timer could fire before the report of a worker that is long ready has been read, and kill the worker.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        if seconds is None:
            yield
            return
        due = loop.time() + seconds
        # A timer that fires late shows how long this process was held up: the limit is extended by as much.
        timer = loop.call_at(due, lambda: limit.reschedule(2 * loop.time() - due + _REPORT_GRACE_SECONDS))
        try:
            yield
        finally:
            timer.cancel()


def _missing_readiness_sign(entry: Entry, worker: Worker) -> str:
    config = worker.config
    if config.ready_line:
        return f"it has printed no line that matches its ready_line: {config.ready_line}"
    if not config.command or config.job or not (config.notify or config.listens):
        return ""
    if config.notify:
        return "it has not sent READY=1"
    who = "it has not" if has_older_worker(entry, worker) else "nothing has"
    return f"{who} accepted a connection on {config.key}"


def _takes_connections_of(worker: Worker, config: ServerConfig) -> bool:
    """Whether a worker with this configuration can take over the connections of `worker`."""
    return config.key == worker.config.key and bool(config.tls) is bool(worker.config.tls)
