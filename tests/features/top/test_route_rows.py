"""The gateway's line, and its routes as rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from poolctl.control.gateway_status import GatewayStats, GatewayStatus
from poolctl.features.top._frames import frame_text, table_frame
from poolctl.features.top._route_rows import RouteBoard
from poolctl.features.top._server_rows import ServerBoard
from poolctl.routing.route_report import RouteReport

STATS = GatewayStats(
    requests_total=1200, passed_total=900, proxied_total=300, refused_total=0, errors_total=3,
    requests_per_second=12345.0, errors_per_second=0.5, latency_p50_seconds=0.00125, latency_p99_seconds=0.0201,
    connections=1234, memory_bytes=19 * 2**20, cpu_percent=12.5,
)  # fmt: skip
GATEWAY = GatewayStatus(
    state="running",
    pid=1,
    addresses=("http://127.0.0.1:80",),
    routes=3,
    uptime_seconds=1.0,
    restarts=0,
    stats=STATS,
)
ROUTES = [
    RouteReport(alias="shop", path="/shop", to=("web",), way="pass", state="healthy", requests=900, passed=900,
                waiting=2),
    RouteReport(alias="out", host="out.example.com", path="/", to=("http://10.0.0.7:9000",), requests=300, proxied=300,
                errors=3, p99_seconds=0.02, state="unhealthy"),
    RouteReport(alias="shop", host="tcp:5432", way="stream", requests=2, proxied=2),
]  # fmt: skip


def board_of(**options: Any) -> RouteBoard:
    board = RouteBoard(**{"sort": "file", **options})
    board.receive(ROUTES, 100.0)
    return board


def lines(size: tuple[int, int], **options: Any) -> list[str]:
    options = {"notice": None, "typing": False, "trouble": "", "gateway": GATEWAY, **options}
    return [line.plain for line in table_frame(ServerBoard(), "shop", size, **options)]


def test_routes_that_do_not_serve_come_first() -> None:
    board = board_of(sort=RouteBoard().sort)
    assert [row.name for row in board.shown] == ["out", "shop", "shop (stream)"]


def test_routes_are_loading_before_the_first_answer() -> None:
    assert " loading …" in lines((80, 24), routes=RouteBoard())
    assert " loading …" not in lines((80, 24), routes=board_of())


def test_rates_are_those_between_two_results() -> None:
    board = board_of()
    assert [row.requests_per_second for row in board.rows] == [None, None, None]
    board.receive(
        [replace(ROUTES[0], requests=920), replace(ROUTES[1], requests=1), replace(ROUTES[2], requests=12)],
        102.0,
    )
    assert [row.requests_per_second for row in board.rows] == [10.0, 0.0, 5.0], "a new process counts from 0"
    assert [row.errors_per_second for row in board.rows] == [0.0, 0.0, 0.0]
    board.receive([replace(ROUTES[0], errors=3), replace(ROUTES[1], errors=4)], 104.0)
    board.sort_by("errors")
    assert [(row.name, row.errors_per_second) for row in board.shown] == [("shop", 1.5), ("out", 0.5)]


@pytest.mark.parametrize(
    ("sort", "aliases"),
    [("name", ["out", "shop", "shop"]), ("requests", ["shop", "out", "shop"]), ("errors", ["out", "shop", "shop"]),
     ("waiting", ["shop", "out", "shop"]),
     ("latency", ["out", "shop", "shop"]), ("file", ["shop", "out", "shop"])],
)  # fmt: skip
def test_each_order_has_every_route(sort: str, aliases: list[str]) -> None:
    assert [row.report.alias for row in board_of(sort=sort).shown] == aliases


def test_filter_finds_hosts_and_targets() -> None:
    board = board_of()
    for words, found in (
        ("9000", ["out"]),
        ("example", ["out"]),
        ("stream", ["shop"]),
        ("shop", ["shop", "shop"]),
    ):
        board.narrow(words)
        assert [row.report.alias for row in board.shown] == found


@pytest.mark.parametrize("size", [(60, 10), (80, 24), (120, 40), (200, 60)])
def test_routes_and_the_line_of_the_gateway_fit(size: tuple[int, int]) -> None:
    frame = lines(size, routes=board_of())
    assert len(frame) == size[1]
    assert max(map(len, frame)) <= size[0]
    assert "● gateway  req/s 12.3k  err/s 0.50" in frame[2]
    head = next(line for line in frame if line.startswith("ROUTE"))
    assert {"WAY", "REQ/S", "ERR", "P99"} <= {*head.split()}
    assert "servers" in frame[-1]


def test_eighty_columns_show_what_became_of_requests() -> None:
    frame = lines((80, 24), routes=board_of())
    head, shop = (line.split() for line in frame[4:6])
    assert head == ["ROUTE", "HOST/PATH", "WAY", "REQ/S", "PASSED", "PROXIED", "ERR", "P99"]
    assert shop == ["shop", "/shop", "pass", "-", "900", "0", "0", "-"]
    assert "p99 20.1ms" in frame[2]


def test_wider_terminal_shows_requests_in_the_queue_of_the_limit() -> None:
    head, shop = (line.split() for line in lines((120, 40), routes=board_of())[4:6])
    assert shop[head.index("WAITING")] == "2"
    assert "WAITING▾" in lines((120, 40), routes=board_of(sort="waiting"))[4]


def test_gateway_that_does_not_serve_shows_why() -> None:
    failed = replace(GATEWAY, state="failed", problem="port 80 is in use", stats=None)
    assert lines((80, 24), gateway=failed)[2] == " ✗ gateway  port 80 is in use"
    assert (
        lines((80, 24), gateway=replace(GATEWAY, state="starting", stats=None))[2] == " ◐ gateway  starting"
    )
    assert not any("gateway" in line for line in lines((80, 24), gateway=None))


def test_routes_are_printed_without_a_terminal() -> None:
    text = frame_text(ServerBoard(), "shop", GATEWAY, board_of())
    assert "out.example.com/" in text
    assert text.index("● gateway") < text.index("ROUTE")
