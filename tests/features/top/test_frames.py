"""Frames fit their screen, whatever there is to show."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from poolctl.control.gateway_answers import GatewayStats, GatewayStatus
from poolctl.control.server_answers import MeasuredServer
from poolctl.features.top._boards import RouteBoard, ServerBoard
from poolctl.features.top._frames import (
    BARS,
    ROUTE_COLUMNS,
    SERVER_COLUMNS,
    Column,
    LogPane,
    Notice,
    fit_columns,
    format_count,
    format_percent,
    format_seconds,
    format_size,
    frame_text,
    help_frame,
    log_frame,
    sparkline,
    table_frame,
)
from poolctl.json_form import from_json
from poolctl.routing.route_report import RouteReport
from tests.stand_in import item

STATES = [
    "running",
    "failed",
    "backoff",
    "sleeping",
    "stopped",
    "completed",
    "disabled",
    "starting",
    "stopping",
    "draining",
]


def stats(number: int) -> dict[str, Any]:
    series = [number * at for at in range(60)]
    return {
        "requests_per_second": 12.5 * number, "errors_total": number, "in_flight": 3, "connections": number,
        "latency_p99_seconds": 0.0042, "memory_bytes": int(23.4 * 2**20), "cpu_percent": 4.0,
        "history": {"requests_per_second": series, "latency_p99_seconds": series, "memory_bytes": series},
    }  # fmt: skip


def board_of(count: int, *, measured: bool) -> ServerBoard:
    board = ServerBoard(sort="file")
    items = [
        item(
            f"server-with-a-name-{number}",
            state=STATES[number % len(STATES)],
            health=("ok", "warn", "ko")[number % 3],
        )
        for number in range(count)
    ]
    if measured:
        items = [{**each, "stats": stats(at)} for at, each in enumerate(items)]
    board.update([from_json(MeasuredServer, each) for each in items])
    return board


def frame(board: ServerBoard, size: tuple[int, int], **options: Any) -> list[Text]:
    return table_frame(board, "shop", size, **{"notice": None, "typing": False, "trouble": "", **options})


@pytest.mark.parametrize("size", [(20, 5), (40, 10), (80, 24), (132, 43), (250, 80)])
@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("count", [0, 1, 500])
def test_the_table_fits(size: tuple[int, int], measured: bool, count: int) -> None:
    board = board_of(count, measured=measured)
    lines = frame(board, size)
    assert len(lines) == size[1]
    body = [line for line in lines if line.plain.startswith("server-w")]
    assert len(body) == min(count, board.height)
    assert all(line.cell_len <= size[0] for line in body)


@pytest.mark.parametrize(
    ("columns", "added"),
    [
        (SERVER_COLUMNS, [
            (19, "STATE"), (26, "HEALTH"), (33, "REQ/S"), (40, "P99"), (46, "MEM"), (55, "REQ chart"), (62, "UP"),
            (68, "CPU"), (75, "ERR/S"), (79, "RST"), (88, "P99 chart"), (97, "MEM chart"), (102, "WORK"),
            (124, "ADDRESS"), (129, "BUSY"), (135, "CONN"),
        ]),
        (ROUTE_COLUMNS, [
            (17, "WAY"), (24, "REQ/S"), (30, "ERR"), (37, "P99"), (46, "REQUESTS"), (69, "HOST/PATH"),
            (78, "WAITING"), (85, "ERR/S"), (108, "TO"), (118, "STATE"), (125, "P50"),
        ]),
    ],
    ids=["servers", "routes"],
)  # fmt: skip
def test_columns_are_added_by_importance_as_the_screen_widens(
    columns: tuple[Column, ...], added: list[tuple[int, str]]
) -> None:
    def titles(width: int) -> set[str]:
        fitting = fit_columns(width, 8, columns)
        return {f"{each.title} chart" if each.chart else each.title for each, _ in fitting}

    shown = titles(8)
    assert shown == {columns[0].title}
    for width, title in added:
        assert title not in titles(width - 1)
        shown.add(title)
        assert titles(width) == shown


def test_a_server_without_a_process_uses_nothing_and_one_with_one_next_to_nothing() -> None:
    board = ServerBoard()
    idle = {**stats(0), "memory_bytes": 0, "cpu_percent": 0.0}
    asleep = {**item("asleep", state="sleeping"), "pids": [], "stats": idle}
    board.update([from_json(MeasuredServer, each) for each in (asleep, {**item("awake"), "stats": idle})])
    asleep, awake = (line.plain for line in frame(board, (80, 24))[4:6])
    assert "0%" not in asleep
    assert "0K" not in asleep
    assert "0%" in awake


def test_the_help_fits_and_scrolls() -> None:
    assert len(help_frame((80, 24), 0)) == 24
    assert max(line.cell_len for line in help_frame((80, 60), 0)) <= 80
    assert help_frame((80, 10), 3)[1].plain == help_frame((80, 24), 0)[4].plain


class TestLog:
    @pytest.fixture(autouse=True)
    def zone(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Times are shown in the reader's zone, which is UTC here."""
        with monkeypatch.context() as patched:
            patched.setenv("TZ", "UTC")
            time.tzset()
            yield
        time.tzset()

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "web.log"
        path.write_text("".join(f"2026-01-31T12:00:{at:02}.000000Z line {at}\n" for at in range(50)))
        return path

    def shown(self, pane: LogPane) -> list[str]:
        return [line.plain for line in log_frame(pane, (40, 6))[1:-1]]

    def test_its_end_is_shown_and_stays_where_the_reader_went(self, path: Path) -> None:
        pane = LogPane("web", str(path))
        assert self.shown(pane)[-1] == "12:00:49 line 49"
        pane.scroll(10)
        before = self.shown(pane)
        assert before[-1] == "12:00:39 line 39"
        with path.open("a") as file:
            file.write("2026-01-31T12:01:00.000000Z more\n")
        assert pane.read()
        assert self.shown(pane) == before
        pane.scroll(-pane.back)
        assert self.shown(pane)[-1] == "12:01:00 more"
        pane.close()

    def test_colours_of_the_server_and_control_characters_are_taken_out(self, path: Path) -> None:
        joined = "👨\u200d👩\u200d👧 می\u200cخواهم"
        path.write_text(f"2026-01-31T12:00:00.000000Z \x1b[31mred\x1b[0m {joined}\x1b]0;title\x07\n")
        pane = LogPane("web", str(path))
        (line,) = [line for line in self.shown(pane) if line]
        assert line == f"12:00:00 red {joined}"
        pane.close()

    def test_search_goes_up_to_the_next_line_and_down_again(self, path: Path) -> None:
        pane = LogPane("web", str(path))
        for key in ("/", *"LINE 1", "enter"):
            assert pane.press(key, 4)
        assert (pane.found, self.shown(pane)[-1]) == (11, "12:00:19 line 19")
        assert "11 found, 30 lines below" in log_frame(pane, (80, 6))[-1].plain
        pane.press("n", 4)
        assert self.shown(pane)[-1] == "12:00:18 line 18"
        pane.press("N", 4)
        pane.press("N", 4)
        assert self.shown(pane)[-1] == "12:00:19 line 19"
        assert pane.press("escape", 4), "it ends the search"
        assert pane.words == ""
        assert not pane.press("escape", 4)
        pane.close()

    def test_level_narrows_the_lines_that_are_there_and_those_that_come(self, path: Path) -> None:
        texts = ["INFO: a", "plain", "WARNING: b", '{"level": "error", "msg": "c"}']
        path.write_text("".join(f"2026-01-31T12:00:00.000000Z {text}\n" for text in texts))
        pane = LogPane("web", str(path))
        for level, shown in [
            ("info", ["INFO: a", "WARNING: b", "ERROR c"]),
            ("warning", ["WARNING: b", "ERROR c"]),
        ]:
            pane.press("L", 4)
            assert pane.least == level
            assert [line[9:] for line in self.shown(pane) if line] == shown
            assert f"{level} and above, following" in log_frame(pane, (120, 6))[-1].plain
        with path.open("a") as file:
            file.write("2026-01-31T12:00:01.000000Z DEBUG: d\n2026-01-31T12:00:01.000000Z FATAL: e\n")
        pane.read()
        assert [line[9:] for line in self.shown(pane) if line] == ["WARNING: b", "ERROR c", "FATAL: e"]
        path.with_name("quiet.log").write_text("2026-01-31T12:00:00.000000Z INFO: a\n")
        quiet = LogPane("quiet", str(path.with_name("quiet.log")))
        for key in "LL":
            quiet.press(key, 4)
        assert self.shown(quiet)[0] == "no lines of level warning or above"
        quiet.close()
        pane.press("L", 4)
        pane.press("L", 4)
        assert "and above" not in log_frame(pane, (120, 6))[-1].plain
        assert (pane.least, self.shown(pane)[-1]) == ("", "12:00:01 FATAL: e")
        pane.close()

    def test_lines_have_the_colour_of_their_level_and_found_words_stand_out(self, path: Path) -> None:
        texts = ["INFO: a", "ERROR: b", '{"level": "warning", "msg": "c"}']
        path.write_text("".join(f"2026-01-31T12:00:00.000000Z {text}\n" for text in texts))
        pane = LogPane("web", str(path))
        time = "[bright_black]12:00:00 [/bright_black]"
        assert [line.markup for line in pane.visible(40, 4)] == [
            f"{time}INFO: a",
            "[bright_black]12:00:00 [red][/bright_black]ERROR[/red]: b",
            "[bright_black]12:00:00 [yellow][/bright_black]WARNING c[/yellow]",
        ]
        for key in ("/", "b"):
            pane.press(key, 4)
        title, *body, last = (line.markup for line in log_frame(pane, (40, 4)))
        assert title == f"[bold reverse] web [/bold reverse]  [bright_black]{path}[/bright_black]"
        assert (
            body[-1]
            == "[bright_black]12:00:00 [red][/bright_black]ERROR[/red]: [black on yellow]b[/black on yellow]"
        )
        assert (
            last == "[bold cyan] search [/bold cyan]b[blink]_[bright_black][/blink]  1 found[/bright_black]"
        )
        pane.press("escape", 4)
        assert (pane.words, pane.typing) == ("", False)
        pane.close()

    @pytest.mark.parametrize(
        ("keys", "last"),
        [
            (["up"], 48), (["k", "k"], 47), (["k", "k", "j"], 48), (["down"], 49), (["page up"], 45),
            (["page up", " "], 49),
            (["page up", "page up", "page down"], 45), (["home"], 0), (["g", "up"], 0), (["g", "G"], 49),
            (["home", "end"], 49), (["g", "j"], 1),
        ],
    )  # fmt: skip
    def test_keys_scroll_by_lines_and_pages(self, path: Path, keys: list[str], last: int) -> None:
        pane = LogPane("web", str(path))
        assert repr(pane) == f"<LogPane {path}, 50 lines>"
        assert all(pane.press(key, 4) for key in keys)
        assert self.shown(pane)[-1 if last > 3 else last] == f"12:00:{last:02} line {last}"
        assert pane.back == 49 - last
        state = "following" if last == 49 else f"{49 - last} {'line' if last == 48 else 'lines'} below"
        assert log_frame(pane, (80, 6))[-1].plain.rstrip().endswith(state)
        pane.close()

    @pytest.mark.parametrize("key", ["escape", "q", "l", "enter", "left", "backspace"])
    def test_log_is_left_by_its_keys_and_no_other(self, path: Path, key: str) -> None:
        pane = LogPane("web", str(path))
        assert pane.press("x", 4)
        assert not pane.press(key, 4)
        pane.close()

    def test_words_of_a_search_are_typed(self, path: Path) -> None:
        pane = LogPane("web", str(path))
        for key, words in (
            ("/", ""),
            ("a", "a"),
            ("up", "a"),
            ("b", "ab"),
            ("backspace", "a"),
            ("clear", ""),
            ("q", "q"),
        ):
            pane.press(key, 4)
            assert (pane.words, pane.typing) == (words, True)
        assert pane.found == 0
        pane.press("enter", 4)
        assert (pane.words, pane.typing, pane.back) == ("q", False, 0)
        pane.close()

    def test_long_line_is_broken_where_the_screen_ends(self, path: Path) -> None:
        path.write_text("2026-01-31T12:00:00.000000Z " + "0123456789" * 4 + "\n")
        pane = LogPane("web", str(path))
        shown = [line.plain for line in pane.visible(20, 4)]
        assert shown == ["12:00:00 01234567890", "12345678901234567890", "123456789"]
        assert [line.plain for line in pane.visible(20, 2)] == shown[1:]
        assert len(pane.visible(49, 4)) == 1
        pane.close()

    def test_a_server_without_output_has_an_empty_log(self, tmp_path: Path) -> None:
        pane = LogPane("web", str(tmp_path / "none.log"))
        assert self.shown(pane)[0] == "no output yet"
        pane.close()


@pytest.mark.parametrize(
    ("form", "texts"),
    [
        (
            format_count,
            {None: "-", 0: "0", 4.23: "4.2", 7: "7", 847.4: "847", 999.6: "1.0k", 12_345: "12.3k", 1_200_000: "1.2M",
             0.25: "0.25", 31.0: "31"},
        ),
        (
            format_seconds,
            {None: "-", 0: "0", 0.00085: "850µs", 0.0042: "4.2ms", 0.32: "320ms", 1.24: "1.2s", 95: "95s"},
        ),
        (format_size, {None: "-", 0: "0K", 640 * 1024: "640K", 23.4 * 2**20: "23.4M", 2**30: "1G"}),
        (format_percent, {None: "-", 0: "0%", 0.42: "0.4%", 12.3: "12%", 143: "143%"}),
    ],
)  # fmt: skip
def test_figures_are_short(form: Callable[[float | None], str], texts: dict[float | None, str]) -> None:
    assert {number: form(number) for number in texts} == texts


@given(st.floats(0, 9e8))
def test_every_number_fits_its_column(number: float) -> None:
    for form in (format_count, format_percent, format_size):
        if form is not format_percent or number < 9999:
            assert len(form(number)) <= 5
    if number < 9999:
        assert len(format_seconds(number)) <= 6


def test_the_newest_value_is_at_the_right_and_the_unknown_is_empty() -> None:
    assert sparkline([0, 7], 4) == "  ▁▇"
    assert sparkline([None, 1, None, 2], 4) == " ▄ ▇"
    assert sparkline([1, 2, 3, 4], 2) == "▆▇"
    assert sparkline([], 3) == "   "
    assert sparkline([1], 0) == ""


def test_memory_shows_its_change_but_no_ripple_as_a_wave() -> None:
    assert sparkline([100, 150, 200], 3, from_zero=False) == "▁▄▇"
    assert set(sparkline([1000, 1001, 1000], 3, from_zero=False)) == {"▄"}


@given(st.lists(st.none() | st.floats(0, 1e12), max_size=80), st.integers(0, 60), st.booleans())
def test_a_chart_is_as_wide_as_it_should_be(values: list[float | None], width: int, from_zero: bool) -> None:
    chart = sparkline(values, width, from_zero=from_zero)
    assert len(chart) == width
    assert set(chart) <= {*BARS, " "}


STATS = GatewayStats(
    requests_total=1200, refused_total=0, errors_total=3, requests_per_second=12345.0, errors_per_second=0.5,
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
    RouteReport(alias="shop", path="/shop", to=("web",), state="healthy", requests=900, waiting=2),
    RouteReport(alias="out", host="out.example.com", path="/", to=("http://10.0.0.7:9000",), requests=300,
                errors=3, p99_seconds=0.02, state="unhealthy"),
    RouteReport(alias="shop", host="tcp:5432", way="stream", requests=2),
]  # fmt: skip


def routes_of(**options: Any) -> RouteBoard:
    board = RouteBoard(**{"sort": "file", **options})
    board.receive(ROUTES, 100.0)
    return board


def lines_of(size: tuple[int, int], **options: Any) -> list[str]:
    options = {"notice": None, "typing": False, "trouble": "", "gateway": GATEWAY, **options}
    return [line.plain for line in table_frame(ServerBoard(), "shop", size, **options)]


@pytest.mark.parametrize("size", [(60, 10), (80, 24), (120, 40), (200, 60)])
def test_routes_and_the_line_of_the_gateway_fit(size: tuple[int, int]) -> None:
    frame = lines_of(size, routes=routes_of())
    assert len(frame) == size[1]
    assert max(map(len, frame)) <= size[0]
    assert "● gateway  req/s 12.3k  err/s 0.50" in frame[2]
    head = next(line for line in frame if line.startswith("ROUTE"))
    assert {"WAY", "REQ/S", "ERR", "P99"} <= {*head.split()}
    assert "servers" in frame[-1]


def test_routes_are_printed_without_a_terminal() -> None:
    text = frame_text(ServerBoard(), "shop", GATEWAY, routes_of())
    assert "out.example.com/" in text
    assert text.index("● gateway") < text.index("ROUTE")


@pytest.mark.parametrize(
    ("narrowed", "typing", "line"),
    [
        ("name-49", True, " filter name-49_  11 of 500"), ("name-49", False, " filter name-49  11 of 500"),
        ("", True, " filter _  500 of 500"), ("", False, None),
    ],
)  # fmt: skip
def test_filter_is_shown_with_the_number_that_it_leaves(
    narrowed: str, typing: bool, line: str | None
) -> None:
    board = board_of(500, measured=True)
    board.set_filter(narrowed)
    shown = [each.plain for each in frame(board, (80, 24), typing=typing)]
    assert [each.rstrip() for each in shown if each.startswith(" filter ")] == (
        [] if line is None else [line]
    )
    assert ("keep the filter" in shown[-1]) is typing


# Recorded frames: lines with their styles. A change of what a user sees is to be seen in its commit.
FRAMES = Path(__file__).with_name("frames")


def servers_of_every_kind(**sort: Any) -> ServerBoard:
    board = ServerBoard(**{"sort": "problems", **sort})
    items = [
        item(f"web-{state}", state=state, health=("ok", "unknown", "warn", "ko")[at % 4], ready=at != 4,
             uptime_seconds=90.0 * at, restarts=at, workers=2, pids=[*range(at % 3)],
             bind=f"127.0.0.1:{8000 + at}", stats=stats(at))
        for at, state in enumerate([*STATES, "odd"])
    ]  # fmt: skip
    items.append(item("a-name-that-is-longer-than-the-column-of-names-is-wide", uptime_seconds=4000.0))
    rows = [from_json(MeasuredServer, each) for each in items]
    some = replace(rows[5].stats, errors_per_second=1.25, latency_p99_seconds=1.5, in_flight=1200)
    some = replace(some, history=replace(some.history, interval_seconds=2.0))
    rows[0], rows[5] = replace(rows[5], stats=some), rows[0]
    board.update(rows)
    return board


def selecting(board: Any, rows: int, height: int) -> Any:
    board.resize(height)
    board.move(rows)
    return board


WIDE, USUAL, NARROW = (200, 18), (100, 18), (60, 18)
VIEWS: dict[str, Callable[[], list[Text]]] = {
    "servers-wide": lambda: frame(servers_of_every_kind(), WIDE, gateway=GATEWAY),
    "servers": lambda: frame(servers_of_every_kind(sort="memory"), USUAL),
    "servers-narrow": lambda: frame(servers_of_every_kind(), NARROW, gateway=GATEWAY),
    "servers-low": lambda: frame(selecting(servers_of_every_kind(), 7, 5), (80, 9), notice=Notice("done", "green")),
    "servers-lowest": lambda: frame(servers_of_every_kind(), (80, 10), trouble="no supervisor", typing=True),
    "servers-paused": lambda: frame(selecting(servers_of_every_kind(), 7, 5), (80, 9), notice=Notice("sorted by cpu")),
    "gateway-failing": lambda: frame(
        servers_of_every_kind(sort="cpu"), (140, 10), gateway=replace(GATEWAY, state="odd", problem="port in use")
    ),
    "gateway-starting": lambda: frame(
        servers_of_every_kind(sort="file"), (99, 10), gateway=replace(GATEWAY, state="starting", stats=None)
    ),
    "routes": lambda: frame(ServerBoard(), USUAL, gateway=GATEWAY, routes=routes_of(sort="errors")),
    "routes-wide": lambda: frame(
        ServerBoard(), (180, 12), gateway=replace(GATEWAY, stats=replace(STATS, errors_per_second=0.0)),
        routes=measured_routes()
    ),
    "loading": lambda: frame(ServerBoard(), USUAL, gateway=GATEWAY, routes=RouteBoard()),
    "help": lambda: help_frame((80, 45), 0),
    "help-scrolled": lambda: help_frame((40, 12), 13),
}  # fmt: skip


def measured_routes() -> RouteBoard:
    board = routes_of(sort="waiting")
    board.receive([replace(ROUTES[0], requests=920, errors=3, state="starting"), *ROUTES[1:]], 102.0)
    return board


@pytest.mark.parametrize("name", VIEWS)
def test_frame_is_as_recorded(name: str) -> None:
    assert [line.markup for line in VIEWS[name]()] == (FRAMES / f"{name}.txt").read_text().split("\n")
