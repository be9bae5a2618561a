"""Limits: requests in flight, and requests a second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.features.gateway.process.backends.limiter import ClientLimits, RequestLimiter
from poolctl.routing.route import TrafficLimits
from tests.examples import examples


def admitted(limiter: RequestLimiter, now: float, tries: int = 1) -> int:
    count = 0
    for _ in range(tries):
        if not limiter.seconds_until_admission(now):
            limiter.count_admission(now)
            count += 1
    return count


def test_no_more_requests_are_in_flight_than_the_limit_says() -> None:
    limiter = RequestLimiter(TrafficLimits(concurrency=2))
    assert admitted(limiter, 0.0, 5) == 2
    assert limiter.is_full
    limiter.leave()
    assert admitted(limiter, 0.0, 5) == 1


def test_without_limits_all_are_admitted() -> None:
    assert admitted(RequestLimiter(TrafficLimits()), 0.0, 1000) == 1000


def test_burst_is_admitted_at_once_and_then_one_each_interval() -> None:
    limiter = RequestLimiter(TrafficLimits(requests_per_second=10, burst=3))
    assert admitted(limiter, 100.0, 10) == 3
    assert round(limiter.seconds_until_admission(100.0), 6) == 0.1
    assert [admitted(limiter, 100.0 + at / 10, 5) for at in range(1, 5)] == [1, 1, 1, 1]
    assert admitted(limiter, 200.0, 10) == 3, "an idle time gives no more than the burst"


def test_limit_of_one_request_admits_one() -> None:
    limiter = RequestLimiter(TrafficLimits(concurrency=1))
    assert (limiter.seconds_until_admission(0.0), limiter.is_full) == (0.0, False)
    limiter.count_admission(0.0)
    assert (limiter.seconds_until_admission(0.0), limiter.is_full) == (1.0, True)


def test_burst_stays_while_the_rate_is_lowered_and_one_seconds_worth_does_not() -> None:
    given, worth = (
        RequestLimiter(TrafficLimits(requests_per_second=10, burst=3)),
        RequestLimiter(TrafficLimits(requests_per_second=10)),
    )
    given.share = worth.share = 0.5
    assert (admitted(given, 0.0, 20), admitted(worth, 0.0, 20)) == (3, 5)
    assert (round(given.seconds_until_admission(0.0), 6), round(worth.seconds_until_admission(0.0), 6)) == (
        0.2,
        0.2,
    )


def test_burst_is_one_seconds_worth_unless_given() -> None:
    assert admitted(RequestLimiter(TrafficLimits(requests_per_second=10)), 0.0, 50) == 10
    assert admitted(RequestLimiter(TrafficLimits(requests_per_second=0.1)), 0.0, 50) == 1


def test_rate_is_lowered_at_once_by_its_share() -> None:
    limiter = RequestLimiter(TrafficLimits(requests_per_second=10, burst=1))
    limiter.share = 0.5
    assert sum(admitted(limiter, at / 10, 3) for at in range(100)) == 50
    limiter.share = 1.0
    assert sum(admitted(limiter, 10 + at / 10, 3) for at in range(100)) == 100


@given(
    st.integers(1, 50),
    st.integers(1, 20),
    st.lists(st.floats(0, 2, allow_nan=False), min_size=1, max_size=60),
)
@examples(100)
def test_no_interval_admits_more_than_burst_and_rate(rate: int, burst: int, gaps: list[float]) -> None:
    limiter, now = RequestLimiter(TrafficLimits(requests_per_second=rate, burst=burst)), 0.0
    times: list[float] = []
    for gap in gaps:
        now += gap
        times += [now] * admitted(limiter, now, burst + 5)
    for first in range(len(times)):
        for last in range(first, len(times)):
            assert last - first + 1 <= burst + (times[last] - times[first]) * rate + 1e-6


@given(st.integers(1, 50), st.integers(1, 20), st.lists(st.floats(0, 2, allow_nan=False), max_size=60))
@examples(100)
def test_waiting_as_long_as_it_says_is_enough(rate: int, burst: int, gaps: list[float]) -> None:
    limiter, now = RequestLimiter(TrafficLimits(requests_per_second=rate, burst=burst)), 0.0
    for gap in gaps:
        now += gap
        admitted(limiter, now, 7)
        assert limiter.seconds_until_admission(now + limiter.seconds_until_admission(now)) == 0


LIMIT = TrafficLimits(concurrency=1)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1:2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_client_has_one_limiter(first: str, second: str, same: bool) -> None:
    limits = ClientLimits(LIMIT)
    assert (limits.limiter(first) is limits.limiter(second)) is same


def test_client_without_an_address_has_no_limit() -> None:
    assert ClientLimits(LIMIT).limiter("") is None


def test_client_whose_address_is_no_ip_address_has_a_limiter_of_its_own() -> None:
    limits = ClientLimits(LIMIT)
    assert limits.limiter("a") is not None
    assert limits.limiter("a") is limits.limiter("a")
    assert limits.limiter("a") is not limits.limiter("b")


def test_table_of_clients_is_bounded_and_forgets_who_asked_longest_ago() -> None:
    limits = ClientLimits(LIMIT, most=3)
    first, second, third = (limits.limiter(f"192.0.2.{number}") for number in range(3))
    assert limits.limiter("192.0.2.0") is first
    for number in range(10, 100):
        limits.limiter(f"192.0.2.{number}")
        assert limits.limiter("192.0.2.0") is first
        assert len(limits) == 3
    assert limits.limiter("192.0.2.1") is not second
    assert third is not None
    third.count_admission(0.0)
    third.leave()  # one that was forgotten meanwhile
    assert third.in_flight == 0
