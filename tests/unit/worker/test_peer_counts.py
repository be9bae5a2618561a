"""The page on which workers see each other's open connections."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from poolctl.worker.peer_counts import PeerCounts, new_page


class Worker:
    """A process that has joined the page with so many connections, until it is ended."""

    def __init__(self, page: int, connections: int | None, websockets: int = 0) -> None:
        joined, tell = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                counts = PeerCounts(os.dup(page))
                counts.publish(connections, websockets)
                os.write(tell, b".")
                signal.pause()
            finally:
                os._exit(1)
        os.close(tell)
        assert os.read(joined, 1) == b"."
        os.close(joined)

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


@pytest.fixture
def page() -> Iterator[int]:
    fd = new_page()
    yield fd
    os.close(fd)


@pytest.fixture
def workers(page: int) -> Iterator[list[Worker]]:
    made = [Worker(page, connections) for connections in (3, None, 0)]
    yield made
    for each in made:
        each.kill()


def test_workers_see_how_many_connections_of_others_are_websockets(page: int) -> None:
    many = 100_000
    made = [Worker(page, *each) for each in ((many, many), (3, 2), (None, 5), (0, 0))]
    try:
        with contextlib.closing(PeerCounts(os.dup(page))) as counts:
            assert counts.others() == [many, 3, 0]
            assert counts.others_websockets() == [many, 2, 0]
    finally:
        for each in made:
            each.kill()


def test_workers_see_the_connections_of_those_that_accept(page: int, workers: list[Worker]) -> None:
    with contextlib.closing(PeerCounts(os.dup(page))) as counts:
        assert counts.others() == [3, 0]
        assert not counts.alone


def test_killed_worker_counts_no_more_and_its_slot_is_used_again(page: int, workers: list[Worker]) -> None:
    workers[0].kill()
    with contextlib.closing(PeerCounts(os.dup(page))) as counts:
        assert counts.others() == [0]
        counts.publish(7)
        workers.append(Worker(page, 5))
        assert counts.others() == [0, 5]


def test_first_worker_is_alone(page: int) -> None:
    with contextlib.closing(PeerCounts(os.dup(page))) as counts:
        counts.publish(1)
        assert counts.alone
        assert counts.others() == []


def test_worker_is_seen_although_one_that_joined_at_the_same_time_overwrote_it(page: int) -> None:
    first = Worker(page, 2)
    try:
        with contextlib.closing(PeerCounts(os.dup(page))) as counts:
            os.pwrite(page, (1).to_bytes(8, sys.byteorder), 8)
            assert counts.alone
            counts.publish(1)
            assert counts.others() == [2]
    finally:
        first.kill()


def test_announced_handover_is_over_after_a_moment(page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10**9
    monkeypatch.setattr("poolctl.worker.peer_counts.time.monotonic_ns", lambda: now)
    with contextlib.closing(PeerCounts(os.dup(page))) as counts:
        assert not counts.handover_announced
        counts.announce_handover()
        assert counts.handover_announced
        now += 10**9
        assert not counts.handover_announced


def test_page_cannot_be_shrunk_under_its_readers(page: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(page, 0)
