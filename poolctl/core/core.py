"""All servers of a pool: what commands and observers may change, and what is taken over from another supervisor."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from poolctl.clock import Clock
from poolctl.config import Dependency, ServerConfig
from poolctl.errors import ServerError
from poolctl.runners.protocol import Runner

from .addresses import Addresses, same_listener
from .certificates import restore_certificate
from .decide import Stop
from .desired import IN_BACKOFF, NO_OVERRIDES, Desired, Overrides
from .events import Recorder
from .health import HealthChecks
from .perform import Executor
from .reconcile import Reconciler
from .registry import Registry
from .state import Entry, Worker
from .trace import Trace
from .view import LEAVING, Phase
from .workqueue import Workqueue


class Core:
    """The servers in the order of the file. A change is decided on before the loop sleeps again.

    `calm`: nothing is done that was not ordered. `listeners` get each entry that may have changed.
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
        self.registry = Registry(servers, self._addresses)
        self.entries = self.registry.entries
        self.graph = self.registry.graph
        self.health = HealthChecks(runner, self._queue, recorder)
        self._executor = Executor(
            runner, clock, self._queue, self._addresses, self.registry, self.health, recorder, random.Random()
        )
        self._reconciler = Reconciler(
            self._queue, self.registry, self._addresses, self._executor, calm=calm, trace=trace
        )
        self.listeners = self._reconciler.listeners
        self.listeners.add(self.health.look)

    def touch(self, entry: Entry) -> None:
        """Something about the entry has changed: decide on it before the loop sleeps again."""
        self._queue.touch(entry)

    def take_changed(self) -> list[Entry]:
        """The entries that have changed since the last call: reads change none."""
        return self._queue.take_changed()

    # Changes of what is wanted.

    def start(self, entry: Entry, *, ignore_dependencies: bool = False, retries: bool = True) -> None:
        """Want the server to run; forget that it had failed or waits to be tried again.

        Without `retries` the first failure before it is ready is final.
        """
        if entry.is_disabled or entry.removed:
            return
        if entry.failed or entry.completed:
            entry.restart_times.clear()
            entry.called = False
        if entry.rests:
            entry.code_since = self.clock.monotonic()
        if any(
            worker.generation == entry.generation and worker.phase in LEAVING
            for worker in entry.workers.values()
        ):
            # What leaves keeps its name until it has gone; what comes gets another.
            entry.next_generation()
        entry.become(Desired.RUN)
        entry.ignore_dependencies = ignore_dependencies
        entry.retries = retries
        self.touch(entry)

    def stop(self, entry: Entry, *, kill: bool = False, limit_seconds: float | None = None) -> None:
        """Want the server not to run; with `kill` its workers are given no time, with a limit no more than that."""
        self._halt(entry, Desired.STOPPED)
        for worker in entry.workers.values():
            if limit_seconds is not None:
                worker.stop_seconds = min(limit_seconds, worker.config.stop_timeout)
            if worker.unstoppable:
                self._executor.perform(entry, Stop(worker.id))
        if kill:
            for worker in entry.workers.values():
                self._executor.kill(entry, worker)
        self.touch(entry)

    def _halt(self, entry: Entry, desired: Desired) -> None:
        """Want nothing of it to run; one that is removed stays so."""
        if not entry.removed:
            entry.become(desired)
        entry.called = False
        entry.overrides = replace(entry.overrides, out=False)

    def abandon(self, entry: Entry, failure: ServerError | None = None) -> None:
        """Kill the workers that are not ready yet, and want no others: an older generation goes on serving.

        Without one the server is stopped, or has failed if a failure is given.
        """
        for worker in entry.workers.values():
            if worker.phase in (Phase.PLACING, Phase.STARTING):
                self._executor.kill(entry, worker)
        if entry.wanted and not self._executor.go_back(entry):
            entry.become(Desired.STOPPED if failure is None else Desired.FAILED)
        if failure is not None:
            entry.failure = failure
        self.touch(entry)

    def restart(self, entry: Entry, *, retries: bool = True) -> None:
        """Want a new generation of the server; one that does not run is started."""
        running = any(worker.generation == entry.generation for worker in entry.workers.values())
        entry.code_since = self.clock.monotonic()
        if entry.wanted and running:
            entry.order_restart()
        elif entry.armed is not None:
            self._executor.preload(entry)
        self.start(entry, ignore_dependencies=True, retries=retries)

    def renew(self, entry: Entry, generation: int) -> None:
        """Replace the workers of this generation, which have served long enough; no failure and no restart."""
        if entry.wanted and entry.generation == generation:
            entry.next_generation()
            self.touch(entry)

    def relieve(self, entry: Entry, worker: Worker) -> None:
        """Stop this one worker; when it has gone, another takes its place."""
        worker.relieved = True
        self._executor.perform(entry, Stop(worker.id))
        self.touch(entry)

    def begin_recovery(
        self, entry: Entry, report: dict[str, Any], times: dict[str, list[float]], *, counts: bool
    ) -> None:
        """Note the recovery that begins, and when there were any; with `counts` it is a restart."""
        entry.recovering, entry.recoveries = report, times
        entry.restarts += counts
        self.touch(entry)

    def end_recovery(self, entry: Entry) -> None:
        """Note that the recovery under way is over."""
        entry.recovering = {}
        self.touch(entry)

    def mark_stuck(self, entry: Entry, worker: Worker, stuck: bool) -> None:
        """Note that the worker's event loop has left a heartbeat unanswered, or answers again."""
        worker.stuck = stuck
        self.touch(entry)

    def idle(self, entry: Entry, worker_id: str, idle: bool) -> None:
        """A worker has been without traffic for long enough to sleep, or is so no longer."""
        worker = entry.workers.get(worker_id)
        if worker is not None and worker.idle is not idle:
            worker.idle = idle
            self.touch(entry)

    # Changes of what there is.

    def add(self, config: ServerConfig, source: tuple[Mapping[str, Any], str] | None = None) -> Entry:
        """A server that was not there, not started; one that is leaving under the same name comes back as this one.

        `source` is the table and the directory of one that is not of the files.
        """
        entry = self.registry.add(config)
        entry.source = source
        self.touch(entry)
        return entry

    def holder(self, entry: Entry) -> Entry | None:
        """Another server that has the entry's address and keeps it; one that is stopping is waited for instead."""
        others = [each for each in self._addresses.neighbours(entry) if each.config.key == entry.config.key]
        for other in others:
            if other.rests and not other.at_rest:
                self._addresses.leave(other)
        return next((each for each in others if not each.rests), None)

    def forget(self, entry: Entry) -> None:
        """Drop a server that is at rest."""
        self._reconciler.forget(entry)

    def relate(self, entry: Entry, dependencies: tuple[Dependency, ...]) -> None:
        """Let the server depend on these, whatever its configuration says."""
        if entry.config.depends_on != dependencies:
            self.change(entry, entry.config.model_copy(update={"depends_on": dependencies}), live=True)

    def give_state(self, entry: Entry, values: Mapping[str, Any]) -> None:
        """Let the applications of workers to come find these values in their state."""
        entry.app_state = values

    def remove(self, entry: Entry) -> None:
        """Stop the server, whose workers finish what they have; it is forgotten when nothing of it is left."""
        self.registry.remove(entry)
        self._halt(entry, Desired.REMOVED)
        self.touch(entry)

    def change(self, entry: Entry, config: ServerConfig, *, live: bool) -> None:
        """Give the server another configuration of the same name, which is of the files.

        With `live` its workers go on under it; without, what runs is replaced by a generation that has it, what has
        failed or waits is tried again, and what was stopped stays so.
        """
        before, was_disabled = entry.config, entry.is_disabled
        entry.source = None
        self.registry.configure(entry, config)
        if not same_listener(before, config):
            # At once: whoever wants that address may be looked at before this one.
            self._addresses.leave(entry)
        if live:
            for worker in entry.workers.values():
                if worker.config is before:
                    worker.config = config
            if config.idle_seconds != before.idle_seconds:
                self._executor.idle_after(entry, config.idle_seconds)
        elif entry.wanted:
            if any(each.generation == entry.generation for each in entry.workers.values()):
                entry.order_restart()
            entry.code_since = self.clock.monotonic()
            # What it depends on now may be new as well.
            entry.ignore_dependencies = False
            if entry.failed or entry.desired in IN_BACKOFF or (entry.completed and not config.job):
                # It may well be what was wrong with it.
                self.start(entry)
        self._heed(entry, was_disabled)
        self.touch(entry)

    def override(self, entry: Entry, overrides: Overrides = NO_OVERRIDES) -> None:
        """Let these live changes win over the configuration, and only these."""
        was_disabled = entry.is_disabled
        entry.overrides = overrides
        self._heed(entry, was_disabled)
        self.touch(entry)

    def enable(self, entry: Entry) -> None:
        """Let the server be started, and start it, although it was stopped by a command before it was disabled."""
        if entry.desired is Desired.STOPPED:
            entry.become(Desired.IDLE)
        disabled = False if entry.config.disabled else None
        self.override(entry, replace(entry.overrides, disabled=disabled, out=False))

    def disable(self, entry: Entry) -> None:
        """Stop the server, and let nothing start it."""
        disabled = None if entry.config.disabled else True
        self.override(entry, replace(entry.overrides, disabled=disabled, out=False))

    def _heed(self, entry: Entry, was_disabled: bool) -> None:
        """Stop a server that is disabled by now, start one that was; one that a command has stopped stays so."""
        stopped = entry.desired is Desired.STOPPED
        if entry.is_disabled and not was_disabled:
            self._halt(entry, Desired.STOPPED if stopped else Desired.IDLE)
        elif was_disabled and not entry.is_disabled and not stopped:
            self.start(entry)

    async def renew_tls(self, entry: Entry) -> None:
        """Let the server use its certificates as they are now, in the processes that run. Raises ServerError."""
        await self._executor.renew_tls(entry)

    # What commands and events are told.

    def forget_cause(self, entry: Entry) -> None:
        """What happens to the server from here on was not ordered."""
        entry.cause = None

    def warn(self, entry: Entry, warning: str, *, instead_of: str = "") -> None:
        """Have the command under way, or else the next one, report this warning instead of the other one."""
        if instead_of in entry.warnings:
            entry.warnings.remove(instead_of)
        entry.warnings.append(warning)

    def clear_warnings(self, entry: Entry) -> None:
        """Forget the warnings of earlier commands."""
        entry.warnings.clear()

    # What a supervisor takes over from the one before.

    def expect_running(self, entry: Entry) -> None:
        """Want a server to run of which something was found running, unless a command has stopped it."""
        if entry.desired not in (Desired.STOPPED, Desired.REMOVED):
            entry.become(Desired.RUN)
            self._queue.note(entry)

    def adopt_listener(self, entry: Entry, config: ServerConfig) -> None:
        """Take over an open listener that the supervisor before had opened for the entry, under this configuration."""
        self._addresses.adopt(entry, config)

    def adopt_worker(self, entry: Entry, worker: Worker, *, recorded: bool = True) -> None:
        """Take over a worker of the supervisor before; unless that was `recorded`, its generation is to serve."""
        if not recorded and worker.phase is not Phase.DRAINING:
            entry.generation = max(entry.generation, worker.generation)
        if entry.removed:
            self.registry.remove(entry)
        entry.workers[worker.id] = worker
        entry.called = entry.called or worker.phase is Phase.READY
        entry.newest = max(entry.newest, worker.generation)
        if worker.phase is Phase.READY:
            entry.count_restart(worker)
        restore_certificate(entry, worker, self.clock.time())
        self._executor.adopt(entry, worker)
        self.touch(entry)

    def resume(self, entry: Entry) -> None:
        """Go on from what was taken over: the generation that serves may be newer than was noted, or all be leaving."""
        self._queue.note(entry)
        staying = {worker.generation for worker in entry.workers.values() if worker.phase not in LEAVING}
        if entry.workers and entry.generation not in staying:
            newer = [generation for generation in staying if generation > entry.generation]
            if newer:
                entry.generation = max(newer)
            elif any(worker.generation == entry.generation for worker in entry.workers.values()):
                # What leaves keeps its name until it has gone; what comes gets another.
                entry.next_generation()
        if entry.wanted or entry.removed or not entry.at_rest:
            # Nothing is to be done about the others, and the first command's servers would be sorted in behind them.
            self.touch(entry)
