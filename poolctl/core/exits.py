"""What follows when a worker has exited by itself, or cannot start: a restart, a roll-back, sleep or failure."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable
from dataclasses import replace

from poolctl.clock import Clock
from poolctl.runners.runner_protocol import Exit

from . import decide
from .addresses import AddressRegistry
from .decide import AWAKE
from .explain import (
    failure_of,
    give_up_text,
    note_failure,
    record_warning,
    reports_address_in_use,
    reports_error_in_code,
    restart_text,
)
from .schedules import moment_text, record_run_end
from .server_entry import MAX_ATTEMPTS_AWAITED, Entry, Slot
from .server_state import Desired
from .servers import ServerRegistry
from .worker import LEAVING, Worker, WorkerPhase
from .workqueue import Recorder, Workqueue


class ExitHandler:
    """Records in the entry what follows from the exit of a worker.

    `on_roll_back` is called with each server that went back to the configuration of its serving workers.
    """

    def __init__(
        self,
        clock: Clock,
        queue: Workqueue,
        addresses: AddressRegistry,
        servers: ServerRegistry,
        recorder: Recorder,
        on_roll_back: Callable[[Entry], None],
    ) -> None:
        self._clock = clock
        self._queue = queue
        self._addresses = addresses
        self._servers = servers
        self._recorder = recorder
        self._on_roll_back = on_roll_back
        self._random = random.Random()

    def handle(self, entry: Entry, worker: Worker, exit_: Exit) -> None:
        """Handle the exit of a worker that the entry no longer has."""
        config, was_signalled = worker.config, worker.phase not in LEAVING and worker.signals
        if was_signalled and (config.job or config.every is not None):
            if exit_.signal in worker.signals:
                exit_ = replace(exit_, message=f"ended by {signal.Signals(exit_.signal).name}, as ordered")
                worker.failure = failure_of(entry, exit_.message)
        elif was_signalled and decide.is_ordered_end(worker.signals, exit_, self._clock.monotonic()):
            # Like a worker that a command has stopped, it is replaced.
            worker.phase = WorkerPhase.STOPPING
        worker.exit = exit_
        if worker.phase not in LEAVING:
            self._handle_unexpected_exit(entry, worker, exit_)
        elif entry.schedule.run_since:
            record_run_end(entry, exit_, self._clock.time(), stopped=True)

    def _handle_unexpected_exit(self, entry: Entry, worker: Worker, exit_: Exit) -> None:
        observed, was_ready = entry.observed, worker.ready_at is not None
        observed.failed_since = worker.placed_at
        observed.failed_worker = worker.id if worker.placement is not None else ""
        if worker.address_taken and self._may_retry_without_listener(entry, worker):
            self._switch_socket_opener(entry, "tried")
            return
        if worker.address_taken and observed.socket_found == "tried":
            # The address is in use even without the pool's listener.
            self._switch_socket_opener(entry, "pool")
        if observed.overlap_found == "tried" and not was_ready:
            if not entry.is_current(worker):
                return
            # It fails even without an older process.
            observed.overlap_found = ""
        if self._may_retry_without_overlap(entry, worker):
            worker.next_step = "starting again after the end of the previous process"
            self._retry_without_overlap(entry, worker)
            return
        if not was_ready and not (worker.config.job and exit_.ok):
            failure = worker.failure or failure_of(entry, f"{exit_.message} before it was ready")
            if worker.config.takes_pool_socket and entry.may_overlap and has_older_worker(entry, worker):
                hint = f"{failure.hint}; overlap = false ends the previous process first"
                failure = failure_of(entry, failure.message, hint, cause=failure)
            note_failure(entry, failure)
            if entry.is_current(worker) and self._roll_back_from(entry, worker):
                return
        if worker.given_up and exit_.ok:
            exit_ = Exit(message=exit_.message)  # its status 0 is the result of the stop
        if entry.is_current(worker) and entry.wanted:
            if worker.failure is not None:
                exit_ = replace(exit_, message=worker.failure.message)
            self._decide_after_exit(
                entry, exit_, ready_at=worker.ready_at, index=worker.index, last_line=worker.last_line
            )
            worker.next_step = observed.next_step

    def handle_failed_listener(self, entry: Entry, message: str) -> None:
        """Handle a listener that cannot be opened: no worker of the server can start before the next attempt."""
        self._decide_after_exit(entry, Exit(message=message), ready_at=None, index=0)
        slot = entry.slot(0)
        if slot.backoff is None:
            return
        delay_seconds = slot.backoff.when() - asyncio.get_running_loop().time()
        for other_slot in map(entry.slot, range(1, entry.size)):
            if not other_slot.vacant:
                self._begin_backoff(entry, other_slot, delay_seconds)

    def _roll_back_from(self, entry: Entry, failed: Worker) -> bool:
        """Switch back to the ready workers that `failed` was to replace. Return whether there are any."""
        if str(failed.index) not in entry.desired.renewed:
            return self.roll_back(entry)
        generations = [
            worker.generation
            for worker in entry.observed.ready
            if worker.index == failed.index and worker is not failed
        ]
        if generations:
            entry.desired.renewed[str(failed.index)] = max(generations)
        return bool(generations)

    def roll_back(self, entry: Entry) -> bool:
        """Roll back the replacement of the server's workers, and of all servers in its address swap.

        Also cancels replacements of dependents that wait for this server. Returns False if there are neither old
        workers nor a previous configuration to return to.
        """
        partners = self._addresses.exchange(entry)
        if entry.is_being_replaced:
            for dependent in self._servers.closure([entry], self._servers.waiting_dependents):
                if dependent not in (entry, *partners):
                    self._cancel_replacement(dependent, entry)
        if not self._roll_back_alone(entry):
            # From now on the server is being started, not replaced.
            entry.desired.restarting = 0
            return False
        for partner in partners:
            message = f"was to exchange addresses with {entry.name}, which cannot have its new one"
            note_failure(partner, failure_of(partner, message, f"poolctl logs {entry.name}"))
            if not self._roll_back_alone(partner):
                self._fail(partner)
            self._queue.touch(partner, progressed=True)
        return True

    def _cancel_replacement(self, dependent: Entry, failed: Entry) -> None:
        config = dependent.config
        self._roll_back_alone(dependent)
        retry = f"poolctl restart {dependent.name}" if dependent.config is config else "poolctl reload"
        message = (
            f"was not replaced and runs as before, because {failed.name}, on which it depends, has failed"
        )
        note_failure(dependent, failure_of(dependent, message, f"poolctl logs {failed.name}; then {retry}"))
        self._queue.touch(dependent, progressed=True)

    def _roll_back_alone(self, entry: Entry) -> bool:
        """Switch back to the old ready workers or, without any, start the `fallback`; False if there is neither."""
        serving = [worker for worker in entry.observed.ready if not entry.is_current(worker)]
        if not serving:
            return self._start_fallback(entry)
        if entry.observed.overlap_found == "tried":
            entry.observed.overlap_found = ""  # the old process still runs
        entry.desired.retries = True
        entry.desired.fallback = None
        serving.sort(key=lambda worker: worker.generation)
        older = [worker for worker in serving if worker.generation < entry.desired.generation]
        if not older:
            # Single workers are being replaced, not the generation.
            entry.desired.renewed |= {str(worker.index): worker.generation for worker in serving}
            return True
        staying = older[-1]
        entry.desired.generation = staying.generation
        entry.desired.renewed = {
            str(worker.index): worker.generation
            for worker in older
            if worker.generation != staying.generation
        }
        # Its workers are replaced by forks of the existing import, even if new code was requested meanwhile.
        entry.desired.code_since = 0.0
        self._servers.replace_config(entry, staying.config)
        self._on_roll_back(entry)
        return True

    def _start_fallback(self, entry: Entry) -> bool:
        """Start the previous configuration again, if its workers had to stop before the failed ones could start."""
        before = entry.desired.fallback
        if before is None or before is entry.config or self._addresses.is_claimed(entry, before):
            entry.desired.fallback = None
            return False
        self._servers.replace_config(entry, before)
        entry.begin_generation()
        entry.fill_vacant_slots()
        entry.desired.retries = True
        record_warning(
            self._recorder, entry, "rolled back", "was started again with its previous configuration"
        )
        return True

    def _decide_after_exit(
        self, entry: Entry, exit_: Exit, *, ready_at: float | None, index: int, last_line: str = ""
    ) -> None:
        """Decide what follows after the worker with this index exited by itself or could not start.

        `ready_at` is the monotonic time when it was ready, or None if it never was. The server waits for its next
        scheduled run, is completed, has failed or sleeps, or another worker starts.
        """
        observed, now = entry.observed, self._clock.monotonic()
        before = observed.last_exit
        observed.last_exit, observed.next_step = exit_, ""
        if entry.failed:
            return  # the server has already failed because of another worker
        if entry.config.every is not None:
            entry.set_desired(Desired.SCHEDULED)
            record_run_end(entry, exit_, self._clock.time())
            if not exit_.ok and entry.schedule.next_run is not None:
                observed.next_step = f"runs again at {moment_text(entry.schedule.next_run)}"
            return
        entry.schedule.run_since = 0.0
        if entry.config.job:
            entry.set_desired(Desired.COMPLETED if exit_.ok else Desired.FAILED)
            if not exit_.ok:
                observed.next_step = give_up_text(entry)
            return
        slot, was_ready = entry.slot(index), ready_at is not None
        verdict = decide.judge_exit(
            entry.restart_policy,
            entry.config.restart,
            exit_,
            self._exit_situation(entry, index, now, was_ready=was_ready),
            jitter=self._random.uniform(-1, 1),
        )
        if verdict.next is not decide.StepAfterExit.SLEEP:
            slot.note_end(None if ready_at is None else now - ready_at)
        match verdict.next:
            case decide.StepAfterExit.SLEEP:
                # It ended while idle, as socket-activated programs do, or because the previous supervisor had
                # put it to sleep. The next request wakes it.
                observed.has_pending_request = False
                entry.fill_vacant_slots()
            case decide.StepAfterExit.VACATE:
                slot.vacant = "ended" if exit_.ok else "failed"
                observed.next_step = "not restarted"
            case decide.StepAfterExit.DONE:
                entry.set_desired(Desired.COMPLETED)
                observed.ended_at, observed.last_line = self._clock.time(), last_line
                observed.next_step = "not restarted"
            case decide.StepAfterExit.FAILED:
                observed.next_step = give_up_text(entry, verdict.restarts)
                self._fail(entry)
                if exit_.ok and not verdict.restarts and before is not None and not before.ok:
                    # Another worker has failed before; this one was only the last to end.
                    observed.last_exit = before
                    note_failure(entry, failure_of(entry, before.message))
                elif was_ready or (entry.desired.retries and entry.restart_policy != "no"):
                    note_failure(entry, failure_of(entry, verdict.reason))
            case decide.StepAfterExit.RESTART:
                window = entry.config.restart.window
                slot.restart_times = [*(time for time in slot.restart_times if now - time <= window), now]
                observed.restarts += 1
                slot.spent = verdict.spent
                if was_ready and verdict.delay_seconds > 0:
                    observed.failure = failure_of(entry, exit_.message)
                observed.next_step = restart_text(verdict.delay_seconds, len(slot.restart_times))
                if verdict.delay_seconds > 0:
                    self._begin_backoff(entry, slot, verdict.delay_seconds)

    def _exit_situation(
        self, entry: Entry, index: int, now: float, *, was_ready: bool
    ) -> decide.ExitSituation:
        other_slots = [slot for key, slot in entry.observed.slots.items() if key != index]
        return decide.ExitSituation(
            now,
            was_ready,
            restarts=entry.slot(index).restart_times,
            was_up=entry.observed.was_up,
            spent=entry.slot(index).spent,
            others=bool(entry.observed.staying),
            others_wait=any(slot.backoff is not None for slot in other_slots),
            others_failed=any(slot.vacant == "failed" for slot in other_slots),
            may_sleep=entry.sleepy
            and not entry.observed.has_live_dependents
            and entry.window_demand != AWAKE,
            retries=entry.desired.retries,
        )

    def _fail(self, entry: Entry) -> None:
        """Mark the server as failed.

        If it may sleep, it goes to sleep after the restart window, and a request then wakes it.
        """
        entry.set_desired(Desired.FAILED)
        if entry.sleepy and entry.desired.retries and entry.restart_policy != "no":
            entry.observed.has_pending_request = False

            def sleep() -> None:
                entry.set_desired(Desired.RUN)
                self._queue.touch(entry, progressed=True)

            loop, window = asyncio.get_running_loop(), entry.config.restart.window
            entry.observed.sleep_timer = loop.call_later(window, sleep)

    def _begin_backoff(self, entry: Entry, slot: Slot, delay_seconds: float) -> None:
        slot.end_backoff()

        def end() -> None:
            slot.end_backoff()
            self._queue.touch(entry, progressed=True)

        slot.backoff = asyncio.get_running_loop().call_later(delay_seconds, end)
        # A client waits only for an attempt that will probably succeed, and no longer than a start may take.
        will_probably_succeed = entry.observed.was_up and slot.failed_attempts <= MAX_ATTEMPTS_AWAITED
        slot.refuses = not will_probably_succeed or delay_seconds > entry.config.start_timeout

    def record_start(self, entry: Entry, worker: Worker) -> None:
        """Record from a ready worker which socket its program uses, and whether two processes of it can run at once.

        Warn if it has started only without the pool's socket, or only after the end of the previous process.
        """
        config, observed = worker.config, entry.observed
        if config.command and config.listens:
            if observed.socket_found == "tried":
                observed.socket_found = "program"
                message = (
                    f"opens {entry.config.key} itself, and was started again without the pool's socket; write "
                    'socket = "program" to its table: a restart ends the old process first'
                )
                record_warning(self._recorder, entry, "own socket", message)
            elif not (observed.socket_found or config.binds_itself):
                observed.socket_found = "pool"
        if config.takes_pool_socket:
            if observed.overlap_found == "tried":
                observed.overlap_found = "no"
                message = (
                    "cannot start while its previous process runs, and was started again after its end; from now on a "
                    "restart ends the old process first, and connections wait: overlap = false in its table says so"
                )
                record_warning(self._recorder, entry, "no overlap", message)
            elif not observed.overlap_found and has_older_worker(entry, worker):
                observed.overlap_found = "yes"

    # Programs that bind a socket of their own instead of using the pool's.

    def _may_retry_without_listener(self, entry: Entry, worker: Worker) -> bool:
        """Whether to start the program again without the pool's listener, which may prevent it from binding."""
        config = worker.config
        return (
            not (
                entry.observed.socket_found
                or "socket" in config.model_fields_set
                or config.binds_itself
                or config.job
            )
            and bool(config.command)
            and not any("{fd}" in word for word in config.command or ())
            and worker.config is entry.config
            and entry.wanted
            and entry.desired.retries
            and not entry.observed.workers
            and entry.size == config.scale.min == 1
        )

    def _switch_socket_opener(self, entry: Entry, finding: str) -> None:
        entry.observed.socket_found = finding
        socket = "program" if finding == "tried" else "pool"
        self._servers.replace_config(entry, entry.config.model_copy(update={"socket": socket}))
        self._queue.touch(entry, progressed=True)

    # Programs that cannot start while the previous process of their server runs.

    def _may_retry_without_overlap(self, entry: Entry, worker: Worker) -> bool:
        """Whether to start the program again after the end of the older process, which may have prevented its start.

        Not if an earlier start has succeeded while an older process ran, unless an address is in use.
        """
        config, observed = worker.config, entry.observed
        reason = worker.failure.message if worker.failure is not None else ""
        return (
            entry.wanted
            and entry.may_overlap
            and config.takes_pool_socket
            and "overlap" not in config.model_fields_set
            and worker.placement is not None
            and worker.ready_at is None
            and not worker.given_up
            and entry.is_current(worker)
            and has_older_worker(entry, worker)
            and (
                reports_address_in_use(reason)
                or not (observed.overlap_found or reports_error_in_code(reason))
            )
        )

    def _retry_without_overlap(self, entry: Entry, worker: Worker) -> None:
        if worker.generation != entry.desired.generation:
            entry.renew_worker(worker.index)
        # A new generation, because other workers of this one may fail as well.
        elif entry.desired.restarting == entry.desired.generation:
            entry.order_restart()
        else:
            entry.begin_generation()
        entry.observed.overlap_found = "tried"
        self._queue.touch(entry, progressed=True)


def has_older_worker(entry: Entry, worker: Worker) -> bool:
    """Whether an older worker, to be replaced by this worker's generation, still runs."""
    return any(
        older.generation < worker.generation and not entry.is_current(older)
        for older in entry.observed.workers.values()
    )
