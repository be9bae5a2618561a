"""The probes of one worker: repeated quickly until it is ready, and at regular intervals from then on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from poolctl.config import Health, Probe, ServerConfig
from poolctl.runners.runner_protocol import Exit, Placement, Runner, WorkerFailed
from poolctl.states import Status
from poolctl.units import format_duration

from .prober import Prober, Unsent, make_prober


class Hysteresis:
    """A status that moves one step at a time, ok – warn – ko and back, after a number of equal results in a row.

    Failures: `fall_count_warn` from ok to warn, then `fall_count_ko` to ko. Successes: `rise_count_ko` from ko to warn,
    then `rise_count_warn` to ok. From unknown, failures count as from ok, and successes as from warn.
    """

    __slots__ = ("_count", "_probe", "_succeeded", "status")

    def __init__(self, probe: Probe, status: Status = Status.UNKNOWN) -> None:
        self._probe = probe
        self.status = status
        self._succeeded: bool | None = None  # the last result
        self._count = 0  # equal results in a row since the last step

    def __repr__(self) -> str:
        return f"<Hysteresis {self.status} {'-' if self.falling else '+'}{self._count}>"

    def record(self, succeeded: bool) -> Status:
        """Record one more result; returns the new status."""
        if succeeded is not self._succeeded:
            self._succeeded, self._count = succeeded, 0
        if self.status is (Status.OK if succeeded else Status.KO):
            return self.status
        self._count += 1
        needed, status = self._transition_threshold(succeeded)
        if self._count >= needed:
            self.status, self._count = status, 0
        return self.status

    def reset(self) -> None:
        """Set the status to unknown, and forget the results so far."""
        self.status, self._succeeded, self._count = Status.UNKNOWN, None, 0

    @property
    def falling(self) -> bool:
        """Whether the last result was a failure, and the status is not ko yet."""
        return self._succeeded is False and self.status is not Status.KO

    @property
    def rising(self) -> bool:
        """Whether the last result was a success, and the status is not ok yet."""
        return self._succeeded is True and self.status is not Status.OK

    @property
    def interval_seconds(self) -> float:
        """The time between the starts of two probes, in seconds."""
        probe = self._probe
        special = probe.interval_fall if self.falling else probe.interval_rise if self.rising else None
        return special or probe.interval

    def _transition_threshold(self, succeeded: bool) -> tuple[int, Status]:
        """The number of successes (or failures) in a row that change the status, and the status after them."""
        probe = self._probe
        if succeeded:
            if self.status is Status.KO:
                return probe.rise_count_ko, Status.WARN
            return probe.rise_count_warn, Status.OK
        if self.status is Status.WARN:
            return probe.fall_count_ko, Status.KO
        return probe.fall_count_warn, Status.WARN


GRAIN_SECONDS = 0.1
# Until a worker is ready, it is probed at growing intervals.
_FIRST_PAUSE_SECONDS = 0.02
_PAUSE_FACTOR = 1.5
# The first regular probe of a worker with an unknown status is sent within this time.
_MAX_FIRST_DELAY_SECONDS = 0.5
# How often to check whether the worker has accepted the probe's connection.
_QUEUE_CHECK_SECONDS = 0.2


def call_at_rounded_time(when: float, run: Callable[[], None]) -> asyncio.TimerHandle:
    """Schedule `run` for about `when` (loop time): up to 50 ms early or late, so that probes share wake-ups."""
    loop = asyncio.get_running_loop()
    moment = round(when / GRAIN_SECONDS) * GRAIN_SECONDS
    return loop.call_at(moment if moment > loop.time() else when, run)


class WorkerProbe:
    """One probe of a worker, repeated at intervals.

    `on_result` is called with every result; `message` is the problem in the last result, or "".
    """

    __slots__ = (
        "_on_result", "_prober", "_started_at", "_timer", "hysteresis", "kind", "latency_seconds", "message", "probe",
    )  # fmt: skip

    def __init__(
        self, kind: str, probe: Probe, prober: Prober, on_result: Callable[[WorkerProbe], None]
    ) -> None:
        self.kind = kind
        self.probe = probe
        self.hysteresis = Hysteresis(probe)
        self.message = ""
        self.latency_seconds: float | None = None
        self._prober = prober
        self._timer: asyncio.TimerHandle | None = None
        self._on_result = on_result
        self._started_at: float | None = None

    def __repr__(self) -> str:
        return f"<WorkerProbe {self.kind} {self.status}{f' ({self.message})' if self.message else ''}>"

    @property
    def status(self) -> Status:
        """The worker's status by the results of this probe: ok, warn, ko, or unknown before the first result."""
        return self.hysteresis.status

    async def probe_until_ok(self) -> None:
        """Probe at once, then less and less often; return after the required number of successes in a row."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            started_at = asyncio.get_running_loop().time()
            self._record(await self._run_once(), started_at)
            if self.status is Status.OK:
                return
            if self.message:
                # Failures before the worker was ready do not count.
                self.hysteresis.reset()
            await asyncio.sleep(min(pause, self.probe.interval))
            pause *= _PAUSE_FACTOR

    async def _run_once(self) -> str:
        """Run the probe once; returns the problem, or "". The timeout does not include time in the accept queue."""
        result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._prober.start(lambda problem: None if result.done() else result.set_result(problem))
        remaining = self.probe.timeout
        was_queued = False
        try:
            while remaining > 0:
                pause = min(remaining, _QUEUE_CHECK_SECONDS)
                if (await asyncio.wait({result}, timeout=pause))[0]:
                    return result.result()
                queued = self._prober.queued()
                if queued:
                    self.message = "its connection is waiting to be accepted"
                elif not was_queued:  # if it was queued, it may have been accepted just now
                    remaining -= pause
                was_queued = queued
        except asyncio.CancelledError:
            self._prober.cancel()
            raise
        self._prober.cancel()
        return self._timed_out

    def start(self, status: Status) -> None:
        """Start regular probes with this status: the first within an interval, or soon if the status is not ok."""
        max_delay = self.probe.interval
        if status is not Status.OK:
            max_delay = min(max_delay, _MAX_FIRST_DELAY_SECONDS)
        self.hysteresis = Hysteresis(self.probe, status)
        # Spread the probes of workers that started together.
        self._timer = call_at_rounded_time(
            asyncio.get_running_loop().time() + random.uniform(0, max_delay), self._start_or_time_out
        )

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._prober.close()

    def _start_or_time_out(self) -> None:
        if self._started_at is not None:
            self._prober.cancel()
            self._finished(self._timed_out)
            return
        loop = asyncio.get_running_loop()
        self._started_at = loop.time()
        self._timer = loop.call_at(self._started_at + self.probe.timeout, self._start_or_time_out)
        self._prober.start(self._finished)

    def _finished(self, problem: str) -> None:
        started_at, self._started_at = self._started_at, None
        if started_at is None:
            return
        self._record(problem, started_at)
        probe = self.probe
        interval = self.hysteresis.interval_seconds * (1 + probe.jitter * random.uniform(-1, 1))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = call_at_rounded_time(
            max(started_at + interval, asyncio.get_running_loop().time()), self._start_or_time_out
        )
        self._on_result(self)

    def _record(self, problem: str, started_at: float) -> None:
        self.message = problem
        if isinstance(problem, Unsent):
            return
        self.latency_seconds = asyncio.get_running_loop().time() - started_at
        self.hysteresis.record(not problem)

    @property
    def _timed_out(self) -> str:
        return f"no answer within {format_duration(self.probe.timeout)}"


KINDS = ("readiness", "liveness")
_WORST_FIRST = (Status.KO, Status.WARN, Status.UNKNOWN)


class WorkerProbes:
    """All probes of one worker. After `start`, each result is passed to `on_result`, with this object and the probe."""

    def __init__(
        self,
        server: ServerConfig,
        placement: Placement,
        runner: Runner,
        on_result: Callable[[WorkerProbes, WorkerProbe], None],
    ) -> None:
        self.health: Health = server.health
        self.placement = placement
        self._server = server
        self._runner = runner
        self._on_result = partial(on_result, self)
        self.probes = [
            self._make(kind, probe)
            for kind in KINDS
            if (probe := getattr(server.health, kind)) is not None
        ]  # fmt: skip
        self._pending_probe: WorkerProbe | None = None
        self.started = False

    @property
    def status(self) -> Status:
        """The worst status of all probes; ok without probes."""
        statuses = {probe.status for probe in self.probes}
        return next((status for status in _WORST_FIRST if status in statuses), Status.OK)

    @property
    def message(self) -> str:
        """The problems that the probes have found, or ""."""
        pending = [self._pending_probe] if self._pending_probe is not None else []
        problems = [f"{probe.kind}: {probe.message}" for probe in [*pending, *self.probes] if probe.message]
        return "; ".join(dict.fromkeys(problems))

    @property
    def latency_seconds(self) -> float | None:
        """The duration of the last readiness probe in seconds, or else of the last liveness probe.

        None without either probe, and before the first result.
        """
        return self.probes[0].latency_seconds if self.probes else None

    def get(self, kind: str) -> WorkerProbe | None:
        return next((probe for probe in self.probes if probe.kind == kind), None)

    async def wait_until_ready(self, ending: asyncio.Future[Exit], hint: str = "") -> None:
        """Return when the worker has passed its startup and readiness probes; there is no time limit.

        `ending` completes when the worker exits; if that happens first, WorkerFailed is raised, with `hint`.
        """
        passing = asyncio.ensure_future(self._probe_until_passed())
        either: set[asyncio.Future[Any]] = {passing, ending}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            passing.cancel()
        if ending.done():
            exit_ = ending.result()
            raise WorkerFailed(f"{exit_.message} before it was ready", hint=hint, exit=exit_)
        await passing

    async def _probe_until_passed(self) -> None:
        if self.health.startup is not None:
            startup = self._pending_probe = self._make("startup", self.health.startup)
            try:
                await startup.probe_until_ok()
            finally:
                startup.stop()
        readiness = self.get("readiness")
        if readiness is not None:
            self._pending_probe = readiness
            await readiness.probe_until_ok()
        self._pending_probe = None

    def start(self, status: Status) -> None:
        """Start all probes. Each keeps its own status, or begins with the worker's `status` if it has no result yet."""
        self.started = True
        for probe in self.probes:
            probe.start(probe.status if probe.status is not Status.UNKNOWN else status)

    def stop(self) -> None:
        for probe in self.probes:
            probe.stop()

    def _make(self, kind: str, probe: Probe) -> WorkerProbe:
        # Exact until the worker is ready. From then on it may be busy with a request, and another may answer instead.
        prober = make_prober(
            probe, self._server, self._runner, self.placement, self._added_env(), lambda: not self.started
        )
        return WorkerProbe(kind, probe, prober, self._on_result)

    def _added_env(self) -> dict[str, str]:
        server, placement = self._server, self.placement
        values = {"POOLCTL_NAME": server.name, "POOLCTL_BIND": server.key}
        if placement.pid is not None:
            values["POOLCTL_PID"] = str(placement.pid)
        if server.address.kind == "tcp":
            values |= {"HOST": server.address.host, "PORT": str(server.address.port)}
        return values
