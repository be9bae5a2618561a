"""Which servers are shown, in which order, and which of them is selected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.cli.pool_ref import PoolRef
from poolctl.control.gateway_answers import GatewayStatus
from poolctl.control.server_answers import MeasuredServer, StatsResult
from poolctl.features.top._boards import ROUTE_ORDERS, SERVER_ORDERS, PoolView, RouteBoard, ServerBoard
from poolctl.json_form import from_json, to_json
from poolctl.routing.route_report import RouteReport
from tests.stand_in import Send, result, stand_in
from tests.stand_in import item as document


def item(*args: Any, **fields: Any) -> MeasuredServer:
    return from_json(MeasuredServer, document(*args, **fields))


def board_of(*items: MeasuredServer, height: int = 10, sort: str = "file") -> ServerBoard:
    board = ServerBoard(sort=sort)
    board.resize(height)
    board.update(list(items))
    return board


def names(board: ServerBoard) -> list[str]:
    return [row.name for row in board.shown]


def measured(name: str, **stats: Any) -> MeasuredServer:
    return item(name, stats=stats)


def selected(board: ServerBoard) -> str:
    assert board.selected is not None
    return board.selected.name


def test_the_largest_figures_come_first_and_unknown_ones_last() -> None:
    items = [measured("a", latency_p99_seconds=1), measured("b"), measured("c", latency_p99_seconds=9)]
    board = board_of(*items, sort="latency")
    assert names(board) == ["c", "a", "b"]
    board.toggle_sort("latency")
    assert names(board) == ["a", "c", "b"]


def test_failed_and_unhealthy_servers_come_first_by_state_and_by_health() -> None:
    board = board_of(item("a"), item("b", state="failed"), item("c", health="ko"), sort="state")
    assert names(board) == ["b", "a", "c"]
    board.toggle_sort("health")
    assert names(board) == ["c", "a", "b"]


def test_problems_come_first_and_the_others_in_the_order_of_the_file() -> None:
    assert (ServerBoard().sort, RouteBoard().sort) == ("problems", "problems")
    items = [
        item("z"), item("off", state="stopped", ready=False), item("new", state="starting", ready=False),
        item("slow", health="warn"), item("bad", health="ko"), item("a"), item("dead", state="failed", ready=False),
        item("late", ready=False),
    ]  # fmt: skip
    board = board_of(*items, sort="problems")
    assert names(board) == ["bad", "dead", "slow", "late", "new", "z", "off", "a"]


def test_a_filter_finds_all_of_its_words_anywhere() -> None:
    board = board_of(item("users", 8081), item("orders", 8082, state="stopped"), item("mail", tags=["Batch"]))
    for text, found in [("8082", ["orders"]), ("batch", ["mail"]), ("run er", ["users"]), ("", names(board))]:
        board.set_filter(text)
        assert names(board) == found
    board.set_filter("nobody")
    assert board.selected is None
    assert board.position == 0


def test_the_selection_stays_with_its_server() -> None:
    board = board_of(item("b"), item("c"), sort="name")
    board.move(1)
    board.update([item("a"), item("b"), item("c"), item("d")])
    assert (selected(board), board.position) == ("c", 3)
    board.update([item("a"), item("b")])
    assert (selected(board), board.position) == ("b", 2)


def test_charts_have_a_span_of_time_from_the_first_result_with_a_server() -> None:
    board = ServerBoard()
    assert (board.is_known, board.sample_seconds) == (False, 0.0)
    board.update([measured("a", history={"interval_seconds": 2.0})])
    assert (board.is_known, board.sample_seconds) == (True, 2.0)
    board.update([])
    assert (board.is_known, board.sample_seconds) == (True, 0.0)


def test_first_row_is_selected_and_shown_before_the_size_of_the_screen_is_known() -> None:
    board = ServerBoard(sort="file")
    board.update([item("b"), item("a")])
    assert (selected(board), [row.name for row in board.visible]) == ("b", ["b"])
    board.resize(0)
    assert [row.name for row in board.visible] == ["b"]


def test_sorting_goes_to_the_first_row() -> None:
    board = board_of(*(item(f"{number:03}") for number in range(50)), height=5)
    board.move(30)
    board.toggle_sort("name")
    assert (board.top, selected(board)) == (0, "000")
    board.move(30)
    board.toggle_sort("name")
    assert (board.top, selected(board)) == (0, "049")


def test_the_selection_is_always_on_the_screen() -> None:
    board = board_of(*(item(f"{number:03}") for number in range(500)), height=20)
    board.move(25)
    assert (board.top, selected(board)) == (6, "025")
    board.move(1000)
    assert (board.top, selected(board)) == (480, "499")
    board.resize(5)
    assert selected(board) in [row.name for row in board.visible]
    board.resize(400)
    assert len(board.visible) == 400
    board.move(-1000)
    assert (board.top, selected(board)) == (0, "000")


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("move"), st.integers(-30, 30)),
            st.tuples(st.just("resize"), st.integers(-3, 30)),
            st.tuples(st.just("set_filter"), st.sampled_from(["", "1", "2", "x"])),
            st.tuples(st.just("toggle_sort"), st.sampled_from(list(SERVER_ORDERS))),
            st.tuples(st.just("sort_next"), st.sampled_from([1, -1])),
            st.tuples(st.just("update"), st.integers(0, 40)),
        )
    )
)
def test_no_sequence_of_keys_loses_the_selection(steps: list[tuple[str, Any]]) -> None:
    board = board_of(*(item(str(number)) for number in range(25)))
    for method, value in steps:
        items = [item(str(number)) for number in range(value)] if method == "update" else value
        getattr(board, method)(items)
        assert (board.selected in board.visible) if board.shown else board.selected is None
        assert len(board.visible) == min(board.height, len(board.shown))


@pytest.mark.parametrize("sort", SERVER_ORDERS)
def test_every_order_has_every_server(sort: str) -> None:
    items = [item("a"), measured("b", cpu_percent=1), item("c", uptime_seconds=None, health=None)]
    assert sorted(names(board_of(*items, sort=sort))) == ["a", "b", "c"]


def test_each_order_has_the_key_that_the_help_names() -> None:
    assert "".join(order.key for order in SERVER_ORDERS.values()) == "PNSHRELMCUXF"
    assert "".join(order.key for order in ROUTE_ORDERS.values()) == "PNRWELF"


@pytest.mark.parametrize(
    ("sort", "stats", "fields"),
    [
        ("requests", {"requests_per_second": 1.0}, {}),
        ("errors", {"errors_per_second": 1.0}, {}),
        ("latency", {"latency_p99_seconds": 1.0}, {}),
        ("memory", {"memory_bytes": 1}, {}),
        ("cpu", {"cpu_percent": 1.0}, {}),
        ("uptime", {}, {"uptime_seconds": 100.0}),
        ("restarts", {}, {"restarts": 3}),
    ],
)
def test_figures_are_sorted_from_the_largest(
    sort: str, stats: dict[str, Any], fields: dict[str, Any]
) -> None:
    none = dict.fromkeys(stats, 0)
    board = board_of(item("a", stats=none), item("b", stats=stats, **fields), sort=sort)
    assert names(board) == ["b", "a"]
    assert board.falling
    board.toggle_sort(sort)
    assert names(board) == ["a", "b"]
    assert not board.falling


def test_next_order_is_that_of_the_column_beside() -> None:
    board = board_of(item("a"), sort="name")
    board.sort_next(1)
    assert board.sort == "state"
    board.sort_next(-1)
    board.sort_next(-1)
    assert board.sort == "problems"
    board.sort_next(-1)
    assert board.sort == "file"
    board.sort_next(1)
    assert board.sort == "problems"


def test_rates_of_routes_are_those_since_the_last_result() -> None:
    def result(a: int, a_stream: int) -> list[RouteReport]:
        return [
            RouteReport(alias="a", requests=a, errors=a // 10),
            RouteReport(alias="a", way="stream", requests=a_stream),
        ]

    board = RouteBoard(sort="file")
    for seconds, reports, rates in (
        (100.0, result(10, 5), [("a", None, None), ("a (stream)", None, None)]),
        (110.0, result(30, 1), [("a", 2.0, 0.2), ("a (stream)", 0.0, 0.0)]),
        (110.0, result(40, 2), [("a", None, None), ("a (stream)", None, None)]),
    ):
        board.receive(reports, seconds)
        assert [tuple(row)[1:] for row in board.rows] == [tuple(rate)[1:] for rate in rates]
        assert [row.name for row in board.rows] == [name for name, _, _ in rates]


@pytest.mark.parametrize("sort", ["requests", "waiting", "errors", "latency"])
def test_figures_of_routes_are_sorted_from_the_largest(sort: str) -> None:
    board = RouteBoard(sort=sort)
    board.resize(10)
    board.receive(
        [
            RouteReport(alias="a", p99_seconds=0.5),
            RouteReport(alias="b", requests=1, waiting=1, errors=1, p99_seconds=1),
        ],
        1,
    )
    assert [row.name for row in board.shown] == ["b", "a"]


def test_known_rates_of_routes_come_before_their_totals() -> None:
    board = RouteBoard(sort="requests")
    board.resize(10)
    for seconds, requests in ((1.0, 1), (2.0, 9)):
        board.receive(
            [RouteReport(alias="a", requests=100), RouteReport(alias="b", requests=requests)], seconds
        )
    assert [row.name for row in board.shown] == ["b", "a"]


def test_routes_with_problems_come_first_and_a_filter_searches_their_targets() -> None:
    board = RouteBoard()
    board.resize(10)
    states = {"web": "healthy", "new": "starting", "bad": "unhealthy", "odd": "error"}
    reports = [
        RouteReport(alias=alias, host="shop", path="/api", to=(f"http://{alias}:80",), state=state)
        for alias, state in states.items()
    ]
    board.receive(reports, 1.0)
    assert [row.name for row in board.shown] == ["bad", "odd", "new", "web"]
    for text, found in (("http://new shop", ["new"]), ("/api http unhealthy", ["bad"])):
        board.set_filter(text)
        assert [row.name for row in board.shown] == found


@pytest.mark.parametrize(("name", "shown"), [("shop", "shop"), ("", "pool")])
def test_view_has_the_name_of_the_pool_and_the_figures_of_the_last_answer(
    name: str, shown: str, tmp_path: Path
) -> None:
    ref = PoolRef([str(tmp_path / "pool.toml")], str(tmp_path))

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        return result(name=name)

    with stand_in(Path(ref.socket), answer) as requests:
        view = PoolView(ref, {"targets": ["a"]}, 2.0, ServerBoard())
    assert [verb for verb, _ in requests] == ["ping"]
    assert (view.pool, view.interval_seconds, view.routes, view.gateway) == (shown, 2.0, None, None)
    assert view.request == {"selector": {"targets": ["a"]}, "options": {"errors": True}}
    gateway = GatewayStatus(state="running", pid=1, addresses=(), routes=0, uptime_seconds=1.0, restarts=0)
    view.update(StatsResult(items=(item("a"),), gateway=to_json(gateway)))
    assert (names(view.servers), view.gateway) == (["a"], gateway)
    view.update(StatsResult())
    assert (names(view.servers), view.gateway) == ([], None)
