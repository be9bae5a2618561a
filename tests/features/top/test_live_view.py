"""The live view on a real terminal, read by an emulator of one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyte
import pytest

from poolctl.control.pool_paths import pool_key
from poolctl.control.server_answers import MeasuredServer
from poolctl.features.top._frames import Notice
from poolctl.features.top._live_view import NoticeLine, ServerAction, action_of
from poolctl.json_form import from_json
from tests.deadline import wait_until
from tests.real_pool import RealPool
from tests.stand_in import Send, item, result, stand_in
from tests.terminal import Terminal
from tests.virtual_loop import run_in_virtual_time


@pytest.fixture
def pool(real_pool: RealPool) -> RealPool:
    real_pool.write_hello("users", "orders")
    return real_pool


class Top:
    """`top` on a terminal, and the screen that a person sees."""

    def __init__(self, terminal: Terminal, columns: int, lines: int) -> None:
        self.terminal = terminal
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.Stream(self._screen)
        self._fed = 0

    def lines(self) -> list[str]:
        new = self.terminal.shown[self._fed :]
        self._fed += len(new)
        self._stream.feed(new)
        return [line.rstrip() for line in self._screen.display]

    def until(self, condition: Callable[[list[str]], object]) -> list[str]:
        """The screen, as soon as the condition is true of it."""
        self.terminal.until(lambda _: condition(self.lines()))
        return self.lines()

    def until_shown(self, words: str) -> list[str]:
        return self.until(lambda lines: words in "\n".join(lines))

    def selected(self) -> str:
        """The line that stands out in the table."""
        self.lines()
        for at in range(2, self._screen.lines):
            if self._screen.buffer[at][0].reverse:
                return self._screen.display[at].rstrip()
        return ""

    def resize(self, columns: int, lines: int) -> None:
        self.lines()
        self._screen.resize(lines, columns)
        self.terminal.resize(columns, lines)


@contextmanager
def top(pool: RealPool, *args: str, size: tuple[int, int] = (80, 24), **options: Any) -> Iterator[Top]:
    with Terminal(pool, "top", *args, size=size, **options) as terminal:
        yield Top(terminal, *size)


@contextmanager
def answering(pool: RealPool, items: list[Any]) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Something that answers for the pool's supervisor, always with what the list holds."""

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        return result(*items, name="shop")

    place = pool.runtime / pool_key(str(pool.directory / "pool.toml"))
    place.mkdir(parents=True, mode=0o700, exist_ok=True)
    with stand_in(place / "control.sock", answer) as requests:
        yield requests


def many(count: int) -> list[dict[str, Any]]:
    return [item(f"web-{number:03}", bind=f"127.0.0.1:{8000 + number}") for number in range(count)]


@pytest.mark.integration
def test_a_key_restarts_the_selected_server_and_no_other(pool: RealPool) -> None:
    pool.ok("start")
    before = pool.items()
    with top(pool) as view:
        view.until_shown("orders")
        view.terminal.press("j")
        view.until(lambda _: view.selected().startswith("orders"))
        view.terminal.press("r")
        view.until_shown("orders restarted")
        view.terminal.press("q")
        assert view.terminal.end() == 0
    after = pool.items()
    assert after["orders"]["pids"] != before["orders"]["pids"]
    assert after["users"]["pids"] == before["users"]["pids"]


@pytest.mark.integration
def test_an_action_that_stops_a_server_asks_first(pool: RealPool) -> None:
    pool.ok("start")
    with top(pool) as view:
        view.until_shown("users")
        view.terminal.press("s")
        view.until_shown("Stop users?")
        view.terminal.press("n")
        view.until(lambda lines: "Stop users?" not in "\n".join(lines))
        assert pool.items()["users"]["state"] == "running"
        view.terminal.press("sy")
        view.until_shown("○ stopped")
        view.terminal.press("s")
        view.until_shown("users started")
        view.terminal.press("\x03")
        assert view.terminal.end() == 130
    assert pool.items()["users"]["ready"]


@pytest.mark.integration
@pytest.mark.capability
def test_a_key_shows_the_growing_log_of_the_selected_server(pool: RealPool) -> None:
    log = pool.directory / "users.log"
    log.write_text('2026-01-31T12:00:00.000000Z {"level": "error", "msg": "no luck", "tries": 3}\n')
    shown = item("users", config={"log": {"path": str(log)}})
    with (
        answering(pool, [shown]),
        top(pool, "--interval", "10m", size=(60, 10), env={"TZ": "UTC"}) as view,
    ):
        view.until_shown("running")
        view.terminal.press("l")
        view.until_shown("12:00:00 ERROR no luck tries=3")
        with log.open("a") as file:
            file.write("2026-01-31T12:00:01.000000Z " + "long " * 20 + "\n")
        lines = view.until_shown("12:00:01 long")
        assert "".join(lines).count("long") == 20
        view.terminal.press("/LUCK\r")
        view.until_shown("1 found, 1 line below")
        view.terminal.press("\x1b\x1b")
        view.until_shown("NAME")


@pytest.mark.integration
def test_hundreds_of_servers_scroll_and_are_filtered(pool: RealPool) -> None:
    with answering(pool, many(500)), top(pool) as view:
        lines = view.until_shown("1/500")
        assert sum("web-" in line for line in lines) <= 20
        view.terminal.press("\x1b[6~\x1b[6~")
        view.until(lambda lines: "web-000" not in "\n".join(lines) and "web-038" in view.selected())
        view.terminal.press("G")
        view.until(lambda _: view.selected().startswith("web-499"))
        view.terminal.press("/49 r")
        view.until_shown("filter 49 r_  15 of 500")
        view.terminal.press("\x1b")
        view.until_shown("/500")


@pytest.mark.integration
def test_pasted_text_goes_into_an_open_field_or_nowhere(pool: RealPool) -> None:
    with answering(pool, many(500)) as requests, top(pool) as view:
        view.until_shown("1/500")
        view.terminal.press("\x1b[200~r+\x1b[201~s\x1b[200~y\x1b[201~")
        view.until_shown("Stop web-000?")
        view.terminal.press("n?\x1b[200~q\x1b[201~q/\x1b[200~-49\x1b[201~")
        view.until_shown("filter -49_  10 of 500")
        view.terminal.press("\r\x1b[200~q\x1b[201~q")
        assert view.terminal.end() == 0
    assert {verb for verb, _ in requests} <= {"ping", "stats"}


@pytest.mark.integration
def test_a_resized_terminal_gets_a_new_frame(pool: RealPool) -> None:
    with answering(pool, many(50)), top(pool) as view:
        view.until_shown("1/50")
        for columns, lines in ((132, 40), (40, 12), (80, 24)):
            view.resize(columns, lines)
            frame = view.until(lambda shown, last=lines: "quit" in shown[last - 1])
            assert len(frame) == lines
            assert "50 servers" in frame[0]
            assert any(line.startswith("NAME") for line in frame)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("ending", "status"), [("q", 0), ("\x03", 130), (signal.SIGTERM, -15), (signal.SIGHUP, -1)]
)
def test_the_terminal_is_as_before_whatever_ends_the_view(
    pool: RealPool, ending: str | signal.Signals, status: int
) -> None:
    with answering(pool, many(3)), top(pool) as view:
        before = view.terminal.modes()
        view.until_shown("web-002")
        assert view.terminal.modes() != before
        if isinstance(ending, str):
            view.terminal.press(ending)
        else:
            os.kill(view.terminal.process.pid, ending)
        assert view.terminal.end() == status
        assert view.terminal.modes() == before
        assert view.terminal.shown.endswith("\x1b[?25h\x1b[?1049l")


@pytest.mark.integration
@pytest.mark.parametrize(("ending", "status"), [("q", 0), (signal.SIGTERM, -15)])
def test_a_terminal_that_takes_no_output_holds_up_neither_keys_nor_the_end(
    pool: RealPool, ending: str | signal.Signals, status: int
) -> None:
    with answering(pool, many(50)) as requests, top(pool, "--interval", "0.1s", size=(200, 50)) as view:
        before = view.terminal.modes()
        view.until_shown("web-002")
        view.terminal.press("\x13")  # Ctrl-S
        for columns in range(100, 200):  # each is a whole frame: more than a terminal's buffer holds
            view.terminal.resize(columns, 50)
        view.terminal.press("r")
        wait_until(lambda: "restart" in [verb for verb, _ in requests])
        if isinstance(ending, str):
            view.terminal.press(ending)
        else:
            os.kill(view.terminal.process.pid, ending)
        assert view.terminal.end() == status
        assert view.terminal.modes() == before
        assert view.terminal.shown.endswith("\x1b[?25h\x1b[?1049l")


@pytest.mark.integration
def test_unexpected_answer_is_reported_and_the_last_figures_stay(pool: RealPool) -> None:
    items: list[Any] = many(1)
    with answering(pool, items), top(pool, "--interval", "0.1s") as view:
        before = view.terminal.modes()
        view.until_shown("web-000")
        items.append("no object")
        lines = view.until_shown("the supervisor's answer is not understood")
        assert any(line.startswith("web-000") for line in lines)
        view.terminal.press("q")
        assert view.terminal.end() == 0
        assert view.terminal.modes() == before


@pytest.mark.integration
def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(pool: RealPool) -> None:
    script = "set -m; poolctl top; echo stopped-$?; stty -a | tr ';' '\\n' | grep -w icanon; read x; fg; echo over-$?"
    with answering(pool, many(3)), Terminal(pool, shell=script) as terminal:
        view = Top(terminal, 80, 24)
        view.until_shown("web-002")
        terminal.press("\x1a")
        view.until_shown("stopped-148")
        view.until(lambda lines: any("icanon" in line and "-icanon" not in line for line in lines))
        assert terminal.shown.count("\x1b[?1049l") == 1
        terminal.press("\n")
        terminal.until(
            lambda shown: shown.count("\x1b[?1049h") == 2 and "web-002" in shown.rpartition("1049h")[2]
        )
        terminal.press("q")
        terminal.until(lambda shown: "over-0" in shown)


@pytest.mark.integration
def test_colours_can_be_turned_off(pool: RealPool) -> None:
    with answering(pool, many(3)), top(pool, env={"NO_COLOR": "1", "TERM": "xterm-256color"}) as view:
        view.until_shown("web-002")
        assert view.selected().startswith("web-000")
        view.terminal.press("q")
        assert view.terminal.end() == 0
    assert "\x1b[3" not in view.terminal.shown.replace("\x1b[3;1H", "")
    assert "32m" not in view.terminal.shown


@pytest.mark.heavy
@pytest.mark.integration
def test_a_killed_supervisor_is_waited_for(pool: RealPool, until: Any) -> None:
    pool.ok("start")
    with top(pool, "--interval", "0.2s") as view:
        view.until_shown("orders")
        supervisor = pool.info()["supervisor_pid"]
        os.kill(supervisor, signal.SIGKILL)
        until(lambda: pool.info()["supervisor_pid"] != supervisor)
        pool.ok("stop", "orders")
        view.until_shown("○ stopped")


@pytest.mark.integration
def test_a_stopped_pool_is_reported(pool: RealPool) -> None:
    pool.ok("start")
    with top(pool, "--interval", "0.2s") as view:
        view.until_shown("orders")
        pool.ok("stop")
        view.until_shown("no supervisor")
        view.terminal.press("q")
        assert view.terminal.end() == 0


@pytest.mark.integration
def test_tab_shows_the_routes_of_the_gateway_and_the_servers_again(pool: RealPool) -> None:
    gateway = {"state": "running", "pid": 7, "addresses": ["http://127.0.0.1:80"], "routes": 1}
    route = {"alias": "shop", "path": "/shop", "to": ["web-001"], "way": "http", "requests": 5}

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        if verb == "routes":
            return result(route)
        return result(*many(2), name="shop", gateway=gateway)

    place = pool.runtime / pool_key(str(pool.directory / "pool.toml"))
    place.mkdir(parents=True, mode=0o700, exist_ok=True)
    with stand_in(place / "control.sock", answer), top(pool, "--interval", "0.1s") as view:
        view.until_shown("gateway")
        view.until_shown("web-001")
        view.terminal.press("\t")
        view.until(lambda lines: any(line.split()[:3] == ["shop", "/shop", "http"] for line in lines))
        view.terminal.press("N")
        view.until_shown("sorted by name")
        view.terminal.press("s")  # no action on a route
        view.terminal.press("\t")
        view.until_shown("web-001")
        view.terminal.press("q")
        assert view.terminal.end() == 0


@pytest.mark.parametrize(
    ("key", "state", "action"),
    [
        ("r", "running", ServerAction("restart", "web", "restarting", "restarted")),
        ("s", "running", ServerAction("stop", "web", "stopping", "stopped", "Stop web?")),
        ("s", "failed", ServerAction("start", "web", "starting", "started")),
        ("s", "disabled", ServerAction("enable", "web", "enabling", "enabled")),
        (
            "d",
            "running",
            ServerAction("drain", "web", "draining", "out of rotation", "Take web out of rotation?"),
        ),
        ("d", "draining", ServerAction("undrain", "web", "undraining", "back in rotation")),
        ("+", "running", ServerAction("scale", "web", "scaling", "has 3 workers", workers=3)),
        (
            "-",
            "running",
            ServerAction("scale", "web", "scaling", "has 1 worker", "Scale web down to 1 worker?", 1),
        ),
    ],
)
def test_a_key_sends_its_verb(key: str, state: str, action: ServerAction) -> None:
    assert action_of(key, from_json(MeasuredServer, item("web", state=state, workers=2))) == action
    workers = {"workers": action.workers} if action.verb == "scale" else {}
    assert action.body() == {
        "selector": {"targets": ["web"]}, "options": {"wait": True, "progress": False, **workers}
    }  # fmt: skip


def test_the_last_worker_is_not_scaled_away() -> None:
    assert action_of("-", from_json(MeasuredServer, item("web", workers=1))) is None
    assert action_of("x", from_json(MeasuredServer, item("web"))) is None


@pytest.mark.loop(run=run_in_virtual_time)
async def test_notice_has_its_whole_time_after_another_one_and_a_question_stays() -> None:
    line = NoticeLine(lambda: None)
    line.show("first")
    await asyncio.sleep(3)
    line.show("second", "green")
    for seconds, notice in ((3.9, Notice("second", "green")), (0.2, None)):
        await asyncio.sleep(seconds)
        assert line.notice == notice
    line.show("third", "red", 60)
    await asyncio.sleep(59)
    line.show("Stop web?", seconds=None)
    await asyncio.sleep(600)
    assert line.notice == Notice("Stop web?")


PAGE_DOWN, PAGE_UP, LEFT, RIGHT, BACKSPACE, ESCAPE = "\x1b[6~", "\x1b[5~", "\x1b[D", "\x1b[C", "\x7f", "\x1b"


@pytest.mark.integration
def test_keys_move_the_selection_sort_filter_and_pause(pool: RealPool) -> None:
    with answering(pool, many(60)), top(pool, "--interval", "0.1s") as view:
        view.until_shown("1/60")

        def press(keys: str, *shown: str, selected: str = "") -> None:
            view.terminal.press(keys)
            for words in shown:
                view.until_shown(words)
            if selected:
                view.until(lambda _: view.selected().startswith(selected))

        press("G", "60/60", selected="web-059")
        press("k", "59/60", selected="web-058")
        press("g", "1/60", selected="web-000")
        press(PAGE_DOWN, "20/60", selected="web-019")
        press(PAGE_UP, "1/60", selected="web-000")
        press(">", "sorted by name", selected="web-000")
        press("<", "sorted by problems")
        press(RIGHT, "sorted by name")
        press(LEFT, "sorted by problems")
        press("N", "sorted by name")
        press("N", "sorted by name, reversed", selected="web-059")
        press("/05x", "filter 05x_  0 of 60", "keep the filter")
        press(BACKSPACE, "filter 05_  11 of 60", selected="web-059")
        press("\x1b[B", selected="web-058")
        press("\r", "filter 05  11 of 60", "? help")
        press("/" + "\x15", "filter _  60 of 60")
        press("3", "filter 3_  15 of 60")
        view.terminal.press(ESCAPE)
        view.until(lambda lines: not any("filter 3" in line for line in lines))
        press("/9\r", "filter 9  6 of 60")
        view.terminal.press(ESCAPE)
        view.until(lambda lines: not any("filter 9" in line for line in lines))
        press(" ", "paused: press Space to resume")
        view.terminal.press(" ")
        view.until(lambda lines: not any("paused" in line for line in lines))
        press("\t", "the pool has no gateway")
        press("q")
        assert view.terminal.end() == 0


@pytest.mark.integration
def test_help_is_scrolled_and_any_other_key_leaves_it(pool: RealPool) -> None:
    with answering(pool, many(3)), top(pool, size=(80, 12)) as view:
        view.until_shown("web-002")
        view.terminal.press("?")
        assert view.until_shown("Keys")[1] == " Look"
        for keys, first in [
            ("j", "↑ ↓  j k"),
            ("k", "Look"),
            ("k", "Look"),
            (PAGE_DOWN, "n N find"),
            (PAGE_UP, "Look"),
        ]:
            view.terminal.press(keys)
            view.until(lambda lines, first=first: first in lines[1])
        view.terminal.press("q")
        view.until_shown("web-002")
        view.terminal.press("h")
        view.until_shown("Keys")
        view.terminal.press("xq")
        assert view.terminal.end() == 0


@pytest.mark.integration
def test_action_that_fails_is_reported_with_the_first_line_of_its_reason(pool: RealPool) -> None:
    errors = [
        {
            "code": 1323,
            "error": "ErrorServer",
            "name": "web",
            "message": "exited with status 3\nand more",
            "hint": "",
        }
    ]

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any] | None:
        if verb == "drain":
            return None
        if verb == "scale":
            return result(item("web", workers=3))
        return result(item("web", workers=2), name="shop", errors=errors if verb == "restart" else [])

    place = pool.runtime / pool_key(str(pool.directory / "pool.toml"))
    place.mkdir(parents=True, mode=0o700, exist_ok=True)
    with stand_in(place / "control.sock", answer) as requests, top(pool) as view:
        view.until_shown("running")
        view.terminal.press("r")
        lines = view.until_shown(" web: exited with status 3")
        assert "and more" not in "\n".join(lines)
        view.terminal.press("+")
        view.until_shown("web has 3 workers")
        view.terminal.press("-x")
        view.terminal.press("dy")
        view.until_shown(" web: the supervisor")
        view.terminal.press("q")
        assert view.terminal.end() == 0
    asked = [
        (verb, body["options"].get("workers")) for verb, body in requests if verb not in ("ping", "stats")
    ]
    assert asked == [("restart", None), ("scale", 3), ("drain", None)]


@pytest.mark.integration
def test_log_that_cannot_be_shown_is_reported_and_an_open_one_is_left_by_its_keys(pool: RealPool) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any] | None:
        if verb == "show" and body["selector"] == {"targets": ["gone"]}:
            return None
        if verb == "show" and body["selector"] == {"targets": ["removed"]}:
            return result(name="shop")
        return result(*([item("gone"), item("removed")] if verb == "stats" else []), item("web"), name="shop")

    place = pool.runtime / pool_key(str(pool.directory / "pool.toml"))
    place.mkdir(parents=True, mode=0o700, exist_ok=True)
    with stand_in(place / "control.sock", answer), top(pool) as view:
        view.until_shown("gone")
        view.terminal.press("l")
        view.until_shown(" gone: ")
        view.terminal.press("jl")
        view.until_shown(" removed: it has been removed")
        view.terminal.press("jl")
        view.until_shown("no output yet")
        view.terminal.press("q")
        view.until_shown("NAME")
        view.terminal.press("\r")
        view.until_shown("no output yet")
        view.terminal.press("lq")
        assert view.terminal.end() == 0
