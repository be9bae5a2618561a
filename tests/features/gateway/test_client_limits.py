"""The limits of clients: a bounded table, and one entry for each client."""

from __future__ import annotations

import pytest

from poolctl.features.gateway.process.backends.limiter import ClientLimits
from poolctl.routing.route import Limit

LIMIT = Limit(concurrency=1)


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
    third.enter(0.0)
    third.leave()  # one that was forgotten meanwhile
    assert third.in_flight == 0
