"""The probes of one worker: those that it must pass to become ready, and those that run from then on."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from poolctl.config import Health, Probe, ServerConfig
from poolctl.runners.protocol import Exit, Placement, Runner, WorkerFailed
from poolctl.states import Status

from .probe import WorkerProbe
from .prober import WorkerConnector, make_prober
from .schedule import Schedule

KINDS = ("readiness", "liveness")
_WORST_FIRST = (Status.KO, Status.WARN, Status.UNKNOWN)


class ProbeListener(Protocol):
    """Is notified of the results of a worker's probes."""

    def probed(self, probes: WorkerProbes, probe: WorkerProbe) -> None:
        """The probe, one of these, has a new result."""
        ...


class WorkerProbes:
    """The probes of one worker. `listener` is notified of every result that comes once `start` was called."""

    def __init__(
        self,
        server: ServerConfig,
        placement: Placement,
        runner: Runner,
        schedule: Schedule,
        listener: ProbeListener,
    ) -> None:
        self.health: Health = server.health
        self._server = server
        self._placement = placement
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
        """The problems, "" for none."""
        admitting = [self._admitting] if self._admitting is not None else []
        found = [f"{probe.kind}: {probe.message}" for probe in [*admitting, *self.probes] if probe.message]
        return "; ".join(dict.fromkeys(found))

    @property
    def latency_seconds(self) -> float | None:
        """The latency of the first probe's last result."""
        return self.probes[0].latency_seconds if self.probes else None

    def get(self, kind: str) -> WorkerProbe | None:
        """The probe of that kind, if there is one."""
        return next((probe for probe in self.probes if probe.kind == kind), None)

    async def wait_until_ready(self, ending: asyncio.Future[Exit], hint: str = "") -> None:
        """Return when the worker has passed its startup and readiness probes; cancel it when that takes too long.

        Raises WorkerFailed when the worker has ended before; `hint` is part of it.
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
        """Probe from now on; `status` is what is known of the worker already."""
        self.started = True
        for probe in self.probes:
            probe.start(probe.status if probe.status is not Status.UNKNOWN else status)

    def stop(self) -> None:
        """Send no more probes."""
        for probe in self.probes:
            probe.stop()

    def on_result(self, probe: WorkerProbe) -> None:
        """See ProbeOwner."""
        self._listener.probed(self, probe)

    def _make(self, kind: str, probe: Probe) -> WorkerProbe:
        connector = WorkerConnector(self._runner, self._placement)
        prober = make_prober(probe, self._server, connector, self._schedule.multiplexer, self._env())
        return WorkerProbe(kind, probe, prober, self._schedule, self)

    def _env(self) -> dict[str, str]:
        server, placement = self._server, self._placement
        values = {"POOLCTL_NAME": server.name, "POOLCTL_BIND": server.key}
        if placement.pid is not None:
            values["POOLCTL_PID"] = str(placement.pid)
        if server.address.kind == "tcp":
            values |= {"HOST": server.address.host, "PORT": str(server.address.port)}
        return values
