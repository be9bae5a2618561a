"""Counts and heartbeats on a page of memory, and an idle event loop, which is not asked."""

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


def written_numbers() -> st.SearchStrategy[list[list[tuple[int, int]]]]:
    """Numbers that an application writes into its page, some each time."""
    number = st.one_of(
        st.integers(0, 100), st.integers(0, (1 << 64) - 1), st.sampled_from([1 << 62, 1 << 63])
    )
    writes = st.lists(st.tuples(st.integers(1, tally.SIZE_BYTES // 8 - 1), number), min_size=1, max_size=20)
    return st.lists(writes, min_size=2, max_size=5)


def readings(steps: list[list[tuple[int, int]]]) -> Iterator[tally.Counts]:
    """The counts of a server whose worker has written this, and has ended after each step."""
    total = [0] * tally.COUNTED
    fd = tally.create_tally_page()
    page, read = tally.map_page(fd), Tally(fd)
    try:
        for changes in steps:
            for slot, value in changes:
                page[slot] = value
            counts = read.counts()
            assert counts is not None
            array("q", counts)
            seen = list(total)
            tally.add(seen, counts)
            yield seen
            tally.add(total, tally.final_counts(counts))
            array("q", total)
            assert read.last_beat_ns() <= tally.MAX
    finally:
        read.close()


@pytest.mark.slow
def test_every_reading_of_a_page_with_random_numbers_fits_an_array() -> None:
    @examples(200)
    @given(written_numbers())
    def check(steps: list[list[tuple[int, int]]]) -> None:
        for counts in readings(steps):
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
