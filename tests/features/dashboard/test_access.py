"""Cookies and tokens of the dashboard."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from pathlib import Path

import pytest

from poolctl.features.dashboard._access import (
    SESSION_SECONDS,
    EndedSessions,
    Sessions,
)
from tests.manual_clock import ManualClock
from tests.virtual_loop import VirtualLoop


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def sessions(clock: ManualClock, tmp_path: Path) -> Sessions:
    return Sessions("a-token", "0123456789ab", clock, str(tmp_path / "ended"))


def test_the_cookies_of_pools_on_one_host_have_names_of_their_own(
    sessions: Sessions, clock: ManualClock
) -> None:
    assert sessions.cookie_name == "poolctl_0123456789ab"
    assert Sessions("a-token", "ba9876543210", clock, "").cookie_name == "poolctl_ba9876543210"


def test_a_cookie_is_valid_until_it_expires(sessions: Sessions, clock: ManualClock) -> None:
    session, cookie = sessions.open()
    assert sessions.find(cookie) == session
    clock.advance(SESSION_SECONDS - 1)
    assert sessions.find(cookie) == session
    clock.advance(1)
    assert sessions.find(cookie) is None


def test_a_cookie_outlives_the_process_that_gave_it_but_not_the_token(
    sessions: Sessions, clock: ManualClock
) -> None:
    session, cookie = sessions.open()
    assert Sessions("a-token", "0123456789ab", clock, "").find(cookie) == session
    assert Sessions("another", "0123456789ab", clock, "").find(cookie) is None


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_changed_cookie_is_refused(sessions: Sessions, part: int) -> None:
    parts = sessions.open()[1].split(".")
    parts[part] = parts[part][:-1] + ("1" if parts[part][-1] != "1" else "2")
    assert sessions.find(".".join(parts)) is None


@pytest.mark.parametrize("cookie", ["", ".", "..", "a.b.c", "a.99999999999999999999.c", "a.٣.c", "é.1.é"])
def test_invalid_cookie_is_ignored(sessions: Sessions, cookie: str) -> None:
    assert sessions.find(cookie) is None


def test_the_end_of_a_session_is_noticed_whether_it_expires_or_is_ended(tmp_path: Path) -> None:
    class LoopClock(ManualClock):
        ahead_seconds = 0.0

        def time(self) -> float:
            return loop.time() + self.ahead_seconds

    async def play() -> None:
        clock = LoopClock()
        sessions = Sessions("a-token", "0123456789ab", clock, str(tmp_path / "ended"))
        (one, _), (other, _) = sessions.open(), sessions.open()
        first, second = (asyncio.ensure_future(sessions.wait_until_over(each)) for each in (one, other))
        await asyncio.sleep(60)
        assert not first.done()
        sessions.end(one)
        await first
        assert loop.time() == 60
        await second
        assert loop.time() == pytest.approx(SESSION_SECONDS)
        third = asyncio.ensure_future(sessions.wait_until_over(sessions.open()[0]))
        await asyncio.sleep(60)
        clock.ahead_seconds = SESSION_SECONDS  # the machine was suspended
        await asyncio.sleep(31)
        assert third.done()

    loop = VirtualLoop()
    with closing(loop):
        loop.run_until_complete(play())


def test_each_session_has_a_csrf_token_of_its_own(sessions: Sessions) -> None:
    (one, _), (other, _) = sessions.open(), sessions.open()
    assert one.has_csrf(one.csrf)
    assert not one.has_csrf(other.csrf)
    assert not one.has_csrf("")


def test_a_session_that_was_ended_stays_ended_in_the_next_process(tmp_path: Path, clock: ManualClock) -> None:
    path = str(tmp_path / "dashboard.ended")
    here, beside = (Sessions("a-token", "key", clock, path) for _ in range(2))
    (one, first), (_, second) = here.open(), here.open()
    assert beside.find(first) is not None
    here.end(one)
    assert beside.find(first) is None, "the old process while the new one begins"
    successor = Sessions("a-token", "key", clock, path)
    assert successor.find(first) is None
    assert successor.find(second) is not None
    assert Path(path).stat().st_mode & 0o777 == 0o600
    clock.advance(SESSION_SECONDS)
    other, _ = here.open()
    here.end(other)
    assert list(json.loads(Path(path).read_text())) == [other.id], "what is over by itself need not be known"


def test_sessions_that_two_processes_have_ended_are_all_kept(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "dashboard.ended"
    here, beside = (EndedSessions(str(path), clock) for _ in range(2))
    now = int(clock.time())
    here.add("one", now + 10)
    beside.add("two", now + 20)
    assert json.loads(path.read_text()) == {"one": now + 10, "two": now + 20}
    assert ["one" in here, "two" in here, "one" in beside, "three" in here] == [True, True, True, False]
    clock.advance(10)
    here.add("three", now + 30)
    assert json.loads(path.read_text()) == {"two": now + 20, "three": now + 30}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": "b"}', "\0"])
def test_a_damaged_file_of_ended_sessions_is_an_empty_one(
    tmp_path: Path, clock: ManualClock, content: str
) -> None:
    (tmp_path / "ended").write_text(content)
    sessions = Sessions("a-token", "key", clock, str(tmp_path / "ended"))
    session, cookie = sessions.open()
    assert sessions.find(cookie) == session
    sessions.end(session)
    assert sessions.find(cookie) is None


def test_a_session_is_ended_here_also_when_the_file_cannot_be_written(clock: ManualClock) -> None:
    sessions = Sessions("a-token", "key", clock, "/no/such/directory/ended")
    session, cookie = sessions.open()
    sessions.end(session)
    assert sessions.find(cookie) is None
