"""Pages of counts that an application writes to as it likes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.runners.local.tallies import Tallies, Tally
from poolctl.runners.runner_protocol import Placement
from poolctl.worker import tally
from tests.examples import examples

PLACEMENT = Placement.of("web", 1, 0, where="pid 7", pid=7)


class Pool:
    """The tallies of one worker, at a time that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        fd = tally.new_page()
        self.page = tally.map_page(fd)
        self.tally = Tally(fd, self.now, lambda: self.now)
        self.refused: list[tuple[str, str, str]] = []
        self.ended: list[tally.Counts] = []
        keeper: Any = SimpleNamespace(send=lambda message, fds=(): None)
        worker: Any = SimpleNamespace(tally=self.tally)
        self.tallies = Tallies(keeper, {PLACEMENT.id: worker}, lambda *why: self.refused.append(why))
        self.tallies.add_up = lambda name, server, counts: self.ended.append(counts)

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


def test_worker_as_fast_as_one_can_be_is_believed_and_a_faster_one_is_not(pool: Pool) -> None:
    for seconds in (0.0, 0.25, 2.0, 3600.0):
        pool.now += seconds
        pool.page[tally.STARTED] += int(seconds * tally.MOST_PER_SECOND)
        assert pool.counts()[tally.STARTED] == pool.page[tally.STARTED]
    # A step back: the response to a probe is counted and then subtracted.
    pool.page[tally.STARTED] -= 1
    assert pool.counts()[tally.STARTED] == pool.page[tally.STARTED]
    assert not pool.refused
    pool.now += 1
    pool.page[tally.STARTED] += 3 * tally.MOST_PER_SECOND
    assert pool.counts()[tally.STARTED] < pool.page[tally.STARTED]
    assert pool.refused


def test_counts_of_a_refused_worker_that_ends_are_those_before(pool: Pool) -> None:
    pool.page[tally.STARTED], pool.page[tally.BUCKETS] = 5, 3
    pool.page[tally.OPEN_CONNECTIONS] = 2
    pool.counts()
    pool.page[tally.STARTED] = 1 << 40
    pool.tallies.ended("web", "web:1.0:7", pool.tally)
    (left,) = pool.ended
    assert (left[tally.STARTED], left[tally.DISCONNECTED], left[tally.OPEN_CONNECTIONS]) == (5, 2, 0)
    assert pool.refused[0][:2] == ("web", "web:1.0:7")


def test_page_of_an_earlier_supervisor_is_judged_by_the_time_since_the_machine_started() -> None:
    fd = tally.new_page()
    page = tally.map_page(fd)
    page[tally.STARTED] = 50 * tally.MOST_PER_SECOND
    believed, refused = Tally(fd, now=lambda: 60.0), Tally(fd, now=lambda: 40.0)
    assert (believed.counts() or [])[tally.STARTED] == page[tally.STARTED]
    assert (refused.counts() or [])[tally.STARTED] == 0
    believed.close()


def test_requests_of_routes_are_no_more_than_all_requests(pool: Pool) -> None:
    pool.page[tally.route_slot(pool.page, "users")] = 1 << 63
    pool.page[tally.STARTED], pool.page[tally.WEBSOCKETS] = 3, 4
    pool.page[tally.ROUTES + 50] = (1 << 64) - 1  # the mark of no route
    pool.page[tally.ROUTES + 51] = 1
    assert tally.passed(pool.counts()) == {tally.route_mark("users"): 7}
    assert tally.passed(tally.completed(pool.counts())) == {tally.route_mark("users"): 7}


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
            tally.add(total, tally.completed(counts))
            array("q", total)
            assert pool.tally.beaten_ns() <= tally.MOST
    finally:
        pool.tally.close()


def test_every_reading_of_a_page_with_random_numbers_fits_an_array() -> None:
    @examples(200)
    @given(writes_over_time())
    def check(steps: list[tuple[float, list[tuple[int, int]]]]) -> None:
        for _, counts in readings(steps):
            array("q", counts)

    check()


def test_sum_of_any_number_of_pages_fits_too() -> None:
    total, most = [0] * tally.COUNTED, [tally.MOST] * tally.COUNTED
    for _ in range(3):
        tally.add(total, most)
    array("q", total)
    assert total[tally.STARTED] == tally.MOST
