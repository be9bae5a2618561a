"""HAProxy's counters: summed up over its processes by route and target, and taken as results of requests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolctl.features.gateway.haproxy.counters import CounterReader, rows_of
from poolctl.features.gateway.supervision.breaker import Results
from poolctl.features.gateway.supervision.counts import (
    CONNECT,
    DISCONNECTED,
    REFUSED,
    RESPONSE,
    TrafficCounts,
)
from poolctl.routing.route import Route, StreamRoute, Target

from .scripted_haproxy import ScriptedHaproxy, section_of

SHOP = Route(alias="shop", to=(Target(server="web"), Target(url="http://10.0.0.7:80")))
DB = StreamRoute(alias="shop", bind=":5432", to=(Target(url="10.0.0.7:5432"),))
WEB, SHOP_WEB = "web", ("route:shop", "web")


class Reader:
    """Reads a scripted HAProxy that has the backends of both routes."""

    def __init__(self) -> None:
        self.counts = TrafficCounts()
        self.sections = [section_of(SHOP), section_of(DB)]
        self.begin_process()

    def begin_process(self) -> None:
        self.haproxy, self.reader = ScriptedHaproxy(), CounterReader(self.counts)

    def read(self) -> dict[tuple[str, str], Results]:
        return self.reader.add(
            self.reader.compare(rows_of(self.haproxy.text())), {each.name: each for each in self.sections}
        )


def test_nothing_is_read_of_a_process_that_prints_nothing() -> None:
    assert rows_of("") == []


def test_bad_statuses_are_found_by_the_beginning_of_a_long_name() -> None:
    haproxy, name = ScriptedHaproxy(), f"web:{'k' * 300}"
    haproxy.count("route:shop", name, stot=1)
    haproxy.bad[f"route:shop/{name}"[:256]] = 3
    assert [row.counts["bad_status"] for row in rows_of(haproxy.text())] == [3]


def test_counts_are_those_of_all_processes() -> None:
    stage = Reader()
    for _ in range(2):
        stage.begin_process()
        for _ in range(2):
            stage.haproxy.count(*SHOP_WEB, stot=5, hrsp_2xx=4, hrsp_5xx=1, bin=10, bout=20)
            stage.haproxy.count("route:shop", "BACKEND", stot=6, hrsp_2xx=4, hrsp_5xx=2, bin=11, bout=21)
            stage.haproxy.count("no-route", "BACKEND", stot=3)
            stage.read()
            stage.read()
    shop, web = stage.counts.routes["shop"], stage.counts.backends[WEB]
    assert (shop.requests, shop.failures, shop.bytes_in, shop.bytes_out) == (24, 8, 44, 84)
    assert (web.requests, web.statuses) == (20, [0, 0, 16, 0, 0, 4])
    assert stage.counts.refused == {"404": 12}
    assert stage.counts.total.requests == 24
    assert stage.reader.requests == {"shop": 12}, "those of this process"


def test_counts_of_routes_that_are_gone_stay_in_the_total() -> None:
    stage = Reader()
    stage.haproxy.count("route:shop", "BACKEND", stot=6)
    stage.haproxy.count("stream:shop", "BACKEND", stot=2)
    stage.read()
    stage.counts.retain_only([], ["shop"], [])
    assert ([*stage.counts.routes], [*stage.counts.streams]) == ([], ["shop"])
    assert stage.counts.total.requests == 8


def test_server_that_was_added_again_begins_at_0() -> None:
    stage = Reader()
    stage.haproxy.count(*SHOP_WEB, stot=5, hrsp_2xx=5)
    stage.read()
    stage.haproxy.rows[SHOP_WEB].clear()
    stage.haproxy.count(*SHOP_WEB, stot=2, hrsp_2xx=2)
    assert stage.read() == {("shop", "web"): Results(answered=2)}
    assert stage.counts.backends[WEB].requests == 7


def test_present_figures_are_those_of_the_last_reading() -> None:
    stage = Reader()
    stage.haproxy.count("gateway", "FRONTEND", scur=4)
    stage.haproxy.count("stream:shop", "FRONTEND", scur=3)
    stage.haproxy.count("stream:shop", "10.0.0.7:5432", scur=3)
    stage.haproxy.count(*SHOP_WEB, scur=3)
    stage.haproxy.count("route:shop", "BACKEND", qcur=7)
    for _ in range(2):
        stage.read()
        found = stage.reader
        assert (found.connections, found.open_streams) == (7, {"shop": 3})
        assert found.in_flight == {("shop", "web"): 3, ("stream shop", "10.0.0.7:5432"): 3}
        assert (found.queued["shop"], found.queued["stream shop"]) == (7, 0)
    stage.haproxy.rows.clear()
    stage.read()
    assert (stage.reader.connections, stage.reader.in_flight) == (0, {})


@pytest.mark.parametrize(
    ("counted", "results"),
    [
        ({"stot": 3, "hrsp_2xx": 2, "hrsp_4xx": 1}, Results(answered=3)),
        ({"stot": 1, "hrsp_5xx": 1}, Results(answered=1)),
        ({"stot": 2, "hrsp_5xx": 2, "bad": 1}, Results(answered=1, failed=1)),
        ({"stot": 1, "eresp": 1}, Results(failed=1)),
        ({"stot": 1, "eresp": 2, "unanswered": 1}, Results(failed=1)),
        ({"stot": 1, "eresp": 1, "unanswered": 1}, Results(failed=1)),  # its response was invalid
        ({"stot": 5, "hrsp_2xx": 1, "eresp": 7, "unanswered": 3}, Results(answered=1, failed=4)),
        ({"stot": 2, "econ": 1, "wretr": 1}, Results(unreached=1)),
        ({"stot": 1, "wredis": 1}, Results(unreached=1)),
        ({"stot": 1, "econ": 1}, Results(unreached=1)),  # the certificate has another name
        ({"stot": 1, "econ": 1, "qmax": 1}, Results()),  # it has waited for the server for too long
        ({"stot": 1, "cli_abrt": 1}, Results()),
    ],
)
def test_results_of_requests(counted: dict[str, int], results: Results) -> None:
    stage = Reader()
    if bad := counted.pop("bad", 0):
        stage.haproxy.bad["route:shop/web"] = bad
    if unanswered := counted.pop("unanswered", 0):
        stage.haproxy.unanswered["route:shop/web"] = unanswered
    stage.haproxy.count(*SHOP_WEB, **counted)
    assert stage.read() == ({("shop", "web"): results} if any(results) else {})
    assert stage.read() == {}


@pytest.mark.parametrize("more", [{}, {"qmax": 1}])
def test_request_that_is_not_connected_is_counted_although_counters_were_read_before_its_last_attempt(
    more: dict[str, int],
) -> None:
    stage = Reader()
    stage.haproxy.count(*SHOP_WEB, stot=1, wretr=1, **more)
    assert stage.read() == {}
    stage.haproxy.count(*SHOP_WEB, stot=1, econ=1)
    assert stage.read() == {("shop", "web"): Results(unreached=1)}
    stage.haproxy.count(*SHOP_WEB, stot=1, wretr=1)
    stage.haproxy.count(*SHOP_WEB, stot=1, hrsp_2xx=1)
    assert stage.read() == {("shop", "web"): Results(answered=1)}
    if more:
        stage.haproxy.count(*SHOP_WEB, stot=1, econ=1)
        assert stage.read() == {}, "it has only waited"


@pytest.mark.parametrize(
    ("counted", "results"),
    [
        ({"stot": 3, "bout": 9}, Results(answered=3)),
        ({"stot": 3}, Results()),  # nobody knows whether they are connected already
        ({"stot": 3, "bout": 9, "eresp": 1}, Results(answered=2, failed=1)),
        ({"stot": 2, "econ": 1, "wretr": 1}, Results(unreached=1)),
        ({"stot": 1, "wredis": 1}, Results(unreached=1)),
    ],
)
def test_results_of_connections(counted: dict[str, int], results: Results) -> None:
    stage = Reader()
    stage.haproxy.count("stream:shop", "10.0.0.7:5432", **counted)
    assert stage.read() == ({("stream shop", "10.0.0.7:5432"): results} if any(results) else {})


def test_targets_with_one_key_have_their_results_together() -> None:
    stage = Reader()
    twice = replace(SHOP, to=(Target(server="web"),))
    first = section_of(twice)
    stage.sections = [first._replace(servers=(*first.servers, first.servers[0]._replace(name="web:2")))]
    for name in ("web", "web:2"):
        stage.haproxy.count("route:shop", name, stot=2, hrsp_2xx=2)
    assert stage.read() == {("shop", "web"): Results(answered=4)}


def test_reasons_for_missing_responses_are_told_apart() -> None:
    stage = Reader()
    stage.haproxy.count(*SHOP_WEB, econ=2, wredis=1, eresp=4, cli_abrt=1)
    stage.haproxy.count("route:shop", "BACKEND", econ=5, dreq=6, eresp=4, cli_abrt=2)
    stage.read()
    route, target = stage.counts.routes["shop"].errors, stage.counts.backends[WEB].errors
    assert route == {CONNECT: 2, RESPONSE: 4, REFUSED: 9, DISCONNECTED: 2}
    assert target == {CONNECT: 3, RESPONSE: 4, REFUSED: 0, DISCONNECTED: 1}
