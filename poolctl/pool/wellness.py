"""What the probes of one server say of its workers; asked on the engine's loop, read from any thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from poolctl.config import ServerConfig
from poolctl.probes.hysteresis import RotationState, rotation_changes
from poolctl.probes.probe import WorkerProbe
from poolctl.probes.worker_probes import WorkerProbes
from poolctl.runners.protocol import Placement, Runner
from poolctl.states import State, Status

from . import engine


class Wellness:
    """`changed` is called after every answer of a worker that is followed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._probes: dict[Placement, WorkerProbes] = {}
        self._resting: set[Placement] = set()
        self._runner: Runner

    async def admit(self, runner: Runner, config: ServerConfig, placement: Placement) -> None:
        """Return when the worker, which answers, has passed its probes, and let it accept. Raises WorkerFailed."""
        health = config.health
        if config.job or not (health.gated or health.probed):
            return
        self._runner = runner
        probes = WorkerProbes(config, placement, runner, engine.engine().schedule, self)
        self._probes[placement] = probes
        ending = asyncio.ensure_future(runner.watch(placement))
        try:
            await probes.wait_until_ready(ending)
        finally:
            ending.cancel()
        if health.gated:
            await runner.attend(placement, True)

    def follow(self, placements: Iterable[Placement]) -> None:
        """Ask these from now on, and those that are not among them no more."""
        there = set(placements)
        for placement, probes in list(self._probes.items()):
            if placement not in there:
                if probes.started:
                    self.drop([placement])
            elif not probes.started:
                probes.start(Status.OK)

    def drop(self, placements: Iterable[Placement]) -> None:
        """Ask these nothing any more."""
        for placement in placements:
            probes = self._probes.pop(placement, None)
            self._resting.discard(placement)
            if probes is not None:
                probes.stop()

    @property
    def status(self) -> Status | None:
        """How the workers are, or warn when they differ; None when none of them is asked."""
        return Status.of_all(probes.status for probes in self._followed if probes.probes)

    @property
    def message(self) -> str:
        """What is wrong with the first of them with which something is."""
        return next((probes.message for probes in list(self._probes.values()) if probes.message), "")

    @property
    def latency_seconds(self) -> float | None:
        """How long the last answer took; of several workers the slowest."""
        found = [probes.latency_seconds for probes in self._followed]
        return max((each for each in found if each is not None), default=None)

    def moving(self, state: State) -> tuple[bool, bool]:
        """Whether a server in that state, or one of its workers, is on its way up, and whether on its way down."""
        found = [probe.hysteresis for each in self._followed for probe in each.probes]
        rising = state is State.STARTING or any(each.rising for each in found)
        return rising, state is State.STOPPING or any(each.falling for each in found)

    @property
    def _followed(self) -> list[WorkerProbes]:
        return [probes for probes in list(self._probes.values()) if probes.started]

    def probed(self, probes: WorkerProbes, probe: WorkerProbe) -> None:
        """See ProbeListener."""
        workers = [
            (placement, RotationState(each.status is Status.KO, placement in self._resting))
            for placement, each in self._probes.items()
            if each.started
        ]
        for placement, accepting in rotation_changes(workers):
            (self._resting.discard if accepting else self._resting.add)(placement)
            engine.engine().spawn(self._runner.attend(placement, accepting))
        self._changed()
