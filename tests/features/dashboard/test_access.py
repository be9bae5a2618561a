"""Cookies and tokens of the dashboard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from poolctl.features.dashboard._access import (
    LIFE_SECONDS,
    MOST,
    WINDOW_SECONDS,
    Attempts,
    EndedSessions,
    Sessions,
)
from tests.manual_clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def sessions(clock: ManualClock) -> Sessions:
    return Sessions("a-token", "0123456789ab", clock)


def test_only_the_token_is_accepted(sessions: Sessions) -> None:
    assert sessions.knows("a-token")
    for wrong in ("", "a-toke", "a-token ", "A-token", "ä", "a-token\0", "\ud800"):
        assert not sessions.knows(wrong)


def test_a_cookie_is_valid_until_it_expires(sessions: Sessions, clock: ManualClock) -> None:
    session, cookie = sessions.open()
    assert sessions.find(cookie) == session
    clock.advance(LIFE_SECONDS - 1)
    assert sessions.find(cookie) == session
    clock.advance(1)
    assert sessions.find(cookie) is None


def test_a_cookie_outlives_the_process_that_gave_it_but_not_the_token(clock: ManualClock) -> None:
    session, cookie = Sessions("a-token", "0123456789ab", clock).open()
    assert Sessions("a-token", "0123456789ab", clock).find(cookie) == session
    assert Sessions("another", "0123456789ab", clock).find(cookie) is None


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_changed_cookie_is_refused(sessions: Sessions, part: int) -> None:
    parts = sessions.open()[1].split(".")
    parts[part] = parts[part][:-1] + ("1" if parts[part][-1] != "1" else "2")
    assert sessions.find(".".join(parts)) is None


@pytest.mark.parametrize("cookie", ["", ".", "..", "a.b.c", "a.99999999999999999999.c", "a.٣.c", "é.1.é"])
def test_invalid_cookie_is_ignored(sessions: Sessions, cookie: str) -> None:
    assert sessions.find(cookie) is None


def test_an_ended_session_is_invalid_and_others_are_not(sessions: Sessions) -> None:
    (one, first), (other, second) = sessions.open(), sessions.open()
    sessions.end(one)
    assert sessions.find(first) is None
    assert sessions.find(second) == other


def test_each_session_has_a_csrf_token_of_its_own(sessions: Sessions) -> None:
    (one, _), (other, _) = sessions.open(), sessions.open()
    assert one.has(one.csrf)
    assert not one.has(other.csrf)
    assert not one.has("")


def test_after_too_many_wrong_tokens_every_login_is_refused_for_a_while(clock: ManualClock) -> None:
    attempts = Attempts(clock)
    for _ in range(MOST):
        assert attempts.wait_seconds() == 0
        attempts.failed()
    assert attempts.wait_seconds() == WINDOW_SECONDS
    clock.advance(WINDOW_SECONDS - 1)
    assert attempts.wait_seconds() == 1
    clock.advance(1)
    assert attempts.wait_seconds() == 0


def test_a_session_that_was_ended_stays_ended_in_the_next_process(tmp_path: Path, clock: ManualClock) -> None:
    path = str(tmp_path / "dashboard.ended")
    here, beside = (Sessions("a-token", "key", clock, EndedSessions(path, clock)) for _ in range(2))
    (one, first), (_, second) = here.open(), here.open()
    assert beside.find(first) is not None
    here.end(one)
    assert beside.find(first) is None, "the old process while the new one begins"
    successor = Sessions("a-token", "key", clock, EndedSessions(path, clock))
    assert successor.find(first) is None
    assert successor.find(second) is not None
    assert Path(path).stat().st_mode & 0o777 == 0o600
    clock.advance(LIFE_SECONDS)
    other, _ = here.open()
    here.end(other)
    assert list(json.loads(Path(path).read_text())) == [other.id], "what is over by itself need not be known"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": "b"}', "\0"])
def test_a_damaged_file_of_ended_sessions_is_an_empty_one(
    tmp_path: Path, clock: ManualClock, content: str
) -> None:
    (tmp_path / "ended").write_text(content)
    sessions = Sessions("a-token", "key", clock, EndedSessions(str(tmp_path / "ended"), clock))
    session, cookie = sessions.open()
    assert sessions.find(cookie) == session
    sessions.end(session)
    assert sessions.find(cookie) is None


def test_a_session_is_ended_here_also_when_the_file_cannot_be_written(clock: ManualClock) -> None:
    sessions = Sessions("a-token", "key", clock, EndedSessions("/no/such/directory/ended", clock))
    session, cookie = sessions.open()
    sessions.end(session)
    assert sessions.find(cookie) is None
