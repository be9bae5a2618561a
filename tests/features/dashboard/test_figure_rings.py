"""Figures of an hour and a day, over made-up times and counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.core.server_entry import record_of
from poolctl.features.dashboard._figure_rings import (
    DAY,
    FIGURES,
    HOUR,
    POOL,
    FigureHistory,
    FigureRing,
    FigureRings,
)
from poolctl.monitor.metrics import ServerSnapshot, WorkerUsage
from poolctl.runners.process_link import LinkLost
from poolctl.runners.process_usage import Usage
from poolctl.selection.selector import SelectorError
from poolctl.supervisor.statistics import WATCHED_SECONDS, ServerHistory
from poolctl.worker import tally
from tests.coroutines import staged_by
from tests.unit.core.ordered_core import run, turns
from tests.unit.supervisor.test_reading_verbs import Recorded
from tests.virtual_loop import run_hurried


def seen(
    name: str = "web",
    *,
    requests: int = 0,
    errors: int = 0,
    restarts: int = 0,
    slow: int = 0,
    memory: int | None = 10,
) -> ServerSnapshot:
    """A server whose workers have counted this; `slow` responses took about a second."""
    total = [0] * tally.COUNTED
    total[tally.STARTED], total[tally.STATUS + 5] = requests, errors
    total[tally.BUCKETS + next(at for at, bound in enumerate(tally.BOUNDS_NS) if bound >= 1e9)] = slow
    entry: Any = SimpleNamespace(
        name=name, observed=SimpleNamespace(restarts=restarts), config=SimpleNamespace(command=None)
    )
    worker: Any = None
    return ServerSnapshot(entry, total, [WorkerUsage(worker, None, Usage(memory))], counts=True)


def last(ring: FigureRing, name: str = "web") -> list[float | None]:
    return [values[-1] for values in ring.series(name).values()]


def test_a_minute_has_its_rates_its_latency_and_its_restarts() -> None:
    ring = FigureRing(HOUR)
    assert not ring.add(0, [seen(requests=100, errors=7, restarts=2)])
    assert ring.series("web") == {figure: [] for figure in FIGURES}
    assert not ring.add(30, [seen(requests=400)])
    assert ring.add(60, [seen(requests=700, errors=13, restarts=3, slow=5, memory=4096)])
    rate, errors, latency, memory, restarts = last(ring)
    assert (rate, errors, memory, restarts) == (10, 0.1, 4096, 1)
    assert 0.5 < (latency or 0) <= 1.5


def test_pool_has_the_sums_and_the_slowest_latency() -> None:
    ring = FigureRing(HOUR)
    ring.add(0, [seen("a"), seen("b", memory=None)])
    ring.add(
        60, [seen("a", requests=60, slow=1), seen("b", requests=120, errors=60, restarts=1, memory=None)]
    )
    assert last(ring, POOL) == [3, 1, last(ring, "a")[2], 10, 1]
    assert last(ring, "b")[3] is None


def test_server_that_comes_and_one_that_goes_leave_no_stale_figures() -> None:
    rings = FigureRings()
    rings.add(0, [seen("old")])
    rings.add(60, [seen("old", requests=60), seen("new", requests=5)])
    rings.add(120, [seen("new", requests=65)])
    ring = rings.rings["hour"]
    assert last(ring, "new")[0] == 1
    assert ring.series("old")[FIGURES[0]] == []
    assert ring.series(POOL)[FIGURES[0]][-2:] == [1, 1]


@pytest.mark.parametrize("span", [HOUR, DAY])
def test_ring_keeps_as_many_slots_as_the_span_has_and_no_more(span: Any) -> None:
    ring = FigureRing(span)
    for slot in range(3 * span.slots):
        ring.add(slot * span.slot_seconds, [seen(requests=slot * span.slot_seconds * slot)])
    values = ring.series("web")[FIGURES[0]]
    assert len(values) == span.slots - 1
    newest = 3 * span.slots - 2
    assert values == [2 * slot + 1 for slot in range(newest - span.slots + 2, newest + 1)]
    assert ring.values["web"].itemsize * len(ring.values["web"]) == 4 * span.slots * len(FIGURES)


def test_successor_continues_with_a_gap_for_the_time_without_a_supervisor() -> None:
    rings = FigureRings()
    for minute in range(70):
        rings.add(minute * 60, [seen(requests=60 * minute)])
    saved = rings.to_bytes()
    successor = FigureRings()
    successor.try_restore(saved)
    successor.add(73 * 60, [seen(requests=9000)])
    successor.add(74 * 60, [seen(requests=9060)])
    values = successor.rings["hour"].series("web")[FIGURES[0]]
    assert values[-6:] == [1, None, None, None, None, 1]
    assert len(saved) < 2 * 3120 + 500, "a server and the pool"
    assert (
        successor.rings["day"].series("web")[FIGURES[0]][-1]
        == rings.rings["day"].series("web")[FIGURES[0]][-1]
    )


@pytest.mark.parametrize("content", [b"", b"{}\n", b"[0, [], []]\n", b"[1, [1], [[1]]]\n"])
def test_history_of_another_layout_is_ignored(content: bytes) -> None:
    rings = FigureRings()
    rings.try_restore(content)
    assert rings.rings["hour"].values == {}


def test_errors_are_a_rate_of_each_interval() -> None:
    history = ServerHistory()
    for at in range(3):
        history.add_sample(2.0 * at, seen(requests=10 * at, errors=at))
    values = history.values(counted=True, with_errors=True)
    assert (values.requests_per_second, values.errors_per_second) == ((5, 5), (0.5, 0.5))
    assert history.values(counted=True, with_errors=False).errors_per_second is None


class WithHistory(Recorded):
    """A desk that answers the verb `history`, too."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.history = FigureHistory(self.core, self.statistics.send_samples_to, self.store)
        self.verbs.add("history", self.history.verb)


@pytest.fixture
def scenario(tmp_path: Path) -> Callable[..., None]:
    def begin(work: Callable[[WithHistory], Any]) -> None:
        async def whole() -> None:
            desk = WithHistory(tmp_path)
            await desk.begin()
            await work(desk)
            # A sample that is taken while the loop ends would begin a measurement that never runs.
            desk.history.enable_or_clear(False)
            desk.clock.advance(WATCHED_SECONDS + 1)
            await asyncio.sleep(0.01)
            desk.link.end()

        run_hurried(100, whole())

    return begin


@staged_by("scenario")
async def test_history_is_that_of_one_server_or_of_the_pool(desk: WithHistory, /) -> None:
    assert (await desk.ask("history"))["series"] == {}, "none is kept without a dashboard"
    desk.history.enable_or_clear(True)
    await turns()
    found = await desk.ask("history", "s1", span="day")
    assert (found["slot_seconds"], found["slots"]) == (900, 96)
    assert set(found["series"]) == {
        "requests_per_second", "errors_per_second", "latency_p99_seconds", "memory_bytes", "restarts"
    }  # fmt: skip
    for targets, span in ((("s1", "s2"), "hour"), ((), "week")):
        with pytest.raises(SelectorError):
            await desk.ask("history", *targets, span=span)
    assert desk.core.take_changed() == []
    desk.clock.advance(61)
    async with asyncio.timeout(3000):
        while b'"s1"' not in (await desk.store.read("history") or b""):
            await asyncio.sleep(0.001)


@staged_by("scenario")
async def test_samples_for_a_dashboard_leave_nothing_to_a_successor(desk: WithHistory, /) -> None:
    before = {name: record_of(entry) for name, entry in desk.core.entries.items()}
    kept: list[Any] = []
    desk.link.send = lambda message, fds=(): kept.append(message)  # type: ignore[method-assign]
    desk.history.enable_or_clear(True)
    samples: list[float] = []
    while len(samples) < 10:
        await asyncio.sleep(0.001)
        document = (await desk.ask("stats", "s1"))["items"][0]
        samples = document["stats"]["history"]["memory_bytes"]
    assert desk.core.take_changed() == []
    assert {name: record_of(entry) for name, entry in desk.core.entries.items()} == before
    assert kept == []


@pytest.mark.parametrize(("slots", "unknown"), [(1, 0), (2, 1), (3, 2), (60, 59), (1000, 59)])
def test_skipped_slots_are_unknown_for_every_server(slots: int, unknown: int) -> None:
    ring = FigureRing(HOUR)
    ring.add(0, [seen(requests=0)])
    assert ring.add(60 * slots, [seen(requests=60 * slots)])
    for name in ("web", POOL):
        rates = ring.series(name)[FIGURES[0]]
        assert rates[len(rates) - unknown :] == [None] * unknown
        if unknown < 59:
            assert rates[-unknown - 1] == 1
    assert ring.slot == slots


def test_sample_within_a_slot_or_of_an_earlier_time_ends_none() -> None:
    ring = FigureRing(HOUR)
    assert not ring.add(60, [seen()])
    assert not ring.add(119.9, [seen()])
    assert not ring.add(10, [seen()])
    assert ring.slot == 1
    assert ring.add(120, [seen()])


def test_figures_begin_with_the_first_sample_of_a_slot() -> None:
    ring = FigureRing(HOUR)
    ring.add(0, [seen(requests=100)])
    ring.add(60, [seen(requests=200, restarts=1)])
    ring.add(90, [seen(requests=500, restarts=3), seen("late", requests=7)])
    ring.add(120, [seen(requests=260, restarts=2), seen("late", requests=37)])
    assert last(ring) == [1, 0, None, 10, 1]
    assert last(ring, "late") == [1, 0, None, 10, 0]
    assert last(ring, POOL) == [2, 0, None, 20, 1]


def test_program_has_memory_and_restarts_but_no_rates() -> None:
    ring = FigureRing(HOUR)

    def program(**counts: int) -> ServerSnapshot:
        found = seen(**counts)
        return ServerSnapshot(found.entry, found.total, found.workers, counts=False)

    ring.add(0, [program()])
    ring.add(60, [program(requests=60, slow=3, restarts=1)])
    assert last(ring) == last(ring, POOL) == [None, None, None, 10, 1]


def test_figures_are_rounded_to_six_digits() -> None:
    ring = FigureRing(HOUR)
    ring.add(0, [seen()])
    ring.add(60, [seen(requests=1)])
    assert last(ring)[0] == 0.016667


def test_saved_figures_are_restored_whole() -> None:
    rings = FigureRings()
    for minute in range(20):
        rings.add(minute * 60, [seen("a", requests=minute), seen("b", requests=2 * minute, memory=minute)])
    successor = FigureRings()
    successor.try_restore(rings.to_bytes())
    assert successor.to_bytes() == rings.to_bytes()
    for name, ring in rings.rings.items():
        assert successor.rings[name].slot == ring.slot
        for server in ("a", "b", POOL):
            assert successor.rings[name].series(server) == ring.series(server)


def test_sample_is_worth_saving_when_a_slot_has_ended() -> None:
    rings = FigureRings()
    assert [rings.add(at, [seen()]) for at in (0, 59, 60, 61, 119, 120)] == [
        False, False, True, False, False, True,
    ]  # fmt: skip


class Store:
    """Records what is written; a read waits for the event `held`, if there is one."""

    def __init__(self, content: bytes | None = None) -> None:
        self.content = content
        self.written: list[tuple[str, bytes]] = []
        self.held: asyncio.Event | None = None

    async def read(self, name: str) -> bytes | None:
        assert name == "history"
        if self.held is not None:
            await self.held.wait()
        if self.content is None:
            raise LinkLost("the keeper is being replaced")
        return self.content

    def store_for_successor(self, name: str, content: bytes) -> None:
        self.written.append((name, content))


def test_history_is_kept_from_when_it_is_wanted_until_it_is_not() -> None:
    async def work(content: bytes | None) -> None:
        given: list[Any] = []
        store: Any = Store(content)
        absent: Any = None
        history = FigureHistory(absent, given.append, store)
        history.enable_or_clear(False)
        assert (given, store.written) == ([], [])
        history.enable_or_clear(True)
        history.enable_or_clear(True)
        await turns()
        (take,) = given
        take(0.0, [seen()])
        assert store.written == []
        take(60.0, [seen(requests=60)])
        ((name, saved),) = store.written
        assert name == "history"
        rings = FigureRings()
        rings.try_restore(saved)
        assert last(rings.rings["hour"])[0] == 1
        history.enable_or_clear(True)  # as each reload does
        await turns()
        take(120.0, [seen(requests=180)])
        _, saved = store.written.pop()
        rings.try_restore(saved)
        assert rings.rings["hour"].series("web")[FIGURES[0]][-2:] == [1, 2]
        history.enable_or_clear(False)
        assert (given, store.written[1:]) == ([take, None], [("history", b"")])
        take(180.0, [seen(requests=60)])
        assert len(store.written) == 2
        # Of what was wanted for a moment only, nothing is sampled.
        store.held = asyncio.Event()
        history.enable_or_clear(True)
        history.enable_or_clear(False)
        store.held.set()
        await turns()
        assert given == [take, None, None]

    for content in (b"", None):
        run(work(content))
