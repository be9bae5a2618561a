"""Counts and heartbeats on a page of memory: impossible numbers are refused, and an idle event loop is not asked."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.keeper import wire
from poolctl.runners.local.local_worker import (
    LocalWorker,
)
from poolctl.runners.local.tallies import Tallies, WorkerHeartbeats
from poolctl.runners.local.tally_page import Tally
from poolctl.runners.runner_protocol import Placement
from poolctl.worker import tally
from poolctl.worker.process_setup import BEAT
from tests.descriptors import no_descriptor_left
from tests.examples import examples
from tests.unit.runners.test_local_worker import control

PLACEMENT = Placement.of("web", 1, 0, where="pid 7", pid=7)


class Pool:
    """The tallies of one worker, at a time that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        fd = tally.create_tally_page()
        self.page = tally.map_page(fd)
        self.tally = Tally(fd, self.now, lambda: self.now)
        self.refused: list[tuple[str, str, str]] = []
        self.ended: list[tally.Counts] = []
        keeper: Any = SimpleNamespace(send=lambda message, fds=(): None)
        worker: Any = SimpleNamespace(tally=self.tally)
        events: Any = SimpleNamespace(
            record_impossible_counts_event=lambda *why: self.refused.append(why),
            add_up_counts=lambda server, name, counts: self.ended.append(counts),
        )
        self.tallies = Tallies(keeper, {PLACEMENT.id: worker}, lambda: events)

    def counts(self) -> tally.Counts:
        counts = self.tallies.counts(PLACEMENT)
        assert counts is not None
        return counts


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    made.tally.close()


@pytest.mark.parametrize("slot", range(1, tally.COUNTED))
def test_number_that_no_worker_can_have_counted_is_refused_and_reported_once(pool: Pool, slot: int) -> None:
    pool.page[tally.STARTED] = pool.page[tally.BUCKETS] = 5
    before = pool.counts()
    pool.now += 2
    pool.page[slot] = 1 << 63
    for _ in range(3):
        assert pool.counts()[: tally.COUNTED] == before[: tally.COUNTED]
    assert [(server, worker) for server, worker, _ in pool.refused] == [("web", PLACEMENT.id)]
    assert f"slot {slot} went from {before[slot]} to" in pool.refused[0][2]


def test_refusal_is_reported_when_a_heartbeat_was_the_first_to_read_the_page(pool: Pool) -> None:
    pool.page[tally.BEAT_ANSWERED_NS] = 7
    pool.page[tally.STARTED] = 1 << 63
    assert pool.tally.last_beat_ns() == 7
    pool.counts()
    assert len(pool.refused) == 1


def test_worker_as_fast_as_one_can_be_is_believed_and_a_faster_one_is_not(pool: Pool) -> None:
    for seconds in (0.0, 0.25, 2.0, 3600.0):
        pool.now += seconds
        pool.page[tally.STARTED] += int(seconds * tally.MAX_PER_SECOND)
        assert pool.counts()[tally.STARTED] == pool.page[tally.STARTED]
    # A step back: the response to a probe is counted and then subtracted.
    pool.page[tally.STARTED] -= 1
    assert pool.counts()[tally.STARTED] == pool.page[tally.STARTED]
    assert not pool.refused
    pool.now += 1
    pool.page[tally.STARTED] += 3 * tally.MAX_PER_SECOND
    assert pool.counts()[tally.STARTED] < pool.page[tally.STARTED]
    assert pool.refused


def test_counts_of_a_refused_worker_that_ends_are_those_before(pool: Pool) -> None:
    pool.page[tally.STARTED], pool.page[tally.BUCKETS] = 5, 3
    pool.page[tally.OPEN_CONNECTIONS] = 2
    pool.counts()
    pool.page[tally.STARTED] = 1 << 40
    pool.tallies.collect_final_counts("web", "web:1.0:7", pool.tally)
    (left,) = pool.ended
    assert (left[tally.STARTED], left[tally.DISCONNECTED], left[tally.OPEN_CONNECTIONS]) == (5, 2, 0)
    assert pool.refused[0][:2] == ("web", "web:1.0:7")


def test_page_of_an_earlier_supervisor_is_judged_by_the_time_since_the_machine_started() -> None:
    fd = tally.create_tally_page()
    page = tally.map_page(fd)
    page[tally.STARTED] = 50 * tally.MAX_PER_SECOND
    believed, refused = Tally(fd, now=lambda: 60.0), Tally(fd, now=lambda: 40.0)
    assert (believed.counts() or [])[tally.STARTED] == page[tally.STARTED]
    assert (refused.counts() or [])[tally.STARTED] == 0
    believed.close()


def writes_over_time() -> st.SearchStrategy[list[tuple[float, list[tuple[int, int]]]]]:
    """Numbers that an application writes into its page, after a pause in seconds each time."""
    number = st.one_of(
        st.integers(0, 100), st.integers(0, (1 << 64) - 1), st.sampled_from([1 << 62, 1 << 63])
    )
    writes = st.lists(st.tuples(st.integers(1, tally.SIZE_BYTES // 8 - 1), number), min_size=1, max_size=20)
    return st.lists(st.tuples(st.floats(0, 1e6), writes), min_size=2, max_size=5)


def readings(steps: list[tuple[float, list[tuple[int, int]]]]) -> Iterator[tuple[float, tally.Counts]]:
    """The time and the counts of a server whose worker has written this, and has ended after each step."""
    pool, total = Pool(), [0] * tally.COUNTED
    try:
        for seconds, changes in steps:
            pool.now += seconds
            for slot, value in changes:
                pool.page[slot] = value
            counts = pool.counts()
            array("q", counts)
            seen = list(total)
            tally.add(seen, counts)
            yield pool.now, seen
            tally.add(total, tally.final_counts(counts))
            array("q", total)
            assert pool.tally.last_beat_ns() <= tally.MAX
    finally:
        pool.tally.close()


@pytest.mark.slow
def test_every_reading_of_a_page_with_random_numbers_fits_an_array() -> None:
    @examples(200)
    @given(writes_over_time())
    def check(steps: list[tuple[float, list[tuple[int, int]]]]) -> None:
        for _, counts in readings(steps):
            array("q", counts)

    check()


def test_sum_of_any_number_of_pages_fits_too() -> None:
    total, most = [0] * tally.COUNTED, [tally.MAX] * tally.COUNTED
    for _ in range(3):
        tally.add(total, most)
    array("q", total)
    assert total[tally.STARTED] == tally.MAX


@pytest.mark.usefixtures("virtual_time", "descriptors_closed")
async def test_heartbeat_is_asked_for_on_the_page_and_by_a_message() -> None:
    async with control() as it:
        found = it.worker
        beats = WorkerHeartbeats({found.placement.id: found})
        assert not beats.request_beat(found.placement, 5)
        assert beats.last_beat_ns(found.placement) == 0
        assert not beats.idle_since_answer(found.placement)
        fd = tally.create_tally_page()
        page = tally.map_page(fd)
        found.tally = Tally(fd)
        assert beats.request_beat(found.placement, 7)
        assert page[tally.BEAT_ASKED_NS] == 7
        assert it.end.recv(100) == BEAT
        page[tally.BEAT_ANSWERED_NS] = 9
        page[tally.BEAT_CPU_NS] = 11
        assert not beats.idle_since_answer(found.placement)
        assert (beats.last_beat_ns(found.placement), found.tally.beat_cpu_ns()) == (9, 11)
        unknown = Placement.of("web", 9, 9)
        assert (beats.request_beat(unknown, 1), beats.last_beat_ns(unknown)) == (False, 0)
        assert not beats.idle_since_answer(unknown)
        found.tally.close()
        found.tally.close()
        assert found.tally.fileno() == -1


class SentToKeeper:
    """The messages that the keeper is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[wire.Message, list[int]]] = []

    def send(self, message: wire.Message, fds: Any = ()) -> None:
        self.sent.append((message, list(fds)))


def test_counts_of_exited_workers_are_added_up_and_kept_until_they_are_saved() -> None:
    keeper = SentToKeeper()
    workers: dict[str, LocalWorker] = {}
    added: list[tuple[str, str, tally.Counts]] = []
    events: Any = SimpleNamespace(add_up_counts=lambda *ended: added.append(ended))
    tallies = Tallies(cast(Any, keeper), workers, lambda: events)
    with no_descriptor_left():
        for name, requests in (("web.1.1", 3), ("web.1.0", 2), ("web.1.2", 0)):
            fd = tally.create_tally_page()
            page = tally.map_page(fd)
            page[tally.STARTED] = page[tally.BUCKETS] = requests
            ended = Tally(fd)
            tallies.collect_final_counts("web", name, ended)
            assert ended.fileno() == -1
            assert [each for each, fds in keeper.sent if fds == [fd]] == (
                [{"op": "put", "name": f"tally:{name}", "meta": {"server": "web"}}] if requests else []
            )
            keeper.sent.clear()
            del page
        assert [(name, server, counts[tally.STARTED]) for server, name, counts in added] == [
            ("web.1.1", "web", 3),
            ("web.1.0", "web", 2),
        ]
        assert tallies.unsaved_workers == ["web.1.0", "web.1.1"]
        fd = tally.create_tally_page()
        page = tally.map_page(fd)
        page[tally.STARTED] = page[tally.BUCKETS] = 4
        assert tallies.add_up_unsaved_counts("api.1.0", {"server": "api"}, [fd]) == []
        del page
        assert (added[-1][:2], added[-1][2][tally.STARTED]) == (("api", "api.1.0"), 4)
        assert tallies.unsaved_workers == ["api.1.0", "web.1.0", "web.1.1"]
        tallies.discard_saved_counts()
        dropped = sorted(message["name"] for message, _ in keeper.sent if message["op"] == "drop")
        assert dropped == ["tally:api.1.0", "tally:web.1.0", "tally:web.1.1"]
        assert tallies.unsaved_workers == []
        assert tallies.counts(PLACEMENT) is None
