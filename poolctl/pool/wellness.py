"""What the probes of one server say of its workers; asked on the engine's loop, read from any thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from poolctl.config import ServerConfig
from poolctl.probes.probe import Check
from poolctl.probes.rotation import Attending, attendance
from poolctl.probes.worker_probes import Checkup
from poolctl.runners.protocol import Placement, Runner, WorkerFailed
from poolctl.states import State, Status

from . import engine


class Wellness:
    """`changed` is called after every answer of a worker that is followed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._checkups: dict[Placement, Checkup] = {}
        self._resting: set[Placement] = set()
        self._runner: Runner

    async def admit(self, runner: Runner, config: ServerConfig, placement: Placement) -> None:
        """Return when the worker, which answers, has passed its probes, and let it accept. Raises WorkerFailed."""
        health = config.health
        if config.job or not (health.gated or health.probed):
            return
        self._runner = runner
        connect = partial(runner.connect, placement)
        checkup = Checkup(config, placement, connect, engine.engine().schedule, self._heard)
        self._checkups[placement] = checkup
        await _first(checkup.pass_(), runner.watch(placement))
        if health.gated:
            await runner.attend(placement, True)

    def follow(self, placements: Iterable[Placement]) -> None:
        """Ask these from now on, and those that are not among them no more."""
        there = set(placements)
        for placement, checkup in list(self._checkups.items()):
            if placement not in there:
                if checkup.begun:
                    self.drop([placement])
            elif not checkup.begun:
                checkup.begin(Status.OK)

    def drop(self, placements: Iterable[Placement]) -> None:
        """Ask these nothing any more."""
        for placement in placements:
            checkup = self._checkups.pop(placement, None)
            self._resting.discard(placement)
            if checkup is not None:
                checkup.end()

    @property
    def status(self) -> Status | None:
        """How the workers are, or warn when they differ; None when none of them is asked."""
        found = {checkup.status for checkup in self._followed if checkup.checks}
        if not found:
            return None
        return found.pop() if len(found) == 1 else Status.WARN

    @property
    def message(self) -> str:
        """What is wrong with the first of them with which something is."""
        return next((checkup.message for checkup in list(self._checkups.values()) if checkup.message), "")

    @property
    def latency_seconds(self) -> float | None:
        """How long the last answer took; of several workers the slowest."""
        found = [checkup.latency_seconds for checkup in self._followed]
        return max((each for each in found if each is not None), default=None)

    def moving(self, state: State) -> tuple[bool, bool]:
        """Whether a server in that state, or one of its workers, is on its way up, and whether on its way down."""
        found = [check.hysteresis for checkup in self._followed for check in checkup.checks]
        rising = state is State.STARTING or any(each.rising for each in found)
        return rising, state is State.STOPPING or any(each.falling for each in found)

    @property
    def _followed(self) -> list[Checkup]:
        return [checkup for checkup in list(self._checkups.values()) if checkup.begun]

    def _heard(self, checkup: Checkup, check: Check) -> None:
        workers = [
            (placement, Attending(each.status is Status.KO, placement in self._resting))
            for placement, each in self._checkups.items()
            if each.begun
        ]
        for placement, accepting in attendance(workers):
            (self._resting.discard if accepting else self._resting.add)(placement)
            engine.engine().spawn(self._runner.attend(placement, accepting))
        self._changed()


async def _first(passing: Any, ending: Any) -> None:
    """Return when `passing` has. Raises WorkerFailed when the worker has ended before."""
    both = [asyncio.ensure_future(each) for each in (passing, ending)]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if both[1].done():
            exit_ = both[1].result()
            raise WorkerFailed(f"{exit_.message} before it was ready", exit=exit_)
        both[0].result()
    finally:
        for each in both:
            each.cancel()
