"""A server whose workers count the requests that a test gives them, with the verbs of rollouts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from poolctl.core.decide import WorkerPhase
from poolctl.features.rollout._canary_rollout import CanaryRollout
from poolctl.features.rollout.rollouts import Rollouts
from poolctl.runners.helper_process import Helpers
from poolctl.runners.runner_protocol import Placement
from poolctl.supervisor.active_configuration import SupervisorContext
from poolctl.worker import tally
from tests.unit.core.ordered_core import turns, web
from tests.unit.runners.scripted_runner import SlowRunner
from tests.unit.supervisor.desk import Desk, part_site

ABORT_ON = ["errors > 1%"]


class CountingRunner(SlowRunner):
    """Its workers have served the `requests` that the test gives them, by their ids: how many, and how many failed."""

    def __init__(self, **script: str) -> None:
        super().__init__(**script)
        self.requests: dict[str, tuple[int, int]] = {}

    def counts(self, placement: Placement) -> list[int]:
        counts = [0] * tally.COUNTED
        counts[tally.STARTED], counts[tally.STATUS + 5] = self.requests.get(placement.id, (0, 0))
        return counts


class RolloutDesk(Desk):
    """A server "web" with three workers."""

    runner: CountingRunner

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **script: str) -> None:
        monkeypatch.setattr("tests.unit.supervisor.desk.SlowRunner", CountingRunner)
        super().__init__(web(workers=3), web("worker", app=None, command=["sleep", "9"]), **script)
        keeper: Any = None
        context = SupervisorContext(self.files, keeper, "", "", Helpers(keeper, ""))
        site = part_site(self.core, self.events, context)
        for name, verb in Rollouts(site).verbs.items():
            self.verbs.add(name, verb)
        self.entry = self.core.entries["web"]

    async def started(self) -> None:
        assert (await self.ask("start"))["exit_code"] == 0

    def rollout(self, **options: Any) -> asyncio.Task[dict[str, Any]]:
        return self.begin("rollout", "web", **{"share": 0.25, "seconds": 60, "abort_on": ABORT_ON} | options)

    async def look(self) -> None:
        """What a second does."""
        for each in self.core.observers:
            if isinstance(rollout := getattr(each, "__self__", None), CanaryRollout):
                await rollout.judge()
                break
        await turns()

    @property
    def serving(self) -> list[str]:
        return sorted(
            each.id for each in self.entry.observed.workers.values() if each.phase is WorkerPhase.READY
        )


class Split:
    """A gateway that can give a canary its exact share, or cannot for this reason."""

    def __init__(self, obstacle: str | None = "") -> None:
        self.obstacle = obstacle

    def split_obstacle(self, server: str) -> str | None:
        return self.obstacle if server == "web" else None


def apart(desk: RolloutDesk) -> set[str]:
    """The open addresses that no server has."""
    return desk.runner.opened - {each.config.key for each in desk.core.entries.values()}
