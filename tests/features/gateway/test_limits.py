"""The real program admits as many requests as the limits of a route say, and no more."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from pathlib import Path

import pytest

from poolctl.routing.route import Route, TrafficLimits
from tests.features.gateway.test_haproxy_configuration import IDLE, WEB, ask, haproxy, section_lines

DEADLINE = 30.0


def refused_ahead_of(limit: TrafficLimits) -> int:
    """How many thousandths of the interval the burst has to be used up until a client is refused."""
    lines = section_lines(Route(alias="a", client_limit=limit))
    (line,) = (line for line in lines if "Too Many" in line and "_ahead)" in line)
    return int(line.split()[-2])


async def statuses(port: int, count: int, **headers: str) -> list[int]:
    return [(await ask(port, "GET", "a.test", "/", headers))[0] for _ in range(count)]


async def admitted_at(port: int, count: int, **headers: str) -> list[float]:
    """When the next requests had been admitted, of which each is tried until it is."""
    loop, found = asyncio.get_running_loop(), list[float]()
    while len(found) < count:
        if await statuses(port, 1, **headers) == [200]:
            found.append(loop.time())
    return found


@pytest.mark.capability
async def test_burst_is_admitted_and_then_one_request_in_each_interval(tmp_path: Path) -> None:
    limit = TrafficLimits(requests_per_second=1.0, burst=4)
    routes = [Route(alias="client", host="a.test", client_limit=limit, to=WEB)]
    async with haproxy(tmp_path, routes, trusted_proxies=("127.0.0.1",)) as port:
        loop = asyncio.get_running_loop()
        for network in itertools.count(0, 2):
            begin, one = loop.time(), {"X-Forwarded-For": f"2001:db8:0:{network}::1"}
            found = await statuses(port, 6, **one)
            others = await statuses(port, 5, **{"X-Forwarded-For": f"2001:db8:0:{network + 1}::1"})
            same = await statuses(port, 1, **{"X-Forwarded-For": f"2001:db8:0:{network}::2"})
            if loop.time() - begin < 1.0:  # else the interval has passed: once more, as other clients
                break
        assert found == [200, 200, 200, 200, 429, 429]
        assert others == [200, 200, 200, 200, 429]
        assert same == [429], "its network is the client"
        admitted = await admitted_at(port, 2, **one)
        for number, moment in enumerate(admitted, 1):
            assert moment - begin >= number - 0.01


@pytest.mark.slow
async def test_rate_of_a_whole_route_is_that_of_all_clients_together(tmp_path: Path) -> None:
    limit = TrafficLimits(requests_per_second=0.5, burst=3)
    routes = [Route(alias="limited", host="a.test", limit=limit, to=WEB), Route(alias="free", to=WEB)]
    async with haproxy(tmp_path, routes, trusted_proxies=("127.0.0.1",)) as port:
        found = Counter[int]()
        for number in range(9):
            found.update(await statuses(port, 1, **{"X-Forwarded-For": f"10.0.0.{number}"}))
        assert found == {200: 3, 503: 6}
        assert (await ask(port, "GET", "b.test", "/", {}))[0] == 200


@pytest.mark.slow
async def test_request_that_one_limit_refuses_counts_for_no_other(tmp_path: Path) -> None:
    client = TrafficLimits(requests_per_second=0.01, burst=2)
    whole = TrafficLimits(requests_per_second=0.01, burst=3)
    routes = [Route(alias="a", client_limit=client, limit=whole, to=WEB)]
    async with haproxy(tmp_path, routes, trusted_proxies=("127.0.0.1",)) as port:
        one, other = {"X-Forwarded-For": "10.0.0.1"}, {"X-Forwarded-For": "10.0.0.2"}
        assert await statuses(port, 9, **one) == [200, 200, *[429] * 7]
        assert await statuses(port, 3, **other) == [200, 503, 503]


@pytest.mark.parametrize(
    ("limit", "ahead"),
    [
        (TrafficLimits(requests_per_second=5.0), 4000),  # the requests of one second are the burst
        (TrafficLimits(requests_per_second=2.5), 1500),
        (TrafficLimits(requests_per_second=0.25), 0),
        (TrafficLimits(requests_per_second=5.0, burst=1), 0),
        (TrafficLimits(requests_per_second=0.1, burst=20), 19_000),
    ],
)
def test_client_is_refused_when_its_burst_is_used_up(limit: TrafficLimits, ahead: int) -> None:
    assert refused_ahead_of(limit) == ahead


@pytest.mark.parametrize("rate", [0.001, 0.3, 1.0, 7.77, 4321.0, 5003.7, 1_000_000.0, 10_000_000.0])
@pytest.mark.parametrize("burst", [0, 1, 1_000_000])
def test_times_fit_into_the_numbers_of_the_program(rate: float, burst: int) -> None:
    route = Route(alias="a", client_limit=TrafficLimits(requests_per_second=rate, burst=burst))
    lines = section_lines(route)
    (clock,) = (line for line in lines if "date(0,us)" in line)
    factor, divisor = (int(each.rstrip(")")) for each in clock.split("mul(")[1].split("),div("))
    (counted,) = (line for line in lines if "sc-set-gpt0" in line)
    interval = int(counted.split("add(")[2].split(")")[0])
    in_2040_us = 2_208_988_800 * 1_000_000
    assert in_2040_us * factor < 2**63
    assert factor / divisor * 1_000_000 == pytest.approx(rate * interval, rel=1e-3)
    refused = refused_ahead_of(route.client_limit or TrafficLimits())
    (expiry,) = (int(line.split("expire ")[1].split("s")[0]) for line in lines if "stick-table" in line)
    if expiry < 24 * 86_400:
        assert refused + interval + expiry * rate * interval < 2**31, "the past would look like the future"


@pytest.mark.parametrize(
    ("rules", "lines"),
    [
        ({}, []),
        ({"limit": TrafficLimits(concurrency=3)}, ["{ be_conn gt 3 }"]),
        ({"backend_limit": TrafficLimits(requests_per_second=7.0, queue=3)}, []),
        (
            {"backend_limit": TrafficLimits(concurrency=1, queue=1, queue_seconds=0.0)},
            ["timeout queue 24d", "{ queue ge 1 }"],
        ),
        ({"backend_limit": TrafficLimits(concurrency=1)}, ["timeout queue 1ms"]),
        (
            {"client_limit": TrafficLimits(concurrency=3)},
            [
                "stick-table type ipv6 size 32768 expire 1s store conn_cur",
                "{ var(txn.client),ipmask(32,64),table_conn_cur(route:a) ge 3 }",
                "http-request track-sc0 var(txn.client),ipmask(32,64)",
            ],
        ),
    ],
)
def test_requests_in_flight_and_in_the_queue_are_limited(
    rules: dict[str, TrafficLimits], lines: list[str]
) -> None:
    found = section_lines(Route(alias="a", to=WEB, **rules))  # type: ignore[arg-type]
    assert [each.rpartition(" if ")[2] for each in found[: found.index("balance roundrobin")]] == lines
    limit = rules.get("backend_limit")
    limited = limit is not None and limit.concurrency
    assert found[-1] == f"server web 127.0.0.1:8081 {IDLE}{' maxconn 1 maxqueue 1' if limited else ''}"
