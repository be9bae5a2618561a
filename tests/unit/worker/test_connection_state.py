"""What connections share is computed when it is asked for, and says when it runs out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import pytest

from poolctl.worker.serving.connection_state import LimitedServerState, PoolServerState
from tests.virtual_loop import VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.close()


def test_date_changes_once_a_second(loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.125 + loop.time())
    server_state = PoolServerState()
    server_state.default_headers = [(b"server", b"pool")]
    seen = []

    async def ask() -> None:
        for pause in (0, 0.75, 0.25):
            await asyncio.sleep(pause)
            seen.append(server_state.default_headers)

    loop.run_until_complete(ask())
    assert seen[0] is seen[1]
    dates = [parsedate_to_datetime(headers[0][1].decode()).timestamp() for headers in seen]
    assert dates == [1_700_000_000, 1_700_000_000, 1_700_000_001]
    assert [headers[1] for headers in seen] == [(b"server", b"pool")] * 3


def test_date_can_be_left_out(loop: VirtualLoop) -> None:
    server_state = PoolServerState()
    server_state.date_header = False
    server_state.default_headers = [(b"server", b"pool")]

    async def headers() -> list[tuple[bytes, bytes]]:
        return server_state.default_headers

    assert loop.run_until_complete(headers()) == [(b"server", b"pool")]


def test_reached_limit_is_reported_and_again_if_nothing_was_done() -> None:
    server_state = LimitedServerState(3)
    reported: list[int] = []
    server_state.on_limit = lambda: reported.append(server_state.total_requests)
    for _ in range(7):
        server_state.total_requests += 1
    assert reported == [3, 6]


def test_state_is_notified_when_the_last_connection_or_task_ends() -> None:
    server_state = PoolServerState()
    server_state.watch_tasks()
    for members in (server_state.connections, server_state.tasks):
        server_state.changed.clear()
        members.add("a")
        members.add("b")
        members.discard("a")
        assert not server_state.changed.is_set()
        members.discard("b")
        assert server_state.changed.is_set()
