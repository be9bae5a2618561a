"""Workers that are alive in name only: recovered as their server's strategy says, each time with a report."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from poolctl.core.core import Core
from poolctl.core.events import caused_by
from poolctl.core.state import Entry, Worker
from poolctl.core.view import Phase
from poolctl.monitor.event_queue import Events
from poolctl.monitor.recovery_policy import Situation, Step, decide, within
from poolctl.states import Status

LAST_LINES = 10
LIVENESS, HEARTBEAT, MEMORY = "liveness", "heartbeat", "memory"
_ALL = "all"
_DONE = {
    Step.RESTART: "restarted",
    Step.REPLACE: "replaced",
    Step.DISABLE: "disabled",
    Step.TELL: "told",
    Step.GIVE_UP: "left as it is",
}


class Ailment(NamedTuple):
    """What was seen of a worker, and when, in seconds since the epoch."""

    worker: Worker
    kind: str
    seen: str
    since: float


class Case:
    """A server with workers that ail."""

    def __init__(self, jitter: float) -> None:
        self.ailing: dict[str, Ailment] = {}
        self.told: set[str] = set()
        self.jitter = jitter
        self.timer: asyncio.TimerHandle | None = None


class WorkerRecovery:
    """Listens to the core's ailments and changes; `chance` gives random numbers from -1 to 1."""

    def __init__(
        self, core: Core, events: Events, chance: Callable[[], float] = lambda: random.uniform(-1, 1)
    ) -> None:
        self._core = core
        self._events = events
        self._chance = chance
        self._cases: dict[str, Case] = {}
        core.health.unhealthy.add(lambda entry, worker, reason: self.notice(entry, worker, LIVENESS, reason))
        core.listeners.add(self.look)

    def notice(self, entry: Entry, worker: Worker, kind: str, seen: str) -> None:
        """A worker ails; told again of the same one nothing happens."""
        case = self._cases.setdefault(entry.name, Case(self._chance()))
        known = case.ailing.get(worker.id)
        if known is None or known.worker is not worker:
            case.ailing[worker.id] = Ailment(worker, kind, seen, self._core.clock.time())
        self.look(entry)

    def resume(self, entries: Iterable[Entry]) -> None:
        """Go on with the recoveries that the supervisor before had begun."""
        for entry in entries:
            for name, pid in entry.recovering.get("workers", {}).items():
                worker = entry.workers.get(name)
                if worker is None or worker.placement is None or worker.placement.pid != pid:
                    continue
                self._core.mark_stuck(entry, worker, entry.recovering["stuck"])
                self._core.health.look(entry)
                if entry.recovering["step"] == Step.RESTART and worker.phase is Phase.READY:
                    self._core.relieve(entry, worker)

    def look(self, entry: Entry) -> None:
        """Something about the server has changed: a recovery may be over, another may be due."""
        case = self._cases.get(entry.name)
        if case is None and not entry.recovering:
            return
        if entry.recovering:
            self._conclude(entry)
        if case is not None:
            self._prune(entry, case)
            self._consider(entry, case)

    def _prune(self, entry: Entry, case: Case) -> None:
        """Forget those that have gone, or are well again."""
        case.ailing = {name: each for name, each in case.ailing.items() if _ails(entry, each)}
        case.told &= case.ailing.keys()
        if not case.ailing:
            _cancel(case)
            del self._cases[entry.name]

    def _consider(self, entry: Entry, case: Case) -> None:
        current = [each for each in case.ailing.values() if each.worker.generation == entry.generation]
        if not entry.wanted or entry.removed:
            return
        policy = entry.config.recovery
        pauses: list[float] = []
        for strategy, ailing in (
            (policy.strategy, [each for each in current if each.kind != MEMORY]),
            ("replace", [each for each in current if each.kind == MEMORY]),
        ):
            situation = Situation(
                strategy,
                histories=[_history(entry, each.worker) for each in ailing],
                ready=sum(each.phase is Phase.READY for each in entry.workers.values()),
                size=entry.size,
                overlaps=entry.may_overlap,
                under_way=bool(entry.recovering),
                now=self._core.clock.monotonic(),
                jitter=case.jitter,
            )
            step, chosen, again = decide(policy, situation)
            if step in (Step.TELL, Step.GIVE_UP):
                self._tell(entry, case, step, ailing)
            elif step in (Step.RESTART, Step.REPLACE, Step.DISABLE):
                self._begin(entry, step, [ailing[place] for place in chosen])
            pauses.append(again)
        _cancel(case)
        if again := min(filter(None, pauses), default=0.0):
            case.timer = asyncio.get_running_loop().call_later(again, self.look, entry)

    def _tell(self, entry: Entry, case: Case, step: Step, ailing: list[Ailment]) -> None:
        news = [each for each in ailing if each.worker.id not in case.told]
        if news:
            case.told |= {each.worker.id for each in news}
            report = self._report(entry, step, news)
            self._record(entry, report, "notified" if step is Step.TELL else "given up")

    # A recovery.

    def _begin(self, entry: Entry, step: Step, ailing: list[Ailment]) -> None:
        acts = step is not Step.DISABLE
        times = _times(entry, step, ailing, self._core.clock.monotonic()) if acts else entry.recoveries
        counts = acts and any(each.kind != MEMORY for each in ailing)
        self._core.begin_recovery(entry, self._report(entry, step, ailing), times, counts=counts)
        with caused_by("recovery: " + "; ".join(each.seen for each in ailing)):
            self._act(entry, step, ailing)

    def _act(self, entry: Entry, step: Step, ailing: list[Ailment]) -> None:
        core = self._core
        if step is Step.RESTART:
            for each in ailing:
                core.relieve(entry, each.worker)
        elif step is Step.REPLACE:
            core.renew(entry, entry.generation)
        else:
            for dependent in core.graph.closure([entry], core.graph.dependents):
                if dependent is not entry:
                    core.stop(dependent)
            core.override(entry, replace(entry.overrides, disabled=True))

    def _report(self, entry: Entry, step: Step, ailing: list[Ailment]) -> dict[str, Any]:
        """What is known when a recovery begins, as a successor can read it."""
        workers = [each.worker for each in ailing]
        placed_at = min(worker.placed_at for worker in workers)
        return {
            "step": step.value,
            "seen": [each.seen for each in ailing],
            "kinds": sorted({each.kind for each in ailing}),
            "since": min(each.since for each in ailing),
            "workers": {each.id: each.placement.pid for each in workers if each.placement is not None},
            "stuck": any(worker.stuck for worker in workers),
            "generation": entry.generation,
            "pids": entry.pids,
            "lines": self._core.runner.logs(entry.name, LAST_LINES, placed_at),
        }

    def _conclude(self, entry: Entry) -> None:
        found = _outcome(entry)
        if found is not None:
            report = entry.recovering
            self._core.end_recovery(entry)
            self._record(entry, report, *found)

    def _record(self, entry: Entry, report: dict[str, Any], outcome: str, why: str = "") -> None:
        duration = max(0.0, self._core.clock.time() - report["since"])
        done = _DONE[Step(report["step"])]
        seen = "; ".join(report["seen"])
        self._events.record(
            "recovery",
            outcome,
            server=entry.name,
            bind=entry.config.key,
            message=": ".join(filter(None, (seen, _sentence(outcome, done, duration), why))),
            cause=", ".join(report["kinds"]),
            before={"pids": report["pids"]},
            after={"pids": entry.pids, "state": entry.state},
            strategy=report["step"],
            seen=report["seen"],
            done=done,
            outcome=outcome,
            duration_seconds=round(duration, 3),
            workers=report["workers"],
            lines=report["lines"],
        )


def _history(entry: Entry, worker: Worker) -> list[float]:
    return sorted([*entry.recoveries.get(_ALL, ()), *entry.recoveries.get(str(worker.index), ())])


def _times(entry: Entry, step: Step, ailing: list[Ailment], now: float) -> dict[str, list[float]]:
    """When there were recoveries, this one included, by the workers that they were about."""
    whose = {_ALL} if step is Step.REPLACE else {str(each.worker.index) for each in ailing}
    known = {key: within(times, entry.config.recovery.window, now) for key, times in entry.recoveries.items()}
    known |= {key: [*known.get(key, ()), now] for key in whose}
    return {key: times for key, times in known.items() if times}


def _outcome(entry: Entry) -> tuple[str, str] | None:
    """How the recovery ended, and why; None while it is under way."""
    step = entry.recovering["step"]
    if step == Step.DISABLE:
        if entry.is_disabled:
            return ("disabled", "") if entry.at_rest else None
        return "interrupted", "it was enabled again"
    if entry.removed or not entry.wanted:
        return "interrupted", "it was stopped meanwhile"
    if entry.failed or entry.completed:
        return "failed", entry.failure.message if entry.failure else ""
    if step == Step.REPLACE and entry.generation == entry.recovering["generation"]:
        return "failed", entry.failure.message if entry.failure else "its replacement did not become ready"
    return ("recovered", "") if entry.settled else None


def _sentence(outcome: str, done: str, duration_seconds: float) -> str:
    match outcome:
        case "recovered":
            return f"{done} within {_took(duration_seconds)}"
        case "notified":
            return ""
        case "disabled":
            return done
        case "given up":
            return "recovered too often, left as it is"
    return f"could not be {done}" if outcome == "failed" else f"was being {done}"


def _took(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _ails(entry: Entry, ailment: Ailment) -> bool:
    worker = ailment.worker
    if entry.workers.get(worker.id) is not worker or worker.phase is not Phase.READY:
        return False
    if ailment.kind == HEARTBEAT:
        return worker.stuck
    return ailment.kind == MEMORY or worker.health not in (Status.OK, Status.WARN)


def _cancel(case: Case) -> None:
    if case.timer is not None:
        case.timer.cancel()
        case.timer = None
