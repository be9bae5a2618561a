"""Frames fit their screen, whatever there is to show."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from poolctl.control.statistics_answers import Measured
from poolctl.features.top._frames import Notice, help_frame, table_frame
from poolctl.features.top._live_view import action_of
from poolctl.features.top._log_pane import LogPane, log_frame
from poolctl.features.top._server_rows import ServerBoard
from poolctl.json_form import from_json
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
    board.update([from_json(Measured, each) for each in items])
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


def test_eighty_columns_show_the_main_figures() -> None:
    lines = [line.plain for line in frame(board_of(3, measured=True), (80, 24))]
    head = next(line for line in lines if line.startswith("NAME"))
    assert [title for title in ("STATE", "HEALTH", "REQ/S", "P99", "MEM", "CPU", "UP") if title in head] == [
        "STATE", "HEALTH", "REQ/S", "P99", "MEM", "CPU", "UP",
    ]  # fmt: skip
    assert "● running" in lines[4]
    assert "▆▆▆▇▇▇▇▇" in lines[5]
    assert "4.2ms" in lines[4]
    assert "23.4M" in lines[4]
    assert "? help" in lines[-1]
    assert "req/s 37.5" in lines[1]


def test_errors_a_second_are_a_column_and_a_total() -> None:
    board = board_of(3, measured=True)
    rows = [
        replace(row, name=row.name[-1], stats=replace(row.stats, errors_per_second=0.5 * at))
        for at, row in enumerate(board.rows)
    ]
    board.update(rows)
    board.sort_by("errors")
    lines = [line.plain for line in frame(board, (80, 24))]
    assert "err/s 1.5" in lines[1]
    assert "ERR/S▾" in lines[3]
    assert [row.name for row in board.visible] == ["2", "1", "0"]


def test_charts_have_a_heading_with_their_span() -> None:
    board = board_of(1, measured=True)
    (row,) = board.rows
    board.update(
        [replace(row, stats=replace(row.stats, history=replace(row.stats.history, interval_seconds=2.0)))]
    )
    head = frame(board, (160, 24))[3].plain
    for title in ("REQ", "P99", "MEM"):
        assert re.search(rf"\b{title} \d+s\b", head), head


def test_a_server_without_a_process_uses_nothing_and_one_with_one_next_to_nothing() -> None:
    board = ServerBoard()
    idle = {**stats(0), "memory_bytes": 0, "cpu_percent": 0.0}
    asleep = {**item("asleep", state="sleeping"), "pids": [], "stats": idle}
    board.update([from_json(Measured, each) for each in (asleep, {**item("awake"), "stats": idle})])
    asleep, awake = (line.plain for line in frame(board, (80, 24))[4:6])
    assert "0%" not in asleep
    assert "0K" not in asleep
    assert "0%" in awake


def test_a_problem_is_shown_at_the_top_and_a_question_at_the_bottom() -> None:
    lines = frame(board_of(1, measured=True), (80, 24), trouble="no supervisor", notice=Notice("Stop web?"))
    assert lines[1].plain == " ! no supervisor"
    assert lines[-1].plain == " Stop web?"


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
        path.write_text("2026-01-31T12:00:00.000000Z \x1b[31mred\x1b[0m \x1b]0;title\x07\n")
        pane = LogPane("web", str(path))
        (line,) = [line for line in self.shown(pane) if line]
        assert line.startswith("12:00:00 red ")
        assert line.isprintable()
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
        with path.open("a") as file:
            file.write("2026-01-31T12:00:01.000000Z DEBUG: d\n2026-01-31T12:00:01.000000Z FATAL: e\n")
        pane.read()
        assert [line[9:] for line in self.shown(pane) if line] == ["WARNING: b", "ERROR c", "FATAL: e"]
        pane.press("L", 4)
        pane.press("L", 4)
        assert (pane.least, self.shown(pane)[-1]) == ("", "12:00:01 FATAL: e")
        pane.close()

    def test_a_server_without_output_has_an_empty_log(self, tmp_path: Path) -> None:
        pane = LogPane("web", str(tmp_path / "none.log"))
        assert self.shown(pane)[0] == "no output yet"
        pane.close()


@pytest.mark.parametrize(
    ("key", "state", "verb", "asks"),
    [("r", "running", "restart", False), ("s", "running", "stop", True), ("s", "failed", "start", False),
     ("s", "disabled", "enable", False), ("d", "running", "drain", True), ("d", "draining", "undrain", False),
     ("+", "running", "scale", False), ("-", "running", "scale", True)],
)  # fmt: skip
def test_a_key_sends_its_verb(key: str, state: str, verb: str, asks: bool) -> None:
    action = action_of(key, from_json(Measured, item("web", state=state, workers=2)))
    assert action is not None
    assert (action.verb, bool(action.question)) == (verb, asks)
    assert action.body()["selector"] == {"targets": ["web"]}


def test_the_last_worker_is_not_scaled_away() -> None:
    assert action_of("-", from_json(Measured, item("web", workers=1))) is None
    assert action_of("x", from_json(Measured, item("web"))) is None
