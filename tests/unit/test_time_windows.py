"""Windows in cron's notation: which minutes they hold, when that changes, and what is wrong with others."""

from __future__ import annotations

import contextlib
import re
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl import PoolConfig, PoolValidateError, ServerConfig
from poolctl.time_windows import (
    BadWindow,
    WindowState,
    next_time,
    parse_time_zone,
    parse_window,
    period_at,
    until_text,
)
from tests.examples import examples

BERLIN = ZoneInfo("Europe/Berlin")
# Clocks are set forward on 2026-03-29 and back on 2026-10-25.
MOMENTS = st.one_of(
    st.datetimes(datetime(2026, 1, 1), datetime(2028, 12, 31)),
    st.datetimes(datetime(2026, 3, 28, 20), datetime(2026, 3, 29, 5)),
    st.datetimes(datetime(2026, 10, 24, 20), datetime(2026, 10, 25, 5)),
)


def at(*when: int, fold: int = 0) -> float:
    return datetime(*when, fold=fold, tzinfo=BERLIN).timestamp()  # type: ignore[misc, arg-type]


def awake(*windows: str, now: float) -> WindowState:
    return period_at([("awake", windows)], now, BERLIN)


def part(least: int, most: int) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    """A part of a field, and the numbers that it stands for."""
    numbers = st.integers(least, most)
    ranges = st.tuples(numbers, numbers).map(sorted)
    steps = st.integers(1, 20)
    return st.one_of(
        st.just(("*", frozenset(range(least, most + 1)))),
        numbers.map(lambda n: (str(n), frozenset([n]))),
        ranges.map(lambda r: (f"{r[0]}-{r[1]}", frozenset(range(r[0], r[1] + 1)))),
        steps.map(lambda s: (f"*/{s}", frozenset(range(least, most + 1, s)))),
        st.tuples(ranges, steps).map(
            lambda it: (f"{it[0][0]}-{it[0][1]}/{it[1]}", frozenset(range(it[0][0], it[0][1] + 1, it[1])))
        ),
    )


def field(least: int, most: int) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    parts = st.lists(part(least, most), min_size=1, max_size=3)
    return parts.map(
        lambda found: (",".join(text for text, _ in found), frozenset().union(*(n for _, n in found)))
    )


fields = st.tuples(field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 7))


def matches(window: tuple[tuple[str, frozenset[int]], ...], moment: datetime) -> bool:
    """crontab(5), read literally."""
    (_, minutes), (_, hours), (day_text, days), (_, months), (weekday_text, weekdays) = window
    in_month = moment.day in days
    in_week = moment.isoweekday() in weekdays or moment.isoweekday() % 7 in weekdays
    restricted = day_text[0] != "*" and weekday_text[0] != "*"
    day = in_month or in_week if restricted else in_month and in_week
    return moment.minute in minutes and moment.hour in hours and moment.month in months and day


@pytest.mark.slow
@examples(80)
@given(st.lists(fields, max_size=2), st.lists(fields, max_size=2), MOMENTS)
def test_state_lasts_exactly_until_the_first_minute_in_another_one(
    asleep: list[tuple[tuple[str, frozenset[int]], ...]],
    wakes: list[tuple[tuple[str, frozenset[int]], ...]],
    local: datetime,
) -> None:
    def state(time: float) -> str:
        moment = datetime.fromtimestamp(time, BERLIN)
        if any(matches(each, moment) for each in asleep):
            return "asleep"
        return "awake" if any(matches(each, moment) for each in wakes) else ""

    now = local.replace(tzinfo=BERLIN).timestamp()
    texts = [
        (name, [" ".join(text for text, _ in each) for each in windows])
        for name, windows in (("asleep", asleep), ("awake", wakes))
    ]
    found = period_at(texts, now, BERLIN)
    assert found.state == state(now)
    minute = now - now % 60
    for later in range(1, 2000):
        if state(minute + 60 * later) != found.state:
            assert found.until == minute + 60 * later
            return
    assert found.until is None or found.until >= minute + 60 * 2000


@pytest.mark.parametrize(
    ("window", "now", "until"),
    [
        ("* 8-17 * * mon-fri", at(2026, 11, 23, 9, 30), at(2026, 11, 23, 18)),
        ("* 22-23,0-5 * * *", at(2026, 11, 23, 23, 59), at(2026, 11, 24, 6)),
        ("* * * * fri-sun", at(2026, 11, 27, 12), at(2026, 11, 30)),
        ("* * 24-26 dec *", at(2026, 12, 24), at(2026, 12, 27)),
        ("0 8 * * *", at(2026, 11, 23, 8), at(2026, 11, 23, 8, 1)),
        # The hour that occurs twice, and the days that are an hour longer and shorter.
        ("* 2 * * *", at(2026, 10, 25, 2, 30), at(2026, 10, 25, 3)),
        ("* 0-5 * * *", at(2026, 10, 25, 1), at(2026, 10, 25, 1) + 6 * 3600),
        ("* 0-5 * * *", at(2026, 3, 29, 1), at(2026, 3, 29, 1) + 4 * 3600),
        ("* * * * *", at(2026, 11, 23), None),
    ],
)
def test_window_ends_when_clocks_say_so(window: str, now: float, until: float | None) -> None:
    assert awake(window, now=now) == ("awake", until)


def test_next_window_may_be_eight_years_away() -> None:
    assert awake("* * 29 2 *", now=at(2096, 3, 1)) == ("", at(2104, 2, 29))
    assert awake("* * 31 2 *", now=at(2026, 3, 1)) == ("", None)


def test_hour_that_is_skipped_has_no_minutes() -> None:
    assert awake("* 2 * * *", now=at(2026, 3, 28, 3)) == ("", at(2026, 3, 30, 2))


def test_first_windows_win() -> None:
    windows = [("asleep", ["* 12 * * *"]), ("awake", ["* 8-17 * * *"])]
    now, found = at(2026, 11, 23, 9), []
    for _ in range(4):
        state, until = period_at(windows, now, BERLIN)
        assert until is not None
        found.append((state, datetime.fromtimestamp(until, BERLIN).hour))
        now = until
    assert found == [("awake", 12), ("asleep", 13), ("awake", 18), ("", 8)]


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ("* * * *", "has 4 fields instead of 5"),
        ("", "has 0 fields"),
        ("@daily", "has 1 field instead of 5"),
        ("60 * * * *", "'60' is no minute; allowed is 0 to 59"),
        ("* 24 * * *", "'24' is no hour"),
        ("* * 0 * *", "'0' is no day; allowed is 1 to 31"),
        ("* * * foo *", "'foo' is no month; allowed is 1 to 12 or jan to dec"),
        ("* * mon * *", "'mon' is no day"),
        ("* * * * 8", "'8' is no weekday"),
        ("* 22-6 * * *", "ends before it begins; allowed is 22-23,0-6"),
        ("* * * * fri-mon", "allowed is fri-sat,sun-mon"),
        ("*/0 * * * *", "a step of at least 1"),
        ("5/20 * * * *", "range: 5-59/20"),
        ("1,,2 * * * *", "'' is no minute; allowed is such as"),
        ("* 8-17h * * *", "'8-17h' is no hour"),
        ("٣ * * * *", "is no minute"),
    ],
)
def test_wrong_window_is_explained(window: str, message: str) -> None:
    with pytest.raises(BadWindow, match=re.escape(message)):
        parse_window(window)


@given(st.text("*,-/ 0123456789abdefimnoprstu@٣", max_size=30))
def test_any_text_is_a_window_or_a_problem(text: str) -> None:
    with contextlib.suppress(BadWindow):
        assert parse_window(text).minutes


def test_time_zone_is_looked_up_by_its_name() -> None:
    assert parse_time_zone("") is None
    assert parse_time_zone("Europe/Berlin") == BERLIN
    for wrong in ("Europe/Atlantis", "../../etc/passwd", "/etc/passwd", "Europe", "a\0b"):
        with pytest.raises(ValueError, match="is no time zone of this machine"):
            parse_time_zone(wrong)


@pytest.mark.parametrize(
    ("later", "text"),
    [
        (timedelta(hours=2), "until 18:00"),
        (timedelta(days=1), "until Tue 16:00"),
        (timedelta(days=8), "until 2026-12-01 16:00"),
    ],
)
def test_end_on_another_day_has_its_day_or_date(later: timedelta, text: str) -> None:
    now = at(2026, 11, 23, 16)
    assert until_text(now + later.total_seconds(), now, BERLIN) == text
    assert until_text(None, now) == ""


@examples(80)
@given(fields, MOMENTS)
def test_next_time_is_the_first_later_minute_of_the_window(
    window: tuple[tuple[str, frozenset[int]], ...], local: datetime
) -> None:
    now = local.replace(tzinfo=BERLIN).timestamp()
    hourly = window[1][1] >= frozenset(range(24))
    found = next_time(" ".join(text for text, _ in window), now, BERLIN)
    later = (now - now % 60 + 60 * minutes for minutes in range(1, 3 * 1440))
    for time in later:
        moment = datetime.fromtimestamp(time, BERLIN)
        if matches(window, moment) and (hourly or not moment.fold):
            assert found == time
            return
    assert found is None or found > now + 2 * 86400


@pytest.mark.parametrize(
    ("text", "now", "expected"),
    [
        ("0 3 * * *", at(2026, 11, 23, 3), at(2026, 11, 24, 3)),
        ("0 3 * * *", at(2026, 11, 23, 2, 59, 59), at(2026, 11, 23, 3)),
        ("30 2 * * *", at(2026, 3, 28, 12), at(2026, 3, 30, 2, 30)),  # does not exist on the 29th
        ("30 2 * * *", at(2026, 10, 25, 2, 30), at(2026, 10, 26, 2, 30)),  # is there twice on the 25th
        ("30 * * * *", at(2026, 10, 25, 2, 30), at(2026, 10, 25, 2, 30, fold=1)),
        ("0 0 29 2 *", at(2026, 3, 1), at(2028, 2, 29)),
        ("0 0 30 2 *", at(2026, 3, 1), None),
    ],
)
def test_time_that_a_clock_change_skips_or_repeats_counts_once_at_most(
    text: str, now: float, expected: float | None
) -> None:
    assert next_time(text, now, BERLIN) == expected


# `every` of a job: which times are accepted, and with which other keys it makes sense.


def job(**keys: object) -> ServerConfig:
    return ServerConfig(**{"name": "backup", "job": True, "command": ["true"], "every": "0 3 * * *"} | keys)


@pytest.mark.parametrize("every", ["0 3 * * *", "*/15 8-18 * * mon-fri", "0 0 29 2 *", "0 0 31 4 mon"])
def test_times_in_the_notation_of_cron_are_accepted(every: str) -> None:
    assert job(every=every).to_dict()["every"] == every


def test_job_without_times_does_not_name_them() -> None:
    assert "every" not in job(every=None).to_dict()


@pytest.mark.parametrize(
    ("keys", "message", "hint"),
    [
        ({"every": "3 * * *"}, "has 4 fields instead of 5", "minute, hour, day, month and weekday"),
        ({"every": "0 24 * * *"}, "'24' is no hour", "0 to 23"),
        ({"every": "@daily"}, "short forms such as '@daily' are not known", '"0 0 * * *"'),
        ({"every": "0 0 30 2 *"}, "'0 0 30 2 *' never comes", "a day that the month has"),
        ({"every": 5}, "", "a string"),
        ({"job": False}, "every is for a job", "add job = true"),
        ({"job": False, "command": None, "app": "a:b", "bind": ":1"}, "every is for a job", "and command = "),
        ({"hooks": {"before_start": ["true"]}}, "hooks belong to a start and a stop", "take hooks out"),
        ({"mandatory": True}, "mandatory ends the pool", "take mandatory out"),
    ],
)
def test_what_makes_no_sense_is_a_problem_with_its_fix(
    keys: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(PoolValidateError) as raised:
        job(**keys)
    found = [
        f"{each.message}; {each.hint}" for each in raised.value.exceptions if "job = true" not in each.message
    ]
    assert any(message in text and hint in text for text in found), found


@pytest.mark.parametrize("condition", ["started", "ready", "completed"])
def test_nothing_can_wait_for_it(condition: str) -> None:
    web = ServerConfig(
        name="web", bind=":1", app="a:b", depends_on=[{"name": "backup", "condition": condition}]
    )
    (problem,) = PoolConfig([job(), web]).problems
    assert "'backup' runs at certain times (every), so nothing can wait for it" in str(problem)
    assert problem.hint == "take it out, or every of 'backup'"


def test_what_it_cannot_have_is_not_taken_over_from_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(
        '[defaults]\nmandatory = true\nhooks = { before_start = ["true"] }\n'
        '[[server]]\nname = "queue"\ncommand = ["true"]\n'
        '[[server]]\nname = "backup"\njob = true\ncommand = ["true"]\nevery = "0 3 * * *"\n'
    )
    config = PoolConfig.load(file)
    assert config.problems == []
    queue, backup = config
    assert (queue.mandatory, queue.hooks is None) == (True, False)
    assert (backup.mandatory, backup.hooks) == (False, None)


def test_a_job_may_wait_for_others() -> None:
    db = ServerConfig(name="db", bind=":1", app="a:b")
    assert PoolConfig([job(depends_on=["db"]), db]).problems == []
