"""The history of figures, as the verb shows it and as it is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolctl.core.server_entry import record_of
from poolctl.features.dashboard._figure_rings import FigureHistory
from poolctl.selection.selector import SelectorError
from poolctl.supervisor.observers import statistics as statistics_module
from tests.unit.core.ordered_core import run, turns
from tests.unit.supervisor.test_reads import Recorded


class WithHistory(Recorded):
    """A desk that answers the verb `history`, too."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(directory, monkeypatch)
        self.history = FigureHistory(self.core, self.statistics.give_samples, self.store)
        self.verbs.add("history", self.history.verb)


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def begin(work: Callable[[WithHistory], Any]) -> None:
        async def whole() -> None:
            desk = WithHistory(tmp_path, monkeypatch)
            await desk.begin()
            await work(desk)
            desk.link.end()

        run(whole())

    return begin


def test_history_is_that_of_one_server_or_of_the_pool(scenario: Callable[..., None]) -> None:
    async def work(desk: WithHistory) -> None:
        assert (await desk.ask("history"))["series"] == {}, "none is kept without a dashboard"
        desk.history.keep(True)
        await turns()
        found = await desk.ask("history", "s1", span="day")
        assert (found["slot_seconds"], found["slots"]) == (900, 96)
        assert set(found["series"]) == {
            "requests_per_second", "errors_per_second", "latency_p99_seconds", "memory_bytes", "restarts"
        }  # fmt: skip
        for targets, span in ((("s1", "s2"), "hour"), ((), "week")):
            with pytest.raises(SelectorError):
                await desk.ask("history", *targets, span=span)
        assert desk.serialised == []
        assert desk.core.take_changed() == []
        desk.clock.advance(61)
        desk.statistics._sample()
        saved = await desk.store.read("history") or b""
        assert b'"s1"' in saved

    scenario(work)


def test_the_samples_for_a_dashboard_change_and_serialise_nothing(
    scenario: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics_module, "INTERVAL_SECONDS", 0.001)

    async def work(desk: WithHistory) -> None:
        before = {name: record_of(entry) for name, entry in desk.core.entries.items()}
        kept: list[Any] = []
        monkeypatch.setattr(desk.link, "send", lambda message, fds=(): kept.append(message))
        desk.history.keep(True)
        samples: list[float] = []
        while len(samples) < 10:
            await asyncio.sleep(0.001)
            document = (await desk.ask("stats", "s1"))["items"][0]
            samples = document["stats"]["history"]["memory_bytes"]
        assert desk.serialised == []
        assert desk.core.take_changed() == []
        assert {name: record_of(entry) for name, entry in desk.core.entries.items()} == before
        assert kept == [], "nothing is left to a successor"

    scenario(work)
