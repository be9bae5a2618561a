"""What connections share is computed when it is asked for, and says when it runs out."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import pytest

from poolctl.worker.serving.server_state import Accounts, Watched


def test_the_date_changes_with_the_second_and_not_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = Accounts(lambda: None)
    accounts.default_headers = [(b"server", b"pool")]
    seen = []
    for now in (1_700_000_000.1, 1_700_000_000.9, 1_700_000_001.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        seen.append(accounts.default_headers)
    assert seen[0] is seen[1]
    dates = [parsedate_to_datetime(headers[0][1].decode()).timestamp() for headers in seen]
    assert dates == [1_700_000_000, 1_700_000_000, 1_700_000_001]
    assert [headers[1] for headers in seen] == [(b"server", b"pool")] * 3


def test_the_date_can_be_left_out() -> None:
    accounts = Accounts(lambda: None)
    accounts.date_header = False
    accounts.default_headers = [(b"server", b"pool")]
    assert accounts.default_headers == [(b"server", b"pool")]


def test_reached_limit_is_reported_and_again_if_nothing_was_done() -> None:
    accounts = Accounts(lambda: None)
    told: list[int] = []
    accounts.on_limit = lambda: told.append(accounts.total_requests)
    accounts.max_requests = 3
    for _ in range(7):
        accounts.total_requests += 1
    assert told == [3, 6]


def test_a_watched_set_says_when_its_last_member_leaves() -> None:
    told: list[bool] = []
    watched = Watched(lambda: told.append(True), lambda: None)
    watched.update("ab")
    watched.discard("a")
    assert not told
    watched.discard("b")
    assert told == [True]
    watched.add("c")
    watched.remove("c")
    assert told == [True, True]
