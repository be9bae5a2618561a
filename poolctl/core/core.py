"""`Core` manages all servers of a pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from poolctl.clock import Clock
from poolctl.config import Dependency, ServerConfig
from poolctl.errors import ServerError
from poolctl.json_form import Table
from poolctl.runners.runner_protocol import Placement, Runner, RunnerEventHandler

from . import decide
from .addresses import AddressRegistry, abandoned_listeners, same_listener
from .configuration_diff import read_certificate_expiry, read_digests_by_key
from .decide import ASLEEP, EndHook, Stop
from .explain import explain_blocker, failure_of, logged_exceptions, note_failure, record_stacks
from .health_checks import HealthChecks
from .perform import Executor
from .schedules import ScheduledRuns, SleepWindowScheduler
from .server_entry import Entry
from .server_state import NO_OVERRIDES, Desired, ListenerState, Overrides, RunningHook, StartAfterStop
from .servers import ServerRegistry
from .worker import LEAVING, Worker, WorkerPhase
from .workqueue import Recorder, Workqueue

if TYPE_CHECKING:
    from poolctl.runners.stack_report import WorkerStacks


class Core:
    """The servers of a pool. After each change, the next actions are chosen before the event loop sleeps.

    With `calm`, only commands lead to actions. `observers` are called with each entry that may have changed.
    """

    def __init__(
        self,
        servers: Iterable[ServerConfig],
        runner: Runner,
        clock: Clock,
        recorder: Recorder,
        *,
        calm: bool = False,
    ) -> None:
        self.runner = runner
        self.clock = clock
        self.reason = ""  # why the whole pool is being stopped, "" for a command
        self._queue = Workqueue(self._process_batch)
        self._addresses = AddressRegistry(self._queue)
        self.servers = ServerRegistry(servers, self._addresses)
        self.entries = self.servers.entries
        self.health = HealthChecks(runner, self._queue, recorder)
        self.observers: set[Callable[[Entry], None]] = {self.health.update_probes_and_health}
        self.calm = calm
        self._executor = Executor(
            runner, clock, self._queue, self._addresses, self.servers, self.health, recorder
        )
        self._windows = SleepWindowScheduler(clock, self._queue)
        self._runs = ScheduledRuns(clock, self._queue, self.servers, recorder, calm=calm)
        self._dependency_facts: dict[str, tuple[object, ...]] = {}

    def touch(self, entry: Entry) -> None:
        """Note that the entry has changed; its next actions are chosen before the event loop sleeps."""
        self._queue.touch(entry)

    def take_changed(self) -> list[Entry]:
        """The entries that have changed since the last call."""
        return self._queue.take_changed()

    def endpoints(self, config: ServerConfig) -> tuple[str, ...]:
        """Return the addresses to which this configuration's listener is bound; empty if the listener is closed."""
        return self._addresses.endpoints(config.key)

    # The control loop: take a batch of changed entries, decide on each, and perform its actions.

    def _process_batch(self) -> None:
        touched: dict[str, Entry] = {}
        for entry in self._queue.take_batch():
            touched[entry.name] = entry
            with logged_exceptions(f"{entry.name}: its next actions cannot be taken"):
                self._decide_and_perform(entry)
        if self._queue:
            self._queue.schedule()
        for entry in touched.values():
            for observer in list(self.observers):
                with logged_exceptions(f"{entry.name}: an observer cannot handle its change"):
                    observer(entry)
            queued = entry.desired.queued_start
            if queued is not None and not entry.is_stopping:
                self.start(entry, ignore_dependencies=queued.ignore_dependencies, retries=queued.retries)

    def _decide_and_perform(self, entry: Entry) -> None:
        self._addresses.plan_address_change(entry)
        self._roll_back_blocked_exchange(entry)
        self._update_sleep(entry)
        entry.forget_surplus_slots()
        self._runs.ensure_run_planned(entry)
        # Only workers recorded as ready: others would be drained before their replacement serves.
        for worker in [ready for ready in entry.observed.ready if ready.expired]:
            worker.expired = False
            self.replace_worker(entry, worker.id)
        for action in self._decide(entry):
            self._executor.perform(entry, action)
        self._queue_affected_neighbours(entry)
        if (unneeded := self._addresses.take_unneeded_listener(entry)) is not None:
            self._queue.run(self.runner.close(unneeded.key))
        if entry.removed and entry.is_fully_stopped and self.servers.entries.get(entry.name) is entry:
            self.forget(entry)
            # Its dependencies no longer need to wait for it.
            self._queue.add_all(self.servers.dependents(entry))
        elif not entry.removed:
            # A dependency that stops may have waited for the last worker that needed it.
            self._queue.add_all(self.servers.removed.values())

    def _roll_back_blocked_exchange(self, entry: Entry) -> None:
        """Roll back an address swap if the entry cannot start: the other servers would wait for it forever."""
        if not entry.listener.previous_configs or entry.has_worker_of_serving_generation:
            return
        blocker = self.servers.stopped_dependency(entry)
        if blocker is not None and self._addresses.exchange(entry):
            why, hint = explain_blocker(blocker)
            note_failure(entry, failure_of(entry, f"waits for {blocker.name}, which {why}", hint))
            self._executor.exits.roll_back(entry)

    def _decide(self, entry: Entry) -> list[decide.Action]:
        actions = decide.decide(self.view(entry))
        if self.calm and entry.name not in self._queue.commanded:
            # Arm is harmless: it starts no worker, and the request that later wakes the server counts as a command.
            return [action for action in actions if isinstance(action, decide.Arm)]
        return actions

    def _update_sleep(self, entry: Entry) -> None:
        """Update the facts that decide whether the server sleeps; stop watching a listener of an old configuration."""
        previous_demand = entry.window_demand
        entry.observed.has_live_dependents = any(
            dependent.keeps_dependencies_awake for dependent in self.servers.dependents(entry)
        )
        self._windows.update_window(entry)
        if entry.window_demand == ASLEEP:
            entry.observed.has_pending_request = False
            if previous_demand != ASLEEP and entry.observed.workers:
                # Draining and stopping workers still hold their ids, so the next workers need a new generation.
                entry.begin_generation()
        if entry.listener.armed is not None and (
            entry.listener.armed is not entry.config or entry.listener.state is not ListenerState.OPEN
        ):
            # The server's configuration or address has changed since watching began.
            self._executor.stop_watching_listener(entry)

    def view(self, entry: Entry) -> decide.ServerView:
        """The facts on which the next actions for the entry depend."""
        return entry.view(
            may_start=self.servers.may_start(entry),
            may_stop=self.servers.may_stop(entry) and self._addresses.may_close(entry),
            may_open=self._addresses.may_open(entry),
            may_accept=self._addresses.may_accept(entry),
            may_leave=self._addresses.may_leave(entry),
            abandoned=tuple(held.key for held in abandoned_listeners(entry)),
        )

    def _queue_affected_neighbours(self, entry: Entry) -> None:
        facts = self.servers.dependency_facts(entry)
        if self._dependency_facts.get(entry.name) != facts:
            self._dependency_facts[entry.name] = facts
            neighbours = (*self.servers.dependents(entry), *self.servers.dependencies(entry))
            neighbours += (*self._addresses.address_contenders(entry), *self._addresses.parties(entry))
            self._queue.add_all(neighbours)

    # Changes of the desired state.

    def start(
        self,
        entry: Entry,
        *,
        ignore_dependencies: bool = False,
        retries: bool = True,
        after_stop: bool = False,
        final: bool = False,
    ) -> None:
        """Start the server or, with a schedule, plan its next run. Clears failure and backoff. Does not wait.

        `retries`: whether to retry a failure before the server is ready. `after_stop`: start when the stop in progress
        is done, unless another stop is ordered meanwhile; without it, the start cancels that stop. `final`: do not
        replace workers that exit. Has no effect on a server that is disabled or being removed.
        """
        if entry.is_disabled or entry.removed:
            return
        if after_stop and entry.is_stopping:
            entry.desired.queued_start = StartAfterStop(ignore_dependencies, retries)
            return
        entry.desired.queued_start = None
        if entry.failed or entry.completed:
            entry.observed.has_pending_request = False
        entry.fill_vacant_slots()
        if entry.wants_no_worker:
            entry.observed.slots.clear()
            entry.observed.was_up, entry.observed.failure = False, None
            entry.desired.code_since = self.clock.monotonic()
            entry.schedule_start_hook()
        if entry.config.every is None:
            entry.begin_generation_if_workers_leave()
            entry.set_desired(Desired.RUN)
        elif not (entry.on_schedule and entry.observed.workers):  # a run in progress continues
            entry.set_desired(Desired.SCHEDULED)
        entry.desired.ignore_dependencies = ignore_dependencies
        entry.desired.retries = retries
        entry.desired.final = final
        self.start_dependencies_on_demand(entry, retries=retries, after_stop=after_stop)
        self.touch(entry)

    def start_dependencies_on_demand(
        self, entry: Entry, *, retries: bool = True, after_stop: bool = False
    ) -> None:
        """Start the server's on-demand dependencies that do not run, unless it ignores dependencies.

        A job that has completed does not run again. `retries` and `after_stop`: see `start`.
        """
        if entry.desired.ignore_dependencies:
            return
        for dependency in self.servers.dependencies(entry):
            if dependency.rests_until_named and not dependency.ready:
                self.start(dependency, retries=retries, after_stop=after_stop)

    def stop(self, entry: Entry, *, kill: bool = False, limit_seconds: float | None = None) -> None:
        """Stop the server. Does not wait. With `kill`, kill its workers at once and run no hook.

        Otherwise a worker is killed after its `stop_timeout` or `limit_seconds`, whichever is shorter.
        """
        self._turn_off(entry, Desired.STOPPED)
        entry.desired.stop_seconds = limit_seconds
        for worker in entry.observed.workers.values():
            if limit_seconds is not None:
                worker.stop_seconds = min(limit_seconds, worker.config.stop_timeout)
            if worker.unstoppable:
                self._executor.perform(entry, Stop(worker.id))
        if entry.hooks.running is not None and entry.hooks.running.unstoppable:
            self._executor.perform(entry, EndHook())
        if kill:
            self._executor.hooks.abort(entry)
            for worker in entry.observed.workers.values():
                self._executor.kill(entry, worker)
        self.touch(entry)

    def _turn_off(self, entry: Entry, desired: Desired) -> None:
        """Turn the server off: set the state to IDLE, STOPPED or REMOVED, and reset what belongs to the last start.

        A REMOVED server stays REMOVED.
        """
        entry.schedule_stop_hook()
        entry.desired.stop_seconds, entry.desired.queued_start, entry.desired.fallback = None, None, None
        if not entry.removed:
            entry.set_desired(desired)
        entry.observed.has_pending_request, entry.desired.automatic = False, None
        entry.desired.overrides = replace(entry.desired.overrides, out=False)

    def abandon_start(self, entry: Entry, failure: ServerError | None = None) -> None:
        """Cancel a start: kill the workers that are not ready, and start no more.

        An older generation continues to serve. Without one, the server becomes STOPPED or, with a `failure`, FAILED.
        Also cancels a start that is queued behind a stop.
        """
        entry.desired.queued_start = None
        for worker in entry.observed.workers.values():
            if worker.phase in (WorkerPhase.PLACING, WorkerPhase.STARTING):
                self._executor.kill(entry, worker)
        if entry.wanted and not (entry.has_ready_generation or self._executor.exits.roll_back(entry)):
            entry.schedule_stop_hook()
            entry.set_desired(Desired.STOPPED if failure is None else Desired.FAILED)
        if failure is not None:
            entry.observed.failure = failure
        self.touch(entry)

    def wake(self, entry: Entry) -> None:
        """Wake the server if it sleeps, as a request would."""
        self._executor.wake(entry)

    def wake_for_requests(self, server_name: str, requests: int) -> int:
        """Record that `requests` requests wait for the server in a proxy in front of the pool.

        Wakes a sleeping server. Returns the planned number of workers, or 0 if requests do not start the server: it is
        stopped, failed or disabled, or a window keeps it asleep. Does not block. Raises KeyError for an unknown name.
        """
        entry = self.entries[server_name]
        if entry.wants_no_worker or entry.window_demand == ASLEEP:
            return 0
        self.wake(entry)
        if entry.scales:
            entry.observed.demand += requests
        return entry.size

    def take_demand(self, entry: Entry) -> int:
        """Return and clear the number of waiting requests recorded by `wake_for_requests`."""
        count, entry.observed.demand = entry.observed.demand, 0
        return count

    def restart(
        self, entry: Entry, *, ignore_dependencies: bool = True, retries: bool = True, proves: bool = False
    ) -> None:
        """Replace the server's workers by a new generation, or start the server if it is stopped.

        Without `ignore_dependencies`, a start waits for the server's dependencies; a replacement never does. `retries`:
        see `start`. With `proves`, the new generation must pass a test request (see `HealthChecks.prove`). A job with a
        schedule keeps to its times; `run_now` runs it at once.
        """
        if entry.config.every is not None:
            self.start(entry, ignore_dependencies=ignore_dependencies)
            return
        is_replaced = entry.has_worker_of_serving_generation
        entry.desired.code_since = self.clock.monotonic()
        if is_replaced:
            entry.order_restart(proves=proves)
        elif entry.listener.armed is not None:
            self._executor.preload(entry)
        self.start(entry, ignore_dependencies=ignore_dependencies or is_replaced, retries=retries)

    def run_now(self, entry: Entry, *, ignore_dependencies: bool = False) -> None:
        """Run a scheduled job that is not running. With `ignore_dependencies`, its dependencies need not be ready."""
        if entry.is_disabled or entry.removed:
            return
        self.start(entry, ignore_dependencies=ignore_dependencies)
        self._runs.begin_run(entry)

    def mark_expired(self, entry: Entry, worker_id: str) -> None:
        """Have this worker replaced, because it has served its `max_requests`. Waits until it is recorded as ready."""
        if (worker := entry.observed.workers.get(worker_id)) is not None:
            worker.expired = True
            self.touch(entry)

    def replace_worker(self, entry: Entry, worker_id: str) -> None:
        """Replace this worker alone, for example at the end of its lifetime; it serves until its replacement is ready.

        Counts neither as failure nor as restart. Has no effect on a worker that is leaving or already being replaced.
        """
        worker = entry.observed.workers.get(worker_id)
        if worker is not None and entry.wanted and worker.phase not in LEAVING and entry.is_current(worker):
            entry.renew_worker(worker.index)
            self.touch(entry)

    def drain_then_replace(self, entry: Entry, worker: Worker) -> None:
        """Stop this worker gracefully; its replacement starts after it has ended."""
        self._executor.perform(entry, Stop(worker.id))
        self.touch(entry)

    def kill(self, entry: Entry, worker: Worker) -> None:
        """Kill this worker; its replacement starts after it has ended."""
        self._executor.kill(entry, worker)
        self.touch(entry)

    def note_signal(self, worker: Worker, number: int) -> None:
        """Record that a command sends the worker this signal: an exit caused by it is not a failure.

        See `decide.is_ordered_end`.
        """
        config = worker.config
        # Unlike a command, an application first finishes its requests.
        seconds = config.stop_timeout + (0.0 if config.command else config.drain_timeout)
        worker.signals[number] = self.clock.monotonic() + seconds

    def note_recovery_begun(
        self, entry: Entry, report: Table, times: dict[str, list[float]], *, counts: bool
    ) -> None:
        """Record that a recovery of the server begins, described by `report`. With `counts`, it counts as a restart.

        `times` are the monotonic times of the server's recoveries, including this one, by worker index.
        """
        entry.observed.recovering, entry.observed.recoveries = report, times
        entry.observed.restarts += counts
        self.touch(entry)

    def note_recovery_ended(self, entry: Entry) -> None:
        """Record that the server's recovery, recorded by `note_recovery_begun`, has ended."""
        entry.observed.recovering = {}
        self.touch(entry)

    def read_stacks(self, entry: Entry, worker: Worker) -> asyncio.Task[WorkerStacks | None]:
        """Begin to read the stacks of a worker that may be recovered then; returns the task."""

        def finish(reading: asyncio.Task[WorkerStacks | None]) -> None:
            if worker.reading_stacks is reading:  # not so if it hangs again, and a newer read is in progress
                worker.reading_stacks = None
                self.touch(entry)

        worker.reading_stacks = reading = asyncio.ensure_future(record_stacks(self.runner, entry, worker))
        reading.add_done_callback(finish)
        return reading

    def mark_stuck(self, entry: Entry, worker: Worker, stuck: bool) -> None:
        """Note whether the worker's event loop is stuck, that is, has not answered a heartbeat."""
        worker.stuck = stuck
        self.touch(entry)

    def note_overlap_impossible(self, entry: Entry) -> None:
        """Record that the server's command cannot start while an older process runs, as an earlier start showed."""
        entry.observed.overlap_found = "no"

    def set_idle(self, entry: Entry, worker_id: str, idle: bool) -> None:
        """Note whether a worker is `idle`: it has had no traffic for long enough to let its server sleep."""
        worker = entry.observed.workers.get(worker_id)
        if worker is not None and worker.idle is not idle:
            worker.idle = idle
            self.touch(entry)

    # Changes of the servers.

    def add(
        self,
        config: ServerConfig,
        source: tuple[Mapping[str, object], str] | None = None,
        *,
        restarts: int = 0,
        failures: int = 0,
    ) -> Entry:
        """Add a server without starting it.

        If a server of the same name is being removed, the removal is cancelled, and that server gets this
        configuration. `source`, for a server added by a command, is its table and the base directory of its paths.
        `restarts` and `failures` are added to the server's counts.
        """
        entry = self.servers.add_or_revive(config)
        entry.desired.source = source
        entry.observed.restarts += restarts
        entry.observed.failures += failures
        self.touch(entry)
        return entry

    def lasting_address_holder(self, entry: Entry) -> Entry | None:
        """Another server that has the entry's address and will keep it, or None.

        A server that is stopping does not count.
        """
        contenders = [
            contender
            for contender in self._addresses.address_contenders(entry)
            if contender.config.key == entry.config.key
        ]
        for contender in contenders:
            if contender.wants_no_worker and not contender.is_fully_stopped:
                self._addresses.note_leaving(contender)
        return next((contender for contender in contenders if not contender.wants_no_worker), None)

    def forget(self, entry: Entry) -> None:
        """Remove a server that has no active worker, hook or listener."""
        self.servers.forget(entry)
        self._dependency_facts.pop(entry.name, None)

    def set_dependencies(self, entry: Entry, dependencies: tuple[Dependency, ...]) -> None:
        """Make the server depend on these servers instead of those in its configuration."""
        if entry.config.depends_on != dependencies:
            self.change(entry, entry.config.model_copy(update={"depends_on": dependencies}), live=True)

    def set_app_state(self, entry: Entry, values: Mapping[str, object]) -> None:
        """Set the values of `scope["state"]` for workers started from now on."""
        entry.desired.app_state = values

    def schedule_removal(self, entry: Entry, *, ignore_dependents: bool = False) -> None:
        """Drain and stop the server; it is removed when its last worker has ended.

        Unless `ignore_dependents`, draining begins only when the workers of the server's dependents have ended.
        """
        entry.schedule_stop_hook()
        entry.desired.ignore_dependencies = ignore_dependents
        self.servers.mark_removed(entry)
        self._turn_off(entry, Desired.REMOVED)
        self.touch(entry)

    def change(self, entry: Entry, config: ServerConfig, *, live: bool, proves: bool = False) -> None:
        """Give the server a new configuration from the files, under the same name.

        With `live` its workers continue, with the new configuration. Without `live`, running workers are replaced by a
        new generation (`proves`: see `restart`), a server that has failed or is in backoff is started again, and a
        stopped one stays stopped.
        """
        before, was_disabled = entry.config, entry.is_disabled
        entry.desired.source = None
        self.servers.replace_config(entry, config)
        if not config.scale.is_automatic:
            entry.desired.automatic = None
        if config.command != before.command:
            entry.observed.socket_found = entry.observed.overlap_found = ""
        if not same_listener(before, config):
            # Now, because the queue may reach a server that needs the address before this one.
            self._addresses.note_leaving(entry)
        if config.every != before.every:
            entry.schedule.next_run = None
        if config.every is not None or before.every is not None:
            self._start_or_schedule(entry, before)
        elif live:
            for worker in entry.observed.workers.values():
                if worker.config is before:
                    worker.config = config
            if config.idle_seconds != before.idle_seconds:
                self._executor.watch_idleness(entry, config.idle_seconds)
        elif entry.wanted:
            # A job is never repeated automatically.
            if entry.settled and not (config.job or before.job):
                entry.desired.fallback = before
            if entry.has_worker_of_serving_generation:
                entry.order_restart(proves=proves)
            entry.desired.code_since = self.clock.monotonic()
            # Its dependencies may be new as well.
            entry.desired.ignore_dependencies = False
            if entry.failed or entry.in_backoff or (entry.completed and not (config.job or config.on_demand)):
                # The configuration may have been the cause of the failure.
                self.start(entry)
        self._apply_disabled(entry, was_disabled)
        self.touch(entry)

    def _start_or_schedule(self, entry: Entry, before: ServerConfig) -> None:
        if not entry.wanted:
            return
        entry.desired.ignore_dependencies = False
        job_is_running = entry.desired.state is Desired.RUN and before.job
        if entry.config.every is not None:
            if not job_is_running:
                entry.set_desired(Desired.SCHEDULED)
        elif not job_is_running:
            self.start(entry)
        elif not entry.config.job:
            entry.order_restart()

    def replace_overrides(self, entry: Entry, overrides: Overrides = NO_OVERRIDES) -> None:
        """Replace all overrides, the changes that commands have made to the server's configuration."""
        was_disabled, before = entry.is_disabled, entry.desired.overrides
        if overrides.workers is None and before.workers is not None and entry.config.scale.is_automatic:
            # Automatic scaling continues from the number of workers that a command set.
            entry.desired.automatic = before.workers
        entry.desired.overrides = overrides
        self._apply_disabled(entry, was_disabled)
        self.touch(entry)

    def set_automatic_workers(self, entry: Entry, workers: int | None, figures: Table | None = None) -> None:
        """Set the number of workers that the scaling triggers demand; None means the minimum.

        The configured bounds still apply. `figures`, the measurements behind the decision, go into the event.
        """
        entry.desired.automatic, entry.desired.scaling = workers, figures or {}
        self.touch(entry)

    def enable_and_start(self, entry: Entry, *, by_name: bool = True) -> None:
        """Enable and start the server, even if a command stopped it before it was disabled.

        Without `by_name`, a server that starts on demand is not started.
        """
        if entry.desired.state is Desired.STOPPED:
            entry.set_desired(Desired.IDLE)
        disabled = False if entry.config.disabled else None
        self.replace_overrides(entry, replace(entry.desired.overrides, disabled=disabled, out=False))
        if by_name and entry.config.on_demand:
            self.start(entry)

    def disable(self, entry: Entry) -> None:
        """Stop the server; nothing starts it until it is enabled."""
        disabled = None if entry.config.disabled else True
        self.replace_overrides(entry, replace(entry.desired.overrides, disabled=disabled, out=False))

    def _apply_disabled(self, entry: Entry, was_disabled: bool) -> None:
        """Stop a server that has just been disabled, or start a server that has just been enabled, unless on demand.

        Servers that were stopped because they depend on the disabled server start again with it. A server that a
        command had stopped before it was disabled stays stopped.
        """
        stopped = entry.desired.state is Desired.STOPPED
        if entry.is_disabled and not was_disabled:
            self._turn_off(entry, Desired.STOPPED if stopped else Desired.IDLE)
        elif was_disabled and not entry.is_disabled:
            starting = [] if stopped or entry.config.on_demand else [entry]
            for server in [*starting, *self.servers.stopped_along_with([entry])]:
                self.start(server)

    async def reload_tls(self, entry: Entry) -> None:
        """Load the server's current certificates into its running workers. Raises ServerError."""
        entry.observed.files, ends = read_digests_by_key(entry.config), read_certificate_expiry(entry.config)
        self._queue.note(entry)
        for worker in entry.observed.staying:
            if worker.placement is not None:
                await self.runner.reload_tls(worker.placement, entry.config)
                worker.certificate_ends = ends
        entry.observed.certificate_ends = ends
        self._queue.note(entry)

    def change_socket_access(self, entry: Entry) -> None:
        """Give the file of the server's open Unix socket its configured mode and owner. Raises ServerError."""
        self._executor.change_socket_access(entry)

    # Causes and warnings.

    def forget_cause(self, entry: Entry) -> None:
        """Stop attributing further changes of the server to the last command, which is complete."""
        entry.desired.cause = None

    def add_command_warning(self, entry: Entry, warning: str, *, instead_of: str = "") -> None:
        """Add a warning to the result of the server's command in progress, in place of the warning `instead_of`."""
        if instead_of in entry.observed.warnings:
            entry.observed.warnings.remove(instead_of)
        entry.observed.warnings.append(warning)

    def clear_warnings(self, entry: Entry) -> None:
        """Remove the warnings of earlier commands."""
        entry.observed.warnings.clear()

    # Takeover from the previous supervisor.

    def mark_found_running(self, entry: Entry) -> None:
        """Set a server's desired state to RUN because its workers were found running. STOPPED and REMOVED are kept."""
        if entry.desired.state not in (Desired.STOPPED, Desired.REMOVED):
            entry.set_desired(Desired.RUN)
            self._queue.note(entry)

    def adopt_listener(self, entry: Entry, config: ServerConfig, endpoints: Sequence[str] = ()) -> None:
        """Adopt a listener that the previous supervisor opened for the entry, under this configuration."""
        self._addresses.adopt(entry, config, endpoints)
        self._executor.change_socket_access_or_warn(entry)

    def expect_listener(self, entry: Entry) -> None:
        """Have the server's listener, restored from an earlier run of the pool, opened once the server should run.

        Otherwise the gateway would refuse the connections queued in it until dependencies and hooks are ready.
        """
        entry.listener.returned = True

    def adopt_worker(self, entry: Entry, worker: Worker, *, generation_recorded: bool = True) -> None:
        """Adopt a running worker.

        Without `generation_recorded`, no serving generation is recorded: the newest adopted generation serves.
        """
        if not generation_recorded and worker.phase is not WorkerPhase.DRAINING:
            entry.desired.generation = max(entry.desired.generation, worker.generation)
        if entry.removed:
            self.servers.mark_removed(entry)
        if entry.desired.state is Desired.SCHEDULED and worker.phase not in LEAVING:
            entry.set_desired(Desired.RUN)  # the previous supervisor ended before it had recorded the run
            entry.schedule.run_since = entry.schedule.run_since or self.clock.time()
        entry.observed.workers[worker.id] = worker
        entry.observed.has_pending_request = (
            entry.observed.has_pending_request or worker.phase is WorkerPhase.READY
        )
        entry.desired.newest = max(entry.desired.newest, worker.generation)
        if worker.phase is WorkerPhase.READY:
            entry.count_restart_if_commanded(worker)
            self._executor.note_ready(entry, worker)
        worker.certificate_ends = read_certificate_expiry(worker.config)
        self._executor.adopt(entry, worker)
        self.touch(entry)

    def adopt_hook(self, entry: Entry, name: str, placement: Placement) -> None:
        """Adopt a running hook of the server that the previous supervisor started."""
        self._executor.hooks.run(entry, RunningHook(name, placement))

    def resume_adopted_server(self, entry: Entry) -> None:
        """Continue managing an adopted server.

        If no worker of the recorded serving generation is left, the newest generation with workers becomes the serving
        one.
        """
        self._queue.note(entry)
        staying = entry.observed.staying
        if entry.observed.workers and not any(map(entry.is_current, staying)):
            newer = [worker.generation for worker in staying if worker.generation > entry.desired.generation]
            if newer:
                entry.desired.generation, entry.desired.renewed = max(newer), {}
            else:
                entry.begin_generation_if_workers_leave()
        if entry.desired.state is Desired.SCHEDULED and entry.config.every is None:
            entry.set_desired(Desired.RUN)
        self._runs.resume(entry)
        if entry.wanted or entry.removed or not entry.is_fully_stopped:
            # Other entries need no decision, and would delay the servers of the first command.
            self.touch(entry)


class RunnerEventForwarder(RunnerEventHandler):
    """Passes a runner's reports about workers on to the core."""

    core: Core

    def expired(self, placement: Placement) -> None:
        if entry := self.core.entries.get(placement.server):
            self.core.mark_expired(entry, placement.id)

    def closing(self) -> None:
        for entry in self.core.entries.values():
            self.core.stop(entry)

    def idle_changed(self, placement: Placement, idle: bool) -> None:
        if entry := self.core.entries.get(placement.server):
            self.core.set_idle(entry, placement.id, idle)
