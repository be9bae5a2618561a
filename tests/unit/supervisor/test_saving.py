"""The state for a successor is saved for a small part of the loop's time, and what is saved is whole."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from poolctl.clock import ManualClock
from poolctl.config import ServerConfig
from poolctl.supervisor.takeover import state_store
from poolctl.supervisor.takeover.state_store import LATEST_SECONDS, SOON_SECONDS, SaveTimer, StateStore
from poolctl.supervisor.totals import Totals
from poolctl.worker import tally

from .desk import Desk
from .test_state_store import Store, StoreLink

ONE = [*[0] * (tally.COUNTED - 1), 1]  # the counts of a worker that has answered one request, slowly


class Saved:
    """A save that takes `cost` seconds of its own clock."""

    def __init__(self) -> None:
        self.cost = 0.0
        self.calls = 0
        self._clock = ManualClock()
        self.timer = SaveTimer(self._save, self._clock)

    def _save(self) -> None:
        self.calls += 1
        self._clock.advance(self.cost)


def test_a_save_takes_no_more_than_a_tenth_of_the_time() -> None:
    saved = Saved()
    for cost in (0.001, 0.02, 0.2):
        saved.cost = cost
        saved.timer.save_now()
        assert saved.cost <= 0.1 * (saved.cost + saved.timer.pause_seconds) * 1.001
    assert saved.calls == 3


def test_a_save_during_which_the_machine_slept_does_not_put_off_the_next_for_long() -> None:
    saved = Saved()
    saved.cost = 3600.0
    saved.timer.save_now()
    assert saved.timer.pause_seconds == LATEST_SECONDS


def test_a_cheap_save_follows_a_change_soon_again() -> None:
    saved = Saved()
    saved.cost = 0.5
    saved.timer.save_now()
    saved.cost = 0.0
    for _ in range(10):
        saved.timer.save_now()
    assert saved.timer.pause_seconds == SOON_SECONDS


def test_many_changes_are_saved_once_and_an_answer_does_not_wait_for_it() -> None:
    async def scenario() -> None:
        saved = Saved()
        for _ in range(3):
            saved.timer.note_change()
        assert saved.calls == 0
        saved.timer.save_now()
        assert saved.calls == 1
        saved.timer.note_change()
        while saved.calls == 1:
            await asyncio.sleep(SOON_SECONDS)
        assert saved.calls == 2

    asyncio.run(scenario())


class Kept(StateStore):
    def __init__(self, directory: Path, kept: dict[str, Any]) -> None:
        super().__init__(StoreLink(Store()), str(directory))
        self.kept = kept

    def save_totals(self, totals: bytes) -> None:
        self.kept.clear()
        self.kept.update(json.loads(totals))

    async def totals(self) -> Any:
        return self.kept


async def _resumed(desk: Desk, directory: Path, kept: dict[str, Any]) -> Totals:
    totals = Totals(desk.core, desk.events, Kept(directory, kept))
    await totals.resume()
    return totals


@pytest.mark.parametrize("seed", range(10))
def test_each_successor_continues_the_totals_of_every_server(tmp_path: Path, seed: int) -> None:
    async def scenario() -> None:
        chance = random.Random(seed)
        names = [f"s{number}" for number in range(4)]
        desk = Desk(
            *(ServerConfig(name=name, bind=f":{9000 + n}", app="a:b") for n, name in enumerate(names))
        )
        kept: dict[str, Any] = {}
        expected = dict.fromkeys(names, 0)
        for life in range(5):
            totals = await _resumed(desk, tmp_path, kept)
            for step in range(6):
                name = chance.choice(names)
                expected[name] += 1
                totals._add_up(f"{name}.{life}.{step}", name, ONE)
                totals.moved(desk.core.entries[name], "sleeping", chance.choice(("running", "failed")))
                totals.save()
                assert {each: totals.of_the_ended(desk.core.entries[each])[-1] for each in names} == expected
                document = {each: known.to_dict() for each, known in totals._availability.items()}
                assert kept["availability"] == document

    asyncio.run(scenario())


def test_figures_of_a_removed_server_are_saved_no_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        desk = Desk(*(ServerConfig(name=name, bind=f":{n}", app="a:b") for n, name in enumerate("ab", 9000)))
        kept: dict[str, Any] = {}
        totals = await _resumed(desk, tmp_path, kept)
        for name in "ab":
            totals._add_up(f"{name}.1", name, ONE)
        totals.save()
        assert kept["counts"].keys() == {"a", "b"}
        desk.core.forget(desk.core.entries["b"])
        # Its last worker is reported after that.
        totals._add_up("b.2", "b", ONE)
        totals.save()
        assert kept["counts"].keys() == {"a"}

    asyncio.run(scenario())


def test_a_change_of_one_server_encodes_the_figures_of_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        desk = Desk(*(ServerConfig(name=f"s{n}", bind=f":{9000 + n}", app="a:b") for n in range(50)))
        totals = await _resumed(desk, tmp_path, {})
        for entry in desk.core.entries.values():
            totals.moved(entry, "stopped", "starting")
        totals.save()
        encoded: list[object] = []
        usual = state_store._json
        monkeypatch.setattr(state_store, "_json", lambda value: encoded.append(value) or usual(value))
        totals.moved(desk.core.entries["s7"], "starting", "running")
        totals.save()
        assert encoded == ["s7", totals._availability["s7"].to_dict()]

    asyncio.run(scenario())
