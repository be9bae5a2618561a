"""All servers of a pool: the changes that commands and observers may make, and takeover from another supervisor."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from poolctl.clock import Clock
from poolctl.config import Dependency, ServerConfig
from poolctl.errors import ServerError
from poolctl.frozen_value import Table
from poolctl.runners.runner_protocol import Placement, Runner

from .address_changes import Addresses, same_listener
from .canaries import Canaries
from .decide import Stop
from .decision_input import IN_BACKOFF, LEAVING, NO_OVERRIDES, Desired, Overrides, Phase
from .decision_trace import Trace
from .failure_output import last_lines
from .health_checks import HealthChecks
from .perform import Executor
from .reconcile import Reconciler
from .scheduled_runs import ScheduledRuns
from .server_changes import Recorder, Workqueue
from .server_entry import Entry, RunningHook, Worker
from .server_files import certificate_ends, digests, restore_certificate
from .servers import Servers
from .sleep_windows import SleepWindows
from .stack_reports import StackReports


class Core:
    """The servers in the order of the file. A decision follows each change before the loop sleeps again.

    `calm`: it only does what commands ask for. `listeners` get each entry that may have changed.
    """

    def __init__(
        self,
        servers: Iterable[ServerConfig],
        runner: Runner,
        clock: Clock,
        recorder: Recorder,
        *,
        calm: bool = False,
        trace: Trace | None = None,
    ) -> None:
        self.runner = runner
        self.clock = clock
        self.reason = ""  # why everything is being stopped, if it was not a command
        self._queue = Workqueue()
        self._addresses = Addresses(self._queue)
        can_watch = runner.capabilities.sleep is not None
        self.servers = Servers(servers, self._addresses, can_watch=can_watch)
        self.entries = self.servers.entries
        self.health = HealthChecks(runner, self._queue, recorder)
        self.stacks = StackReports(runner, recorder)
        self._executor = Executor(
            runner, clock, self._queue, self._addresses, self.servers, self.health, self.stacks, recorder,
            random.Random(),
        )  # fmt: skip
        self.canaries = Canaries(runner, clock, self._queue, self.servers, self._executor)
        self._runs = ScheduledRuns(clock, self._queue, self.servers, recorder, calm=calm)
        self._reconciler = Reconciler(
            self._queue,
            self.servers,
            self._addresses,
            self._executor,
            SleepWindows(clock, self._queue),
            self._runs,
            calm=calm,
            trace=trace,
        )
        self.listeners = self._reconciler.listeners
        self.listeners.add(self.health.look)

    def touch(self, entry: Entry) -> None:
        """The entry has changed: decide on it before the loop sleeps again."""
        self._queue.touch(entry)

    def take_changed(self) -> list[Entry]:
        """The entries that have changed since the last call: reads change none."""
        return self._queue.take_changed()

    def endpoints(self, config: ServerConfig) -> tuple[str, ...]:
        """The addresses that are bound for this configuration; empty when its listener is closed."""
        return self._addresses.endpoints(config.key)

    async def last_lines(self, entry: Entry, lines: int, since: float) -> list[str]:
        """The last lines that the server wrote since then (epoch); none if its runner keeps none, or is slow."""
        return await last_lines(self.runner, entry.name, lines, since)

    # Changes of the desired state.

    def start(self, entry: Entry, *, ignore_dependencies: bool = False, retries: bool = True) -> None:
        """Want the server to run, or at the times of its schedule; clears a failure or a backoff.

        Without `retries` the first failure before it is ready is final.
        """
        if entry.is_disabled or entry.removed:
            return
        if entry.failed or entry.completed:
            entry.observed.restart_times.clear()
            entry.observed.called = False
        if entry.rests:
            entry.desired.code_since = self.clock.monotonic()
            entry.order_start()
        if entry.config.every is None:
            entry.skip_leaving_generation()
            entry.become(Desired.RUN)
        elif not (entry.on_schedule and entry.observed.workers):  # a run that is under way continues
            entry.become(Desired.SCHEDULED)
        entry.desired.ignore_dependencies = ignore_dependencies
        entry.desired.retries = retries
        self.touch(entry)

    def stop(self, entry: Entry, *, kill: bool = False, limit_seconds: float | None = None) -> None:
        """Want the server not to run; its workers get no time with `kill`, and at most `limit_seconds`.

        With `kill` no hook runs.
        """
        self._halt(entry, Desired.STOPPED)
        entry.desired.stop_seconds = limit_seconds
        for worker in entry.observed.workers.values():
            if limit_seconds is not None:
                worker.stop_seconds = min(limit_seconds, worker.config.stop_timeout)
            if worker.unstoppable:
                self._executor.perform(entry, Stop(worker.id))
        if kill:
            self._executor.hooks.kill(entry)
            for worker in entry.observed.workers.values():
                self._executor.kill(entry, worker)
        self.touch(entry)

    def _halt(self, entry: Entry, desired: Desired) -> None:
        """Want no worker of it; a removed one stays removed."""
        entry.order_stop()
        entry.desired.stop_seconds = None
        if not entry.removed:
            entry.become(desired)
        entry.observed.called, entry.desired.automatic = False, None
        self.canaries.end(entry)
        entry.desired.overrides = replace(entry.desired.overrides, out=False)

    def abandon(self, entry: Entry, failure: ServerError | None = None) -> None:
        """Kill the workers that are not ready yet, and start no others: an older generation continues to serve.

        Without one the server is stopped, or failed if a failure is given.
        """
        for worker in entry.observed.workers.values():
            if worker.phase in (Phase.PLACING, Phase.STARTING):
                self._executor.kill(entry, worker)
        if entry.wanted and not self._executor.workers.go_back(entry):
            entry.order_stop()
            entry.become(Desired.STOPPED if failure is None else Desired.FAILED)
        if failure is not None:
            entry.observed.failure = failure
        self.touch(entry)

    def wake(self, entry: Entry) -> None:
        """Wake the server if it sleeps, as its next request would."""
        self._executor.wake(entry)

    def restart(self, entry: Entry, *, ignore_dependencies: bool = True, retries: bool = True) -> None:
        """Replace the server by a new generation, whatever its dependencies do; one that does not run is started.

        A job with a schedule is not run by this: see `run_now`.
        """
        if entry.config.every is not None:
            self.start(entry, ignore_dependencies=ignore_dependencies)
            return
        self.canaries.withdraw(entry)
        is_replaced = entry.begun
        entry.desired.code_since = self.clock.monotonic()
        if is_replaced:
            entry.order_restart()
        elif entry.listener.armed is not None:
            self._executor.preload(entry)
        self.start(entry, ignore_dependencies=ignore_dependencies or is_replaced, retries=retries)

    def run_now(self, entry: Entry, *, ignore_dependencies: bool = False) -> None:
        """Run a job with a schedule once, at once, and from then on at its times. It must not be running."""
        if entry.is_disabled or entry.removed:
            return
        self.start(entry, ignore_dependencies=ignore_dependencies)
        self._runs.begin(entry)

    def renew(self, entry: Entry, generation: int) -> None:
        """Replace the workers of this generation, whose time is over; counts neither as a failure nor as a restart."""
        if entry.wanted and entry.desired.generation == generation:
            entry.next_generation()
            self.touch(entry)

    def relieve(self, entry: Entry, worker: Worker) -> None:
        """Stop this one worker; another one replaces it when it has ended."""
        worker.relieved = True
        self._executor.perform(entry, Stop(worker.id))
        self.touch(entry)

    def kill(self, entry: Entry, worker: Worker) -> None:
        """End this one worker at once; another one replaces it when it has ended."""
        self._executor.kill(entry, worker)
        self.touch(entry)

    def begin_recovery(
        self, entry: Entry, report: Table, times: dict[str, list[float]], *, counts: bool
    ) -> None:
        """Note the recovery that begins, and the times of all of them; with `counts` it is a restart."""
        entry.observed.recovering, entry.observed.recoveries = report, times
        entry.observed.restarts += counts
        self.touch(entry)

    def end_recovery(self, entry: Entry) -> None:
        """Note that the recovery under way is over."""
        entry.observed.recovering = {}
        self.touch(entry)

    def mark_stuck(self, entry: Entry, worker: Worker, stuck: bool) -> None:
        """Note that the worker's event loop has left a heartbeat unanswered, or answers again."""
        worker.stuck = stuck
        self.touch(entry)

    def idle(self, entry: Entry, worker_id: str, idle: bool) -> None:
        """A worker has had no traffic for long enough to sleep, or has traffic again."""
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
        """Add a server without starting it; one that is leaving under the same name comes back as this one.

        `source` is the table and the directory of one that was added live. Its counts of restarts and failures
        continue from these.
        """
        entry = self.servers.add(config)
        entry.desired.source = source
        entry.observed.restarts += restarts
        entry.observed.failures += failures
        self.touch(entry)
        return entry

    def holder(self, entry: Entry) -> Entry | None:
        """Another server that has the entry's address and keeps it; a stopping one does not count."""
        others = [each for each in self._addresses.neighbours(entry) if each.config.key == entry.config.key]
        for other in others:
            if other.rests and not other.at_rest:
                self._addresses.leave(other)
        return next((each for each in others if not each.rests), None)

    def forget(self, entry: Entry) -> None:
        """Drop a server that is at rest."""
        self._reconciler.forget(entry)

    def relate(self, entry: Entry, dependencies: tuple[Dependency, ...]) -> None:
        """Make the server depend on these, whatever its configuration says."""
        if entry.config.depends_on != dependencies:
            self.change(entry, entry.config.but(depends_on=dependencies), live=True)

    def give_state(self, entry: Entry, values: Mapping[str, object]) -> None:
        """Give the applications of future workers these values in their state."""
        entry.desired.app_state = values

    def remove(self, entry: Entry) -> None:
        """Drain and stop the server; it is forgotten when its last worker has ended."""
        entry.order_stop()
        self.servers.remove(entry)
        self._halt(entry, Desired.REMOVED)
        self.touch(entry)

    def change(self, entry: Entry, config: ServerConfig, *, live: bool) -> None:
        """Give the server another configuration of the same name, from the files.

        With `live` its workers continue under it. Without, running workers are replaced by a new generation, a failed
        or waiting server is tried again, and a stopped one stays stopped.
        """
        before, was_disabled = entry.config, entry.is_disabled
        self.canaries.withdraw(entry)
        entry.desired.source = None
        self.servers.configure(entry, config)
        if not config.scale.is_automatic:
            entry.desired.automatic = None
        if config.command != before.command:
            entry.observed.socket_found = ""
        if not same_listener(before, config):
            # At once: a server that needs that address may be decided on before this one.
            self._addresses.leave(entry)
        if config.every != before.every:
            entry.schedule.next_run = None
        if config.every is not None or before.every is not None:
            self._change_schedule(entry, before)
        elif live:
            for worker in entry.observed.workers.values():
                if worker.config is before:
                    worker.config = config
            if config.idle_seconds != before.idle_seconds:
                self._executor.idle_after(entry, config.idle_seconds)
        elif entry.wanted:
            if entry.begun:
                entry.order_restart()
            entry.desired.code_since = self.clock.monotonic()
            # Its dependencies may be new as well.
            entry.desired.ignore_dependencies = False
            if entry.failed or entry.desired.state in IN_BACKOFF or (entry.completed and not config.job):
                # The configuration may have been the cause of the failure.
                self.start(entry)
        self._heed(entry, was_disabled)
        self.touch(entry)

    def _change_schedule(self, entry: Entry, before: ServerConfig) -> None:
        """A run that is under way continues as it began; later ones have the new configuration, and its times."""
        if not entry.wanted:
            return
        entry.desired.ignore_dependencies = False
        runs = entry.desired.state is Desired.RUN and before.job and bool(entry.observed.workers)
        if entry.config.every is None:
            if not runs:
                self.start(entry)
            elif not entry.config.job:
                entry.order_restart()
        elif not (entry.on_schedule or runs):
            entry.become(Desired.SCHEDULED)

    def override(self, entry: Entry, overrides: Overrides = NO_OVERRIDES) -> None:
        """Let these live changes, and only these, override the configuration."""
        was_disabled = entry.is_disabled
        if (
            overrides.workers is None
            and entry.desired.overrides.workers is not None
            and entry.config.scale.is_automatic
        ):
            # Its triggers continue from there.
            entry.desired.automatic = entry.desired.overrides.workers
        entry.desired.overrides = overrides
        self._heed(entry, was_disabled)
        self.touch(entry)

    def scale(self, entry: Entry, workers: int | None, figures: Table | None = None) -> None:
        """Give the server the number of workers that its triggers want, within its bounds; None: the least.

        `figures` are those of the decision, for its event.
        """
        entry.desired.automatic, entry.desired.scaling = workers, figures or {}
        self.touch(entry)

    def enable(self, entry: Entry) -> None:
        """Enable and start the server, even if a command stopped it before it was disabled."""
        if entry.desired.state is Desired.STOPPED:
            entry.become(Desired.IDLE)
        disabled = False if entry.config.disabled else None
        self.override(entry, replace(entry.desired.overrides, disabled=disabled, out=False))

    def disable(self, entry: Entry) -> None:
        """Stop the server; nothing starts it until it is enabled."""
        disabled = None if entry.config.disabled else True
        self.override(entry, replace(entry.desired.overrides, disabled=disabled, out=False))

    def _heed(self, entry: Entry, was_disabled: bool) -> None:
        """Stop a server that is now disabled, start one that no longer is, with the dependents that stopped with it.

        One stopped by a command stays stopped.
        """
        stopped = entry.desired.state is Desired.STOPPED
        if entry.is_disabled and not was_disabled:
            self._halt(entry, Desired.STOPPED if stopped else Desired.IDLE)
        elif was_disabled and not entry.is_disabled:
            for each in [*([] if stopped else [entry]), *self.servers.stopped_with([entry])]:
                self.start(each)

    async def renew_tls(self, entry: Entry) -> None:
        """Load the server's current certificates into its running workers. Raises ServerError."""
        entry.observed.files, ends = digests(entry.config), certificate_ends(entry.config)
        self._queue.note(entry)
        for worker in list(entry.observed.workers.values()):
            if worker.placement is not None and worker.phase not in LEAVING:
                await self.runner.renew_tls(worker.placement, entry.config)
                worker.certificate_ends, worker.passed_over = ends, None
        entry.observed.certificate_ends = ends
        self._queue.note(entry)

    # Causes and warnings.

    def forget_cause(self, entry: Entry) -> None:
        """Later changes of the server have no cause of their own yet: the command is complete."""
        entry.desired.cause = None

    def warn(self, entry: Entry, warning: str, *, instead_of: str = "") -> None:
        """Let the command under way, or the next one, report this warning instead of the other one."""
        if instead_of in entry.observed.warnings:
            entry.observed.warnings.remove(instead_of)
        entry.observed.warnings.append(warning)

    def clear_warnings(self, entry: Entry) -> None:
        """Forget the warnings of earlier commands."""
        entry.observed.warnings.clear()

    # Takeover from the previous supervisor.

    def expect_running(self, entry: Entry) -> None:
        """Want a server to run because it was found running, unless a command stopped it."""
        if entry.desired.state not in (Desired.STOPPED, Desired.REMOVED):
            entry.become(Desired.RUN)
            self._queue.note(entry)

    def adopt_listener(self, entry: Entry, config: ServerConfig, endpoints: Sequence[str] = ()) -> None:
        """Take over a listener that the previous supervisor opened for the entry, under this configuration."""
        self._addresses.adopt(entry, config, endpoints)

    def adopt_worker(self, entry: Entry, worker: Worker, *, recorded: bool = True) -> None:
        """Adopt a running worker; unless the entry's state was `recorded`, its generation is the one that serves."""
        if not recorded and worker.phase is not Phase.DRAINING:
            entry.desired.generation = max(entry.desired.generation, worker.generation)
        if entry.removed:
            self.servers.remove(entry)
        if entry.desired.state is Desired.SCHEDULED and worker.phase not in LEAVING:
            entry.become(Desired.RUN)  # its supervisor ended before it had recorded the run
            entry.schedule.run_since = entry.schedule.run_since or self.clock.time()
        entry.observed.workers[worker.id] = worker
        entry.observed.called = entry.observed.called or worker.phase is Phase.READY
        entry.desired.newest = max(entry.desired.newest, worker.generation)
        self.canaries.adopt(entry, worker)
        if worker.phase is Phase.READY:
            entry.count_restart(worker)
        restore_certificate(entry, worker, self.clock.time())
        self._executor.adopt(entry, worker)
        self.touch(entry)

    def adopt_hook(self, entry: Entry, name: str, placement: Placement) -> None:
        """Adopt a command of the server's `hooks` that the previous supervisor has begun."""
        self._executor.hooks.begin(entry, RunningHook(name, placement))

    def resume(self, entry: Entry) -> None:
        """Continue after adoption: the serving generation may be newer than recorded, or leaving altogether."""
        self._queue.note(entry)
        staying = {
            worker.generation for worker in entry.observed.workers.values() if worker.phase not in LEAVING
        }
        if entry.observed.workers and entry.desired.generation not in staying:
            newer = [generation for generation in staying if generation > entry.desired.generation]
            if newer:
                entry.desired.generation = max(newer)
            else:
                entry.skip_leaving_generation()
        if entry.desired.state is Desired.SCHEDULED and entry.config.every is None:
            entry.become(Desired.RUN)
        self._runs.resume(entry)
        if entry.wanted or entry.removed or not entry.at_rest:
            # The others need no decision, and would delay the servers of the first command.
            self.touch(entry)
