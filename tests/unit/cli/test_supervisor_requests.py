"""What a command asks of its supervisor, what it makes of the answer, and what it shows meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli.options import Selection
from poolctl.cli.outcome import Failure
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.supervisor_requests import (
    Progress,
    Request,
    ask,
    ask_for,
    ask_or_launch,
    ask_or_read_files,
    notify_systemd_of_keeper_pid,
    selected,
)
from poolctl.control.answers import ProgressLine, Result, ServerProgress
from poolctl.control.client import NoSupervisor, SupervisorEnded
from poolctl.control.pool_paths import pool_key
from poolctl.errors import ControlError
from poolctl.selection.selector import SelectorError
from tests.deadline import wait_until
from tests.stand_in import Send, always, item, result, stand_in
from tests.terminal import Screen

from .conftest import Command, Supervised


def step(name: str, state: str) -> ProgressLine:
    ready = state == "running"
    return ProgressLine(
        progress=ServerProgress(name=name, bind="", state=state, ready=ready, message="", done=ready)
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
        reached = ServerProgress(name=name, bind="", state="running", ready=True, message="", done=done)
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
    monkeypatch.setenv("TERM", "xterm")
    with Screen("stderr") as screen:
        with Progress("start") as shown:
            shown(step("slow", "starting"))
            wait_until(lambda: "waiting for slow" in screen.text())
            shown(step("slow", "running"))
            wait_until(lambda: "1 of 1" in screen.text())
        assert screen.text().endswith("\x1b[2K") or "\x1b[?25h" in screen.text()


def test_a_quick_command_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with Screen("stderr") as screen, Progress("start") as shown:
        shown(step("quick", "running"))
    assert screen.text() == ""


class Asked:
    """A command's request, of a pool in `directory` whose file need not exist."""

    def __init__(self, directory: Path, verb: str, *targets: str, **more: Any) -> None:
        self.request = Request(verb, selection=Selection(targets=[*targets]), **more)
        place = directory / "run" / pool_key(str(directory / "pool.toml"))
        self.pool = PoolRef([str(directory / "pool.toml")], str(place))


def test_answer_has_the_supervisors_items_errors_and_exit_code(
    directory: Path, supervised: Supervised
) -> None:
    asked = Asked(directory, "restart", "users", options={"wait": True, "shown": True})
    wrong = {"name": "orders", "message": "exited"}
    with supervised(always(item("users"), exit_code=1, errors=[wrong])) as requests:
        found = ask(asked.request, asked.pool)
        ask(replace(asked.request, verb="list"), asked.pool)
    assert (found.exit_code, [each.name for each in found.items], [each.message for each in found.errors]) == (
        1, ["users"], ["exited"],
    )  # fmt: skip
    assert (found.warnings, found.ended) == ((), None)
    assert [verb for verb, _ in requests] == ["restart", "list"]
    assert requests[0][1]["selector"] == asked.request.selection.selector().to_dict()
    assert requests[0][1]["options"] == {
        "timeout": None, "wait": True, "shown": True, "progress": False,
    }  # fmt: skip


def test_answer_without_items_and_with_items_that_are_none_are_told_apart(
    directory: Path, supervised: Supervised
) -> None:
    asked = Asked(directory, "list")
    answers: list[dict[str, Any]] = [{}, {"items": None, "errors": None}, {"items": [["users"]]}]

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        return answers[len(requests) - 1]

    with supervised(answer) as requests:
        for _ in range(2):
            found = ask(asked.request, asked.pool)
            assert (list(found.items), list(found.errors), found.exit_code) == ([], [], 0)
        with pytest.raises(ControlError, match="not understood"):
            ask(asked.request, asked.pool)


def test_warnings_on_the_way_precede_those_of_the_answer_each_once(
    directory: Path, supervised: Supervised
) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        for warning in ("slow", "late", "slow"):
            send({"warning": warning})
        return result(item("users"), warnings=["late", "old"])

    asked = Asked(directory, "start")
    with supervised(answer):
        assert ask(asked.request, asked.pool).warnings == ("slow", "late", "old")


def test_answer_that_ends_the_pool_returns_after_its_last_process(
    directory: Path, supervised: Supervised
) -> None:
    asked = Asked(directory, "stop")
    for get in (ask, lambda request, pool: ask_for(Result, request, pool)):
        with subprocess.Popen(["sleep", "0.2"]) as keeper:
            with supervised(always(ended=True, keeper_pid=keeper.pid)):
                assert get(asked.request, asked.pool).ended
            assert keeper.poll() is not None
    with subprocess.Popen(["sleep", "60"]) as keeper:
        with supervised(always(ended=False, keeper_pid=keeper.pid)):
            ask(asked.request, asked.pool)
        assert keeper.poll() is None
        keeper.kill()


@pytest.mark.parametrize(
    ("words", "changes"),
    [(["restart"], True), (["stop"], True), (["reload"], True), (["list"], False)],
)
def test_interrupted_change_says_that_it_continues(
    directory: Path, supervised: Supervised, words: list[str], changes: bool
) -> None:
    asked = Asked(directory, *words)

    async def interrupt(verb: str, body: dict[str, Any], send: Send) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        await asyncio.Event().wait()

    with supervised(interrupt), pytest.raises(Failure if changes else KeyboardInterrupt) as caught:
        ask(asked.request, asked.pool)
    if not isinstance(caught.value, Failure):
        return
    (wrong,) = caught.value.outcome.errors
    assert (caught.value.outcome.exit_code, wrong.message) == (130, "interrupted")
    assert wrong.hint == f"the {words[0]} continues in the background: poolctl status"


def test_supervisor_that_exits_while_it_is_asked_is_followed_by_its_successor(
    directory: Path, supervised: Supervised
) -> None:
    asked = Asked(directory, "list")

    async def exits(verb: str, body: dict[str, Any], send: Send) -> None:
        os.unlink(asked.pool.socket)

    with supervised(exits), pytest.raises(NoSupervisor):
        ask(asked.request, asked.pool)

    async def hangs_up(verb: str, body: dict[str, Any], send: Send) -> None:
        return None

    with supervised(hangs_up) as requests, pytest.raises(SupervisorEnded):
        ask(replace(asked.request, verb="restart"), asked.pool)
    assert len(requests) == 1


def test_nothing_is_launched_for_a_named_pool_or_without_files(directory: Path) -> None:
    asked = Asked(directory, "start")
    with pytest.raises(NoSupervisor):
        ask_or_launch(asked.request, PoolRef([], asked.pool.directory))
    named = replace(asked.request, place=Place(pool="shop"))
    with pytest.raises(NoSupervisor):
        ask_or_launch(named, asked.pool)


def test_mistake_of_a_command_is_reported_before_anything_is_launched(
    directory: Path,
) -> None:
    asked = Asked(directory, "start")
    wrong = replace(asked.request, selection=Selection(name=["("]))
    with pytest.raises(SelectorError):
        ask_or_launch(wrong, asked.pool)
    assert not (directory / "run").exists()


def test_launched_pool_is_asked_and_another_of_its_name_is_a_warning(
    directory: Path, supervised: Supervised
) -> None:
    asked = Asked(directory, "start")
    other = directory / "run" / "other"
    other.mkdir(parents=True, mode=0o700)
    (other / "control.sock").touch()
    (other / "info.json").write_text('{"name": "blog", "files": ["/srv/blog.toml"]}')
    launches = []

    def launch(files: list[str], env: object) -> None:
        launches.append(files)
        stack.enter_context(supervised(always(item("users"), warnings=["slow"])))
        Path(asked.pool.directory, "info.json").write_text(f'{{"name": "{name}"}}')

    for name in ("shop", "blog"):
        with ExitStack() as stack:
            found = ask_or_launch(asked.request, asked.pool, launch)
        assert ([each.name for each in found.items], found.warnings[0]) == (["users"], "slow")
        assert [text.partition(":")[0] for text in found.warnings[1:]] == (
            ["another pool is also named 'blog'"] if name == "blog" else []
        )
    assert launches == [asked.pool.files] * 2


def looked(request: Request, pool: PoolRef, *, measured: bool = False) -> Result:
    return selected(request.place, request.selection, pool, command=request.verb, measured=measured)


def test_servers_of_a_pool_that_does_not_run_are_those_of_its_files(directory: Path) -> None:
    asked = Asked(directory, "list", "users")
    found = looked(asked.request, asked.pool)
    assert ([each.name for each in found.items], found.exit_code) == (["users"], 0)
    shown, answer = ask_or_read_files(Asked(directory, "show", "users").request, asked.pool)
    assert ([each.name for each in shown], answer) == (["users"], None)
    without = PoolRef([], asked.pool.directory)
    for look in (looked, ask_or_read_files):
        with pytest.raises(NoSupervisor):
            look(asked.request, without)


def test_servers_of_a_running_pool_are_asked_for_with_or_without_their_figures(
    directory: Path, supervised: Supervised
) -> None:
    asked = Asked(directory, "list", "users")
    show = Asked(directory, "show", "users").request
    with supervised(always({**item("users"), "config": {}})) as requests:
        for measured in (False, True):
            found = looked(asked.request, asked.pool, measured=measured)
            assert [each.name for each in found.items] == ["users"]
        shown, answer = ask_or_read_files(show, asked.pool)
        assert ([each.name for each in shown], answer and answer.exit_code) == (["users"], 0)
    assert [(verb, body["options"].get("files")) for verb, body in requests] == [
        ("list", None), ("stats", True), ("show", None),
    ]  # fmt: skip
    with supervised(always(exit_code=4, errors=[{"message": "nothing matches"}])):
        for get in (looked, ask_or_read_files):
            with pytest.raises(Failure) as caught:
                get(asked.request, asked.pool)
            assert (caught.value.outcome.exit_code, str(caught.value)) == (4, "nothing matches")


@pytest.mark.parametrize("ready", [True, False])
def test_service_manager_is_told_the_keeper_and_whether_the_pool_is_ready(
    directory: Path, supervised: Supervised, monkeypatch: pytest.MonkeyPatch, ready: bool
) -> None:
    asked = Asked(directory, "start")
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(directory / "notify"))
    told.settimeout(10)
    monkeypatch.setenv("NOTIFY_SOCKET", str(directory / "notify"))
    monkeypatch.delenv("SYSTEMD_EXEC_PID", raising=False)
    notify_systemd_of_keeper_pid(asked.pool, ready=ready)  # it has ended already
    with supervised(always(keeper_pid=4711)) as requests:
        notify_systemd_of_keeper_pid(asked.pool, ready=ready)
        assert told.recv(1000).decode().splitlines() == ["MAINPID=4711", *(["READY=1"] if ready else [])]
        monkeypatch.setenv("SYSTEMD_EXEC_PID", "1")
        notify_systemd_of_keeper_pid(asked.pool, ready=ready)
        monkeypatch.delenv("NOTIFY_SOCKET")
        monkeypatch.delenv("SYSTEMD_EXEC_PID")
        notify_systemd_of_keeper_pid(asked.pool, ready=ready)
    assert len(requests) == 1
    told.close()


def test_steps_are_wanted_by_a_terminal_and_by_verbose_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert not Progress("start").wanted
    assert Progress("start", verbose=True).wanted
    assert not Progress("start", verbose=True, quiet=True).wanted
    with Screen("stderr"):
        assert Progress("start").wanted
        assert not Progress("start", quiet=True).wanted


def test_the_supervisors_own_words_about_usage_are_passed_on(
    poolctl: Command, supervised: Supervised
) -> None:
    error = {
        "code": 1320,
        "error": "ErrorParamEmpty",
        "message": "no server matches 'x'",
        "hint": "did you mean 'y'?",
    }
    with supervised(always(exit_code=4, errors=[error])):
        for command in (["list", "x"], ["show", "x"], ["walk", "x"], ["logs", "x"]):
            assert poolctl(*command) == (4, "", "error: no server matches 'x'\n  hint: did you mean 'y'?\n")


class Launches:
    """Launches that end in a stand-in, after as many as the test says that do not."""

    def __init__(self, place: Path, answers: dict[str, Any], failures: int = 0, written: str = "") -> None:
        self.place = place
        self.written = written
        self.answers = answers
        self.failures = failures
        self.files: list[list[str]] = []
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.stack = ExitStack()

    def __call__(self, files: list[str], env: object) -> None:
        self.files.append(files)
        if len(self.files) <= self.failures:
            return

        async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any] | None:
            found: dict[str, Any] | None = self.answers.get(verb, result())
            return found

        self.place.mkdir(parents=True, mode=0o700, exist_ok=True)
        with (self.place / "supervisor.log").open("a") as log:
            log.write(self.written)
        self.requests = self.stack.enter_context(stand_in(self.place / "control.sock", answer))

    @property
    def verbs(self) -> list[tuple[str, Any]]:
        return [(verb, body.get("options", {}).get("idle")) for verb, body in self.requests]


def launched(
    directory: Path,
    answers: dict[str, Any],
    failures: int = 0,
    written: str = "",
    **values: Any,
) -> tuple[Any, Launches]:
    """What a start without a supervisor ends in, and its launches."""
    request = Request("start", selection=Selection(**values))
    pool = find_pool(request.place)
    launches = Launches(Path(pool.directory), answers, failures, written)
    try:
        with launches.stack:
            return ask_or_launch(request, pool, launches), launches
    except (ControlError, Failure) as failure:
        return failure, launches


def test_supervisor_that_was_stopped_before_it_was_asked_is_launched_again(directory: Path) -> None:
    found, launches = launched(directory, {"start": result(item("users"))}, failures=1)
    assert [each.name for each in found.items] == ["users"]
    assert len(launches.files) == 2
    found, launches = launched(directory, {}, failures=100)
    assert isinstance(found, NoSupervisor)
    assert 2 <= len(launches.files) < 100


def test_supervisor_that_was_launched_for_nothing_is_ended(directory: Path) -> None:
    error = {"code": 4, "error": "E", "message": "no server matches"}
    nothing = result(exit_code=4, errors=[error])
    stopped = result(ended=True, keeper_pid=0)
    found, launches = launched(directory, {"start": nothing, "stop": stopped})
    assert (found.exit_code, found.ended) == (4, True)
    assert launches.verbs == [("start", None), ("stop", True)]
    found, launches = launched(directory, {"start": nothing, "stop": result()})
    assert found.ended is False, "it has work by now"
    found, launches = launched(directory, {"start": result()})
    assert isinstance(found, Failure)
    assert found.outcome.exit_code == 5
    assert launches.verbs == [("start", None), ("stop", True)]
    found, launches = launched(directory, {"start": result()}, allow_empty=True)
    assert (found.items, launches.verbs) == ((), [("start", None)])


def test_supervisor_that_ends_while_it_is_asked_has_written_why(directory: Path) -> None:
    place = Path(find_pool(Place()).directory)
    place.mkdir(parents=True, mode=0o700)
    (place / "supervisor.log").write_text("from earlier\n")
    found, _ = launched(directory, {"start": None})
    assert isinstance(found, SupervisorEnded)
    assert "from earlier" not in found.message
    found, launches = launched(directory, {"start": None, "stop": None}, written="it is broken\n")
    assert isinstance(found, ControlError)
    assert found.message == "the supervisor could not start: it is broken"
    assert ("stop", True) in launches.verbs
