"""All that one worker is asked: until it is ready, and from then on."""

from __future__ import annotations

from collections.abc import Callable

from poolctl.config import Health, Probe, ServerConfig
from poolctl.runners.protocol import Placement
from poolctl.states import Status

from .probe import Check
from .prober import Connect, asker_of
from .schedule import Schedule

KINDS = ("readiness", "liveness")
_WORST = (Status.KO, Status.WARN, Status.UNKNOWN)


class Checkup:
    """The probes of one worker. `told` is called after every answer that comes once `begin` was called."""

    def __init__(
        self,
        server: ServerConfig,
        placement: Placement,
        connect: Connect,
        schedule: Schedule,
        told: Callable[[Checkup, Check], None],
    ) -> None:
        self.health: Health = server.health
        self._server = server
        self._placement = placement
        self._connect = connect
        self._schedule = schedule
        self._told = told
        self.checks = [
            self._check(kind, probe)
            for kind in KINDS
            if (probe := getattr(server.health, kind)) is not None
        ]  # fmt: skip
        self._passing: Check | None = None
        self.begun = False

    @property
    def status(self) -> Status:
        """The worst that one of the probes says; ok when all of them do."""
        found = {check.status for check in self.checks}
        return next((status for status in _WORST if status in found), Status.OK)

    @property
    def message(self) -> str:
        """What is wrong, as far as something is."""
        passing = [self._passing] if self._passing is not None else []
        found = [f"{check.kind}: {check.message}" for check in [*passing, *self.checks] if check.message]
        return "; ".join(dict.fromkeys(found))

    @property
    def latency_seconds(self) -> float | None:
        """How long the first of the probes took to be answered the last time."""
        return self.checks[0].latency_seconds if self.checks else None

    def check(self, kind: str) -> Check | None:
        """The probe of that kind, if there is one."""
        return next((check for check in self.checks if check.kind == kind), None)

    async def pass_(self) -> None:
        """Return when the worker has started, and is ready. To be cancelled when it takes too long."""
        if self.health.startup is not None:
            startup = self._passing = self._check("startup", self.health.startup)
            try:
                await startup.passes()
            finally:
                startup.end()
        readiness = self.check("readiness")
        if readiness is not None:
            self._passing = readiness
            await readiness.passes()
        self._passing = None

    def begin(self, status: Status) -> None:
        """Ask from now on; `status` is what is known of the worker already."""
        self.begun = True
        for check in self.checks:
            check.begin(check.status if check.status is not Status.UNKNOWN else status)

    def end(self) -> None:
        """Ask nothing any more."""
        for check in self.checks:
            check.end()

    def _check(self, kind: str, probe: Probe) -> Check:
        asker = asker_of(probe, self._server, self._connect, self._schedule.ears, self._values())
        return Check(kind, probe, asker, self._schedule, lambda check: self._told(self, check))

    def _values(self) -> dict[str, str]:
        server, placement = self._server, self._placement
        values = {"POOLCTL_NAME": server.name, "POOLCTL_BIND": server.key}
        if placement.pid is not None:
            values["POOLCTL_PID"] = str(placement.pid)
        if server.address.kind == "tcp":
            values |= {"HOST": server.address.host, "PORT": str(server.address.port)}
        return values
