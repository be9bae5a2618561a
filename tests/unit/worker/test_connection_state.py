"""What connections share is computed when it is asked for, and says when it runs out."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import pytest

from poolctl.worker.serving.connection_state import PoolServerState


def test_date_changes_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    server_state = PoolServerState()
    server_state.default_headers = [(b"server", b"pool")]
    seen = []
    for now in (1_700_000_000.1, 1_700_000_000.9, 1_700_000_001.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        seen.append(server_state.default_headers)
    assert seen[0] is seen[1]
    dates = [parsedate_to_datetime(headers[0][1].decode()).timestamp() for headers in seen]
    assert dates == [1_700_000_000, 1_700_000_000, 1_700_000_001]
    assert [headers[1] for headers in seen] == [(b"server", b"pool")] * 3


def test_date_can_be_left_out() -> None:
    server_state = PoolServerState()
    server_state.date_header = False
    server_state.default_headers = [(b"server", b"pool")]
    assert server_state.default_headers == [(b"server", b"pool")]


def test_reached_limit_is_reported_and_again_if_nothing_was_done() -> None:
    server_state = PoolServerState()
    reported: list[int] = []
    server_state.on_limit = lambda: reported.append(server_state.total_requests)
    server_state.max_requests = 3
    for _ in range(7):
        server_state.total_requests += 1
    assert reported == [3, 6]


def test_state_is_notified_when_the_last_connection_or_task_ends() -> None:
    server_state = PoolServerState()
    for members in (server_state.connections, server_state.tasks):
        server_state.changed.clear()
        members.add("a")
        members.add("b")
        members.discard("a")
        assert not server_state.changed.is_set()
        members.discard("b")
        assert server_state.changed.is_set()
