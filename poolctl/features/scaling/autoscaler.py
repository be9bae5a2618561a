"""The autoscaler in the supervisor, which samples each server's load and sets the server's number of workers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from poolctl.core.server_entry import Entry
from poolctl.core.server_state import Desired
from poolctl.core.worker import WorkerPhase
from poolctl.core.workqueue import NO_CAUSE
from poolctl.json_form import Table
from poolctl.runners.local.local_runner import LocalRunner
from poolctl.supervisor.feature_parts import FeaturePart, PartContext
from poolctl.supervisor.verbs.open_file_limit import TooManyOpenFiles, check_open_file_limit
from poolctl.units import format_duration
from poolctl.worker import tally
from poolctl.worker.tally import Counts

from ._autoscale import Autoscale, Decision, LoadSample
from ._triggers import TRIGGERS, Sample
from .keys import Scale

INTERVAL_SECONDS = 0.25
# Number of servers sampled before the event loop does other work.
_BATCH_SIZE = 32


class LoadSampler:
    """A sampler of one server's load, as `triggers` measure it. The first sample covers the time since `now`."""

    def __init__(self, runner: LocalRunner, triggers: Iterable[str], now: float) -> None:
        self._runner = runner
        self._triggers = {name: TRIGGERS[name](runner) for name in triggers}
        self._previous_counts: dict[str, Counts] = {}  # by worker id
        self._at = now

    def sample(self, entry: Entry, now: float) -> LoadSample:
        """Return the load since the previous sample. The increase of a worker's counters is 0 in its first sample."""
        seen: dict[str, Counts] = {}
        counted = [0] * tally.COUNTED
        in_flight, serves = 0, False
        for worker in entry.observed.workers.values():
            if worker.phase is not WorkerPhase.READY or worker.placement is None:
                continue
            serves = serves or not worker.unhealthy
            latest = self._runner.counts(worker.placement)
            if latest is None:
                continue
            seen[worker.id] = counts = latest[: tally.COUNTED]
            in_flight += tally.in_flight(counts)
            previous = self._previous_counts.get(worker.id)
            if previous is not None and previous != counts:
                # Not negative: an application can overwrite its counts.
                for slot, count in enumerate(counts):
                    counted[slot] += max(0, count - previous[slot])
        self._previous_counts = seen
        sample = Sample(entry, now, now - self._at, in_flight, counted)
        self._at = now
        figures = {name: trigger.measure(sample) for name, trigger in self._triggers.items()}
        return LoadSample(now, len(seen), serves, figures=figures)


class _ScaledServer:
    """A server with triggers in its table `scale`, and the samples of its load."""

    def __init__(self, runner: LocalRunner, entry: Entry, scale: Scale, now: float) -> None:
        self.entry = entry
        self.scale = scale
        self.load = LoadSampler(runner, scale.triggers.targets, now)
        self.autoscale = Autoscale(scale, now)
        self.is_refused = False  # more workers were needed than the limit of open files allows

    @property
    def is_still_scaled(self) -> bool:
        """Return False if the server is stopped, a command set its workers, or its `scale` was replaced; else True."""
        entry = self.entry
        automatic = entry.desired.overrides.workers is None and entry.config.scale is self.scale
        return bool(automatic and entry.observed.workers and not entry.desired.state.wants_no_worker)


class Autoscaler(FeaturePart):
    """Sets the number of workers of each server that has triggers and workers, unless a command has set it.

    One timer serves all servers. In calm mode, after repeated crashes of the supervisor, nothing is changed.
    """

    def __init__(self, context: PartContext) -> None:
        super().__init__(context)
        self._core = context.core
        self._events = context.events
        self._servers: dict[str, _ScaledServer] = {}
        self._timer: asyncio.TimerHandle | None = None
        if not context.core.calm:
            context.core.observers.add(self._watch)

    async def aclose(self) -> None:
        """Stop taking samples."""
        self._core.observers.discard(self._watch)
        if self._timer is not None:
            self._timer.cancel()
        self._servers.clear()

    def _watch(self, entry: Entry) -> None:
        """Begin to scale the server if it has triggers and workers. Called on each change of a server."""
        scale = entry.config.scale
        if not (entry.scales and entry.observed.workers and isinstance(scale, Scale)):
            return
        server = self._servers.get(entry.name)
        if server is None or server.entry is not entry or server.scale != scale:
            now = self._core.clock.monotonic()
            self._servers[entry.name] = _ScaledServer(self.context.runner, entry, scale, now)
        else:
            server.scale = scale
        if self._timer is None:
            self._set_timer()

    def tick(self) -> None:
        """Sample all servers, in batches between which the loop does other work."""
        # Set before the work, so that the intervals stay exact.
        self._set_timer()
        self._scale_all(list(self._servers.values()))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Decisions of later ticks must not be attributed to the command that started a server.
        loop = asyncio.get_running_loop()
        self._timer = (
            loop.call_later(INTERVAL_SECONDS, self.tick, context=NO_CAUSE) if self._servers else None
        )

    def _scale_all(self, servers: Sequence[_ScaledServer]) -> None:
        if len(servers) > _BATCH_SIZE:
            asyncio.get_running_loop().call_soon(self._scale_all, servers[_BATCH_SIZE:], context=NO_CAUSE)
        for server in servers[:_BATCH_SIZE]:
            self._scale(server)

    def _scale(self, server: _ScaledServer) -> None:
        entry = server.entry
        if self._servers.get(entry.name) is not server:
            return
        if not server.is_still_scaled:
            del self._servers[entry.name]
            self._core.take_demand(entry)
            return
        load = server.load.sample(entry, self._core.clock.monotonic())
        may_change = load.serves and entry.desired.state is Desired.RUN
        if may_change:
            # Waiting requests count only once the server answers.
            load = load._replace(demand=self._core.take_demand(entry))
        decision = server.autoscale.decide(load, entry.size, may_change=may_change)
        if decision is not None:
            self._apply_or_refuse(server, decision)

    def _apply_or_refuse(self, server: _ScaledServer, decision: Decision) -> None:
        entry = server.entry
        figures = _decision_fields(decision)
        if decision.after > decision.before:
            try:
                check_open_file_limit(self._core, [(entry.config, decision.after)])
            except TooManyOpenFiles as refusal:
                if not server.is_refused:
                    figures["message"] = refusal.result.errors[0].message
                    self._record_warning("refused", entry, figures)
                server.is_refused = True
                return
        server.is_refused = False
        if decision.after == decision.before:
            self._record_warning("at maximum", entry, figures)
        else:
            # The event recorder reports the change, with these figures.
            self._core.set_automatic_workers(entry, decision.after, figures)

    def _record_warning(self, event: str, entry: Entry, figures: Table) -> None:
        self._events.record(
            "scale", event, server=entry.name, bind=entry.config.key, severity="warning", **figures
        )


def _decision_fields(decision: Decision) -> Table:
    is_latency = TRIGGERS[decision.trigger].is_latency
    value, target = (
        format_duration(round(figure, 3))
        if is_latency
        else f"{figure:,.0f}"
        if figure >= 100
        else f"{figure:.3g}"
        for figure in (decision.value, decision.target)
    )
    above = decision.value > decision.target
    unit = "" if is_latency else " for each worker"
    return {
        "before": decision.before,
        "after": decision.after,
        "cause": f"{decision.trigger} is {value}{unit}, {'above' if above else 'under'} {target}",
        "trigger": decision.trigger,
        "value": round(decision.value, 6),
        "target": decision.target,
        "window_seconds": round(decision.window_seconds, 3),
    }
