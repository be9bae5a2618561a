"""Samples the servers with triggers, and gives them the number of workers that their load asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from poolctl.config import Scale
from poolctl.core.core import Core
from poolctl.core.decision_input import Desired
from poolctl.core.server_changes import NO_CAUSE
from poolctl.core.server_entry import Entry
from poolctl.json_form import Table
from poolctl.monitor.event_queue import Events
from poolctl.units import format_duration

from ..verbs.start_checks import TooManyOpenFiles, ensure_open_files
from .autoscale import LATENCIES, Autoscale, Decision
from .server_load import ServerLoad

INTERVAL_SECONDS = 0.25
# Number of servers examined before the loop does other work.
_AT_ONCE = 32


class _ScaledServer:
    """A server that is sampled, under the table by which it is."""

    def __init__(self, core: Core, entry: Entry, now: float) -> None:
        self.entry = entry
        self.scale: Scale = entry.config.scale
        self.load = ServerLoad(core, self.scale.triggers, now)
        self.autoscale = Autoscale(self.scale, now)
        self.is_refused = False  # more workers were wanted than this pool may have files for
        self.is_skipped = False  # it was at the last tick, because it is calm

    @property
    def is_scaled(self) -> bool:
        """Its triggers, as they are here, still say how many workers it has."""
        entry = self.entry
        automatic = entry.desired.overrides.workers is None and entry.config.scale is self.scale
        return bool(automatic and entry.observed.workers and not entry.desired.state.rests)


class Autoscaler:
    """One timer for all servers that `watch` was called with."""

    def __init__(self, core: Core, events: Events) -> None:
        self._core = core
        self._events = events
        self._servers: dict[str, _ScaledServer] = {}
        self._demand: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, entry: Entry) -> None:
        """Scale the server from now on, while it has workers and no command says how many."""
        if not (entry.scales and entry.observed.workers):
            return
        known = self._servers.get(entry.name)
        if known is None or known.entry is not entry or known.scale != entry.config.scale:
            self._servers[entry.name] = _ScaledServer(self._core, entry, self._core.clock.monotonic())
        else:
            known.scale = entry.config.scale
        if self._timer is None:
            self._set_timer()

    def note_demand(self, entry: Entry, count: int) -> None:
        """Set the number of requests that wait elsewhere for the server; they count once it answers."""
        self._demand[entry.name] = self._demand.get(entry.name, 0) + count

    def close(self) -> None:
        """Stop taking samples."""
        if self._timer is not None:
            self._timer.cancel()
        self._servers.clear()

    def tick(self) -> None:
        """Look at all servers, with turns of the loop between them."""
        # Set before the work, so that the intervals stay exact.
        self._set_timer()
        self._look_at(list(self._servers.values()))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # The command that has started a server causes no later decision.
        loop = asyncio.get_running_loop()
        self._timer = (
            loop.call_later(INTERVAL_SECONDS, self.tick, context=NO_CAUSE) if self._servers else None
        )

    def _look_at(self, servers: Sequence[_ScaledServer]) -> None:
        if len(servers) > _AT_ONCE:
            asyncio.get_running_loop().call_soon(self._look_at, servers[_AT_ONCE:], context=NO_CAUSE)
        for server in servers[:_AT_ONCE]:
            self._look(server)

    def _look(self, server: _ScaledServer) -> None:
        entry = server.entry
        if self._servers.get(entry.name) is not server:
            return
        if not server.is_scaled:
            del self._servers[entry.name]
            self._demand.pop(entry.name, None)
            return
        # One that is far from its targets is looked at half as often.
        server.is_skipped = server.autoscale.is_calm and not server.is_skipped and not self._demand
        if server.is_skipped:
            return
        load = server.load.sample(entry, self._core.clock.monotonic())
        may_grow = load.serves and entry.desired.state is Desired.RUN
        if may_grow and self._demand:
            load = load._replace(demand=self._demand.pop(entry.name, 0))
        decision = server.autoscale.decide(load, entry.size, may_grow=may_grow)
        if decision is not None:
            self._apply(server, decision)

    def _apply(self, server: _ScaledServer, decision: Decision) -> None:
        entry = server.entry
        if decision.after < decision.before and entry.desired.canary is not None:
            # With fewer other workers the canary would get a larger share than requested.
            return
        figures = _figures(decision)
        if decision.after > decision.before:
            try:
                ensure_open_files(self._core, [(entry.config, decision.after)])
            except TooManyOpenFiles as refusal:
                if not server.is_refused:
                    figures["message"] = refusal.result.errors[0].message
                    self._record("refused", entry, figures)
                server.is_refused = True
                return
        server.is_refused = False
        if decision.after == decision.before:
            self._record("at maximum", entry, figures)
        else:
            # The event recorder reports the change, with these figures.
            self._core.scale(entry, decision.after, figures)

    def _record(self, event: str, entry: Entry, figures: Table) -> None:
        self._events.record(
            "scale", event, server=entry.name, bind=entry.config.key, severity="warning", **figures
        )


def _figures(decision: Decision) -> Table:
    """The decision as an event reports it."""
    is_latency = decision.trigger in LATENCIES
    value, target = (
        format_duration(round(figure, 3))
        if is_latency
        else f"{figure:,.0f}"
        if figure >= 100
        else f"{figure:.3g}"
        for figure in (decision.value, decision.target)
    )
    above = decision.value > decision.target
    each = "" if is_latency else " for each worker"
    return {
        "before": decision.before,
        "after": decision.after,
        "cause": f"{decision.trigger} is {value}{each}, {'above' if above else 'under'} {target}",
        "trigger": decision.trigger,
        "value": round(decision.value, 6),
        "target": decision.target,
        "window_seconds": round(decision.window_seconds, 3),
    }
