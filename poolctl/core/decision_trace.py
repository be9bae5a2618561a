"""Logs each decision with its reasons: `POOLCTL_TRACE=decisions`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from .decide import Action
from .decision_input import IN_BACKOFF, LEAVING, Listener, Phase, View, WorkerView

VARIABLE, DECISIONS = "POOLCTL_TRACE", "decisions"

logger = logging.getLogger("poolctl.supervisor")


class Trace:
    """Logs the actions for each server, and the facts that have changed since the previous decision."""

    def __init__(self) -> None:
        self._views: dict[str, View] = {}

    @classmethod
    def configured(cls, environment: Mapping[str, str]) -> Trace | None:
        """The trace, if the environment requests it; otherwise None."""
        return cls() if environment.get(VARIABLE) == DECISIONS else None

    def decision(self, name: str, view: View, actions: Sequence[Action], *, withheld: bool) -> None:
        """Log the decision unless it repeats the last one. `withheld`: a calm supervisor does not perform it."""
        changed = ", ".join(_changes(self._views.get(name), view))
        self._views[name] = view
        if not (changed or actions):
            return
        if withheld:
            outcome = "nothing: the supervisor does only what is ordered"
        elif actions:
            outcome = ", ".join(map(_action_text, actions))
        else:
            outcome = f"nothing: {why_nothing(view)}"
        logger.info("decision: %s: %s => %s", name, changed or "nothing has changed", outcome)

    def forget(self, name: str) -> None:
        """Forget a server that has been removed."""
        self._views.pop(name, None)


def _changes(before: View | None, after: View) -> Iterator[str]:
    """The facts that differ from the previous view or, at first, from a stopped server."""
    old = before or View(after.desired, after.generation, feasible=after.feasible)
    if before is None:
        yield f"desired {after.desired}"
    for each in fields(View):
        if each.name != "workers" and getattr(old, each.name) != (now := getattr(after, each.name)):
            yield f"{each.name} {_value_text(getattr(old, each.name))} -> {_value_text(now)}"
    there = {worker.id: worker for worker in old.workers}
    for worker in after.workers:
        known = there.pop(worker.id, None)
        if known is None:
            yield f"{worker.id} new, {worker.phase}"
        elif known != worker:
            yield f"{worker.id} {' '.join(_worker_changes(known, worker))}"
    for gone in there:
        yield f"{gone} gone"


def _worker_changes(before: WorkerView, after: WorkerView) -> Iterator[str]:
    for each in fields(WorkerView):
        old, new = getattr(before, each.name), getattr(after, each.name)
        if old != new:
            yield (
                f"{old} -> {new}"
                if each.name == "phase"
                else f"{each.name} {_value_text(old)} -> {_value_text(new)}"
            )


def _value_text(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _action_text(action: Action) -> str:
    """The action and its arguments as text, such as `spawn 2 0`."""
    values = [str(getattr(action, each.name)) for each in fields(action)]
    return " ".join([type(action).__name__.lower(), *values])


def why_nothing(view: View) -> str:
    """The reason why the server needs no action now."""
    leaving = _ids_of_workers_in(view, *LEAVING)
    if view.desired.rests:
        if view.workers and not view.may_stop:
            return "what depends on it has to stop first"
        return f"waits for the end of {leaving}" if leaving else f"it is {view.desired}"
    if view.desired in IN_BACKOFF:
        return "it is in backoff"
    if view.listener is Listener.CLOSED:
        return "its address is in use" if not view.may_open else "what it depends on is not ready"
    if view.listener is not Listener.OPEN:
        return f"its listener is {view.listener}"
    if view.vacates and leaving:
        return f"waits for the end of {leaving}"
    if view.sleeps:
        return f"waits for the end of {leaving}" if leaving else "asleep until the next request"
    if view.checking:
        return "waits until it is known whether a worker can start"
    if coming := _ids_of_workers_in(view, Phase.PLACING, Phase.STARTING):
        return f"waits for {coming} to become ready"
    present = {worker.index for worker in view.workers if worker.generation == view.generation}
    if not view.may_start and not present.issuperset(range(view.count)):
        return "what it depends on is not ready"
    return f"waits for the end of {leaving}" if leaving else "it is as desired"


def _ids_of_workers_in(view: View, *phases: Phase) -> str:
    return ", ".join(worker.id for worker in view.workers if worker.phase in phases)
