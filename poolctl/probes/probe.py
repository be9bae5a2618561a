"""One probe of one worker: when it is asked, what came of it, and the status that follows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from poolctl.config import Probe
from poolctl.states import Status
from poolctl.units import format_duration

from .hysteresis import Hysteresis
from .prober import Asker
from .schedule import Schedule

# Who is not ready yet is asked again sooner than it is later on.
_FIRST_PAUSE_SECONDS = 0.02
_FACTOR = 1.5
_UNKNOWN_SECONDS = 0.5
_QUEUE_PAUSE_SECONDS = 0.2


class Check:
    """`told` is called after every answer; `message` says what was wrong with the last one, if anything was."""

    __slots__ = (
        "_asked_at", "_asker", "_schedule", "_told", "due", "hysteresis", "kind", "latency_seconds", "message", "probe",
    )  # fmt: skip

    def __init__(
        self, kind: str, probe: Probe, asker: Asker, schedule: Schedule, told: Callable[[Check], None]
    ) -> None:
        self.kind = kind
        self.probe = probe
        self.hysteresis = Hysteresis(probe)
        self.message = ""
        self.latency_seconds: float | None = None
        self.due: float | None = None
        self._asker = asker
        self._schedule = schedule
        self._told = told
        self._asked_at: float | None = None

    def __repr__(self) -> str:
        return f"<Check {self.kind} {self.status}{f' ({self.message})' if self.message else ''}>"

    @property
    def status(self) -> Status:
        """What the answers so far say."""
        return self.hysteresis.status

    async def passes(self) -> None:
        """Return when it has succeeded as often in a row as it takes; it is asked at once, and then ever less often."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            asked_at = self._schedule.now()
            self._note(await self._ask_once(), asked_at)
            if self.status is Status.OK:
                return
            if self.message:
                # What failed while it became ready is nobody's fall.
                self.hysteresis.forget()
            await asyncio.sleep(min(pause, self.probe.interval))
            pause *= _FACTOR

    async def _ask_once(self) -> str:
        """What is wrong; the time in which it waits behind clients until it is accepted does not count."""
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asker.ask(lambda problem: None if answer.done() else answer.set_result(problem))
        left = self.probe.timeout
        try:
            while left > 0:
                pause = min(left, _QUEUE_PAUSE_SECONDS)
                if (await asyncio.wait({answer}, timeout=pause))[0]:
                    return answer.result()
                if self._asker.queued():
                    self.message = "its connection is waiting to be accepted"
                else:
                    left -= pause
        except asyncio.CancelledError:
            self._asker.give_up()
            raise
        self._asker.give_up()
        return self._late

    def begin(self, status: Status) -> None:
        """Ask at regular times from now on, beginning with that status; soon, if it is not a good one."""
        longest = self.probe.interval
        if status is not Status.OK:
            longest = min(longest, _UNKNOWN_SECONDS)
        self.hysteresis = Hysteresis(self.probe, status)
        # What was started together is not asked together for ever.
        self._schedule.put(self, self._schedule.now() + random.uniform(0, longest))

    def end(self) -> None:
        """Ask nothing any more."""
        self._schedule.take_out(self)
        self._asker.close()

    def turn(self, now: float) -> None:
        """Its time has come: to ask, or to wait for the answer no longer."""
        if self._asked_at is not None:
            self._asker.give_up()
            self._heard(self._late)
            return
        self._asked_at = now
        self._schedule.put(self, now + self.probe.timeout)
        self._asker.ask(self._heard)

    def _heard(self, problem: str) -> None:
        asked_at, self._asked_at = self._asked_at, None
        if asked_at is None:
            return
        self._note(problem, asked_at)
        probe = self.probe
        interval = self.hysteresis.interval_seconds * (1 + probe.jitter * random.uniform(-1, 1))
        self._schedule.put(self, max(asked_at + interval, self._schedule.now()))
        self._told(self)

    def _note(self, problem: str, asked_at: float) -> None:
        self.message = problem
        self.latency_seconds = self._schedule.now() - asked_at
        self.hysteresis.note(not problem)

    @property
    def _late(self) -> str:
        return f"no answer within {format_duration(self.probe.timeout)}"
