"""Commands that only read change nothing, and serialise nothing for the next supervisor."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolctl.core.server_entry import record_of
from poolctl.keeper.keeper import Store
from poolctl.runners.runner_protocol import Exit
from poolctl.supervisor.statistics import Statistics, Totals
from poolctl.supervisor.takeover import state_store
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.worker import tally
from tests.serving import blank_page
from tests.unit.core.ordered_core import run, turns, web
from tests.unit.supervisor.desk import Desk
from tests.unit.supervisor.test_state_store import StoreLink


class Recorded(Desk):
    """A desk that leaves to a successor what has changed, as the supervisor does after each answer."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(*(web(f"s{number}") for number in range(3)))
        self.link = StoreLink(Store())
        self.store = StateStore(self.link, str(directory))
        self.serialised: list[str] = []
        monkeypatch.setattr(state_store, "record_of", self._counted)
        totals = Totals(self.core, self.events, self.store)
        self.statistics = Statistics(self.core, totals)
        self.verbs.add("stats", self.statistics.stats)
        self.verbs.add("monitor", self.statistics.monitor)

    async def begin(self) -> None:
        """Start the servers."""
        await self.ask("start")
        await turns()
        await self.ask("list")  # what has come of the start is written with this answer
        self.serialised.clear()

    def _counted(self, entry: Any) -> dict[str, Any]:
        self.serialised.append(entry.name)
        return record_of(entry)

    async def ask(self, verb: str, *targets: str, **options: Any) -> dict[str, Any]:
        document = await super().ask(verb, *targets, **options)
        self.store.note_changed(*self.core.take_changed())
        self.store.save(self.core.entries)
        return document


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def begin(work: Callable[[Recorded], Any]) -> None:
        async def whole() -> None:
            desk = Recorded(tmp_path, monkeypatch)
            await desk.begin()
            await work(desk)
            desk.link.end()

        run(whole())

    return begin


@pytest.mark.parametrize("verb", ["list", "show", "status", "wait", "stats", "monitor"])
def test_a_read_changes_and_serialises_nothing(scenario: Callable[..., None], verb: str) -> None:
    async def work(desk: Recorded) -> None:
        for _ in range(3):
            assert (await desk.ask(verb))["exit_code"] == 0
            await asyncio.sleep(0)
        assert desk.serialised == []
        assert desk.core.take_changed() == []

    scenario(work)


def test_a_change_serialises_the_servers_that_it_is_about_and_no_others(
    scenario: Callable[..., None],
) -> None:
    async def work(desk: Recorded) -> None:
        await desk.ask("drain", "s1")
        assert set(desk.serialised) == {"s1"}

    scenario(work)


def test_change_without_a_command_is_written_with_the_next_answer(scenario: Callable[..., None]) -> None:
    async def work(desk: Recorded) -> None:
        desk.runner.end("s2.1.0", Exit(status=1, message="exited with status 1"))
        await turns()
        assert (await desk.ask("list", "s2"))["items"][0]["state"] == "failed"
        assert set(desk.serialised) == {"s2"}
        assert desk.store.saved_state().servers["s2"]["desired"] == "failed"

    scenario(work)


def test_passed_requests_of_ended_workers_outlive_the_supervisor(tmp_path: Path) -> None:
    kept: dict[str, Any] = {}

    class Kept(StateStore):
        def save_totals(self, totals: bytes) -> None:
            kept.update(json.loads(totals))

        async def totals(self) -> Any:
            return kept

    async def work() -> None:
        desk = Desk(web())
        page = blank_page()
        page[tally.route_slot(page, "shop")] += 3
        page[tally.STARTED] += 3
        before = Totals(desk.core, desk.events, Kept(StoreLink(Store()), str(tmp_path)))
        for worker in ("web.1", "web.2"):
            before._add_up(worker, "web", tally.completed(page.tolist()))
        before.save()
        after = Totals(desk.core, desk.events, Kept(StoreLink(Store()), str(tmp_path)))
        await after.resume()
        entry = desk.core.entries["web"]
        assert after.passed_to_the_ended(entry) == {tally.route_mark("shop"): 6}

    run(work())
