from __future__ import annotations

import io
import sys
import threading
from typing import Any

import pytest
from rich.console import Console

from poolctl.cli import supervisor_requests
from poolctl.cli.supervisor_requests import Progress
from poolctl.control.answers import ProgressLine, ServerStep
from tests.deadline import wait_until


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def step(name: str, state: str) -> ProgressLine:
    ready = state == "running"
    return ProgressLine(
        progress=ServerStep(name=name, bind="", state=state, ready=ready, message="", done=ready)
    )


def test_line_counts_and_names_the_awaited_servers() -> None:
    shown = Progress("start")
    assert shown.line() == "start …"
    for name in ("a", "b", "c", "d", "e"):
        shown(step(name, "starting"))
    shown(step("a", "running"))
    assert shown.line() == "start: 1 of 5, waiting for b, c, d and 1 more"
    for name in ("b", "c", "d", "e"):
        shown(step(name, "running"))
    assert shown.line() == "start: 5 of 5"


def test_server_that_serves_while_it_is_restarted_is_awaited() -> None:
    def running(name: str, *, done: bool) -> ProgressLine:
        reached = ServerStep(name=name, bind="", state="running", ready=True, message="", done=done)
        return ProgressLine(progress=reached)

    shown = Progress("restart")
    for name in ("a", "b"):
        shown(running(name, done=False))
    assert shown.line() == "restart: 0 of 2, waiting for a, b"
    shown(running("a", done=True))
    assert shown.line() == "restart: 1 of 2, waiting for b"


def test_warnings_are_kept_and_an_empty_line_is_none() -> None:
    shown = Progress("stop")
    shown(ProgressLine(warning="slow"))
    shown(ProgressLine())
    assert shown.warnings == ["slow"]


def test_verbose_says_every_step_once_wherever_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("start", verbose=True) as shown:
        for state in ("starting", "starting", "running"):
            shown(step("a", state))
    assert capsys.readouterr().err == "a: starting\na: running, ready\n"


def test_a_terminal_sees_it_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(supervisor_requests, "DELAY_SECONDS", 0.01)
    with Progress("start") as shown:
        shown(step("slow", "starting"))
        wait_until(lambda: "waiting for slow" in terminal.getvalue())
        shown(step("slow", "running"))
        wait_until(lambda: "1 of 1" in terminal.getvalue())
    assert terminal.getvalue().endswith("\x1b[2K") or "\x1b[?25h" in terminal.getvalue()


def test_step_that_comes_while_the_display_is_made_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(supervisor_requests, "DELAY_SECONDS", 0)
    making, stepped = threading.Event(), threading.Event()
    status = Console.status

    def slow_status(console: Console, *args: Any, **keys: Any) -> Any:
        making.set()
        stepped.wait(60)
        return status(console, *args, **keys)

    monkeypatch.setattr(Console, "status", slow_status)
    with Progress("start") as shown:
        assert making.wait(60)
        shown(step("slow", "starting"))
        stepped.set()
        wait_until(lambda: "waiting for slow" in terminal.getvalue())


def test_a_quick_command_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("start") as shown:
        shown(step("quick", "running"))
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(("term", "quiet"), [("dumb", False), ("xterm", True)])
def test_progress_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, term: str, quiet: bool) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", term)
    assert not Progress("start", quiet=quiet)._enabled
