"""The probes of one worker: required to become ready, and repeated from then on."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Protocol

from poolctl.config import Health, Probe, ServerConfig
from poolctl.runners.runner_protocol import Exit, Placement, Runner, WorkerFailed
from poolctl.states import Status
from poolctl.units import format_duration

from .hysteresis import Hysteresis
from .prober import Prober, WorkerConnector, make_prober
from .schedule import Schedule

# A worker that is not ready yet is probed more often.
_FIRST_PAUSE_SECONDS = 0.02
_FACTOR = 1.5
_UNKNOWN_SECONDS = 0.5
_QUEUE_PAUSE_SECONDS = 0.2


class WorkerProbe:
    """One probe of a worker, repeated at intervals.

    `owner` is notified of every result; `message` is the problem in the last result, or "".
    """

    __slots__ = (
        "_owner", "_prober", "_schedule", "_started_at", "due", "hysteresis", "kind", "latency_seconds",
        "message", "probe",
    )  # fmt: skip

    def __init__(
        self,
        kind: str,
        probe: Probe,
        prober: Prober,
        schedule: Schedule,
        owner: WorkerProbes,
    ) -> None:
        self.kind = kind
        self.probe = probe
        self.hysteresis = Hysteresis(probe)
        self.message = ""
        self.latency_seconds: float | None = None
        self.due: float | None = None
        self._prober = prober
        self._schedule = schedule
        self._owner = owner
        self._started_at: float | None = None

    def __repr__(self) -> str:
        return f"<WorkerProbe {self.kind} {self.status}{f' ({self.message})' if self.message else ''}>"

    @property
    def status(self) -> Status:
        """The status after the results so far."""
        return self.hysteresis.status

    async def wait_until_ok(self) -> None:
        """Probe at once, then less and less often; return after the required number of successes in a row."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            started_at = self._schedule.now()
            self._record(await self._run_once(), started_at)
            if self.status is Status.OK:
                return
            if self.message:
                # Failures before the worker was ready do not count.
                self.hysteresis.reset()
            await asyncio.sleep(min(pause, self.probe.interval))
            pause *= _FACTOR

    async def _run_once(self) -> str:
        """The problem, or ""; time spent in the accept queue does not count."""
        result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._prober.start(lambda problem: None if result.done() else result.set_result(problem))
        left = self.probe.timeout
        was_queued = False
        try:
            while left > 0:
                pause = min(left, _QUEUE_PAUSE_SECONDS)
                if (await asyncio.wait({result}, timeout=pause))[0]:
                    return result.result()
                queued = self._prober.queued()
                if queued:
                    self.message = "its connection is waiting to be accepted"
                elif not was_queued:  # otherwise it may have just been accepted
                    left -= pause
                was_queued = queued
        except asyncio.CancelledError:
            self._prober.cancel()
            raise
        self._prober.cancel()
        return self._timed_out

    def start(self, status: Status) -> None:
        """Probe at regular intervals from now on, starting with this status; soon if it is not ok."""
        longest = self.probe.interval
        if status is not Status.OK:
            longest = min(longest, _UNKNOWN_SECONDS)
        self.hysteresis = Hysteresis(self.probe, status)
        # Spread the probes of workers that started together.
        self._schedule.put(self, self._schedule.now() + random.uniform(0, longest))

    def stop(self) -> None:
        """Stop sending probes."""
        self._schedule.remove(self)
        self._prober.close()

    def run(self, now: float) -> None:
        """Send the probe, which is due, or abandon the one in progress."""
        if self._started_at is not None:
            self._prober.cancel()
            self._finished(self._timed_out)
            return
        self._started_at = now
        self._schedule.put(self, now + self.probe.timeout)
        self._prober.start(self._finished)

    def _finished(self, problem: str) -> None:
        started_at, self._started_at = self._started_at, None
        if started_at is None:
            return
        self._record(problem, started_at)
        probe = self.probe
        interval = self.hysteresis.interval_seconds * (1 + probe.jitter * random.uniform(-1, 1))
        self._schedule.put(self, max(started_at + interval, self._schedule.now()))
        self._owner.on_result(self)

    def _record(self, problem: str, started_at: float) -> None:
        self.message = problem
        self.latency_seconds = self._schedule.now() - started_at
        self.hysteresis.record(not problem)

    @property
    def _timed_out(self) -> str:
        return f"no answer within {format_duration(self.probe.timeout)}"


KINDS = ("readiness", "liveness")
_WORST_FIRST = (Status.KO, Status.WARN, Status.UNKNOWN)


class ProbeListener(Protocol):
    """Receives the results of a worker's probes."""

    def probed(self, probes: WorkerProbes, probe: WorkerProbe) -> None:
        """Handle a new result of `probe`, which is one of `probes`."""
        ...


class WorkerProbes:
    """The probes of one worker. `listener` is notified of every result after `start` was called."""

    def __init__(
        self,
        server: ServerConfig,
        placement: Placement,
        runner: Runner,
        schedule: Schedule,
        listener: ProbeListener,
    ) -> None:
        self.health: Health = server.health
        self.placement = placement
        self._server = server
        self._runner = runner
        self._schedule = schedule
        self._listener = listener
        self.probes = [
            self._make(kind, probe)
            for kind in KINDS
            if (probe := getattr(server.health, kind)) is not None
        ]  # fmt: skip
        self._admitting: WorkerProbe | None = None
        self.started = False

    @property
    def status(self) -> Status:
        """The worst status of all probes; ok when all of them are."""
        found = {probe.status for probe in self.probes}
        return next((status for status in _WORST_FIRST if status in found), Status.OK)

    @property
    def message(self) -> str:
        """The problems that the probes have found, or ""."""
        admitting = [self._admitting] if self._admitting is not None else []
        found = [f"{probe.kind}: {probe.message}" for probe in [*admitting, *self.probes] if probe.message]
        return "; ".join(dict.fromkeys(found))

    @property
    def latency_seconds(self) -> float | None:
        """The latency of the first probe's last result."""
        return self.probes[0].latency_seconds if self.probes else None

    def get(self, kind: str) -> WorkerProbe | None:
        """The probe of that kind, or None."""
        return next((probe for probe in self.probes if probe.kind == kind), None)

    async def wait_until_ready(self, ending: asyncio.Future[Exit], hint: str = "") -> None:
        """Return when the worker has passed its startup and readiness probes; the caller cancels it on a timeout.

        Raises WorkerFailed, with `hint`, if the worker exits before that.
        """
        passing = asyncio.ensure_future(self._pass())
        either: set[asyncio.Future[Any]] = {passing, ending}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            passing.cancel()
        if ending.done():
            exit_ = ending.result()
            raise WorkerFailed(f"{exit_.message} before it was ready", hint=hint, exit=exit_)
        await passing

    async def _pass(self) -> None:
        if self.health.startup is not None:
            startup = self._admitting = self._make("startup", self.health.startup)
            try:
                await startup.wait_until_ok()
            finally:
                startup.stop()
        readiness = self.get("readiness")
        if readiness is not None:
            self._admitting = readiness
            await readiness.wait_until_ok()
        self._admitting = None

    def start(self, status: Status) -> None:
        """Probe from now on; `status` is the worker's known status."""
        self.started = True
        for probe in self.probes:
            probe.start(probe.status if probe.status is not Status.UNKNOWN else status)

    def stop(self) -> None:
        """Stop sending probes."""
        for probe in self.probes:
            probe.stop()

    def on_result(self, probe: WorkerProbe) -> None:
        """Handle a new result of one of these probes."""
        self._listener.probed(self, probe)

    def _make(self, kind: str, probe: Probe) -> WorkerProbe:
        connector = WorkerConnector(self._runner, self.placement)
        prober = make_prober(probe, self._server, connector, self._env())
        return WorkerProbe(kind, probe, prober, self._schedule, self)

    def _env(self) -> dict[str, str]:
        server, placement = self._server, self.placement
        values = {"POOLCTL_NAME": server.name, "POOLCTL_BIND": server.key}
        if placement.pid is not None:
            values["POOLCTL_PID"] = str(placement.pid)
        if server.address.kind == "tcp":
            values |= {"HOST": server.address.host, "PORT": str(server.address.port)}
        return values
