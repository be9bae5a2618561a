"""The pool in the foreground: its signals, its output, its events, its end."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli.options import Selection
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import show
from poolctl.cli.run_session.session import RunSession
from poolctl.cli.run_session.signals import blocked_signals, stopping_signals
from poolctl.cli.supervisor_requests import Request
from poolctl.control.client import write_exit
from poolctl.control.pool_paths import pool_key
from poolctl.keeper import wire
from poolctl.supervisor.launch import LaunchedKeeper
from tests.deadline import wait_until
from tests.notify_socket import NotifySocket
from tests.stand_in import Send, result, stand_in
from tests.stand_in import item as item_of


class Launched:
    """What `run` launches: a stand-in for the supervisor, which ends when the test or an answer ends it."""

    def __init__(self, directory: Path, answers: dict[str, Any]) -> None:
        self.place = directory / "run" / pool_key(str(directory / "pool.toml"))
        self.answers = answers
        self.error = io.StringIO()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._stack = ExitStack()
        self._keepers = -1

    def run(
        self,
        *command: str,
        noted: Sequence[int] = (),
        output: str | None = None,
        quiet: bool = False,
        allow_empty: bool = False,
        objects: bool = False,
        limit_seconds: float | None = None,
    ) -> int:
        """The exit status of `poolctl run`, or of `run -- COMMAND`; signals that it has `noted` came before."""
        signals = stopping_signals(os.environ)
        with redirect_stderr(self.error), blocked_signals(signals):
            session = RunSession(
                Request("start", Place(quiet=quiet), Selection(allow_empty=allow_empty)),
                find_pool(Place()),
                self._launch(),
                command=[*command],
                path=shutil.which(command[0]) or "" if command else "",
                stop_signals=signals,
                limit_seconds=limit_seconds,
                objects=objects,
                output=output,
                watch=False,
                prints_logs=not (command or output),
                timestamps=False,
                abort_on_exit=False,
                keeps_logs=True,
            )
            outcome = asyncio.run(session.run(noted, 0))
            outcome.form = output or ""
            return show(outcome)

    def _launch(self) -> LaunchedKeeper:
        self.place.mkdir(parents=True, mode=0o700)
        self.requests = self._stack.enter_context(stand_in(self.place / "control.sock", self._answer))
        kept, given = wire.pair()
        self._keepers = kept.detach()
        return LaunchedKeeper(0, given.detach())

    async def _answer(self, verb: str, body: dict[str, Any], send: Send) -> dict[str, Any] | None:
        found = self.answers.get(verb, result())
        if inspect.iscoroutinefunction(found):
            found = await found(body, send)
        elif callable(found):
            found = found(body)
        return found if isinstance(found, dict) else None

    def end(self) -> None:
        os.close(self._keepers)
        self._keepers = -1

    def close(self) -> None:
        if self._keepers >= 0:
            self.end()
        self._stack.close()

    @property
    def orders(self) -> list[tuple[str, Any]]:
        """The verbs that change something, with their options."""
        ordered = ("start", "stop", "reload")
        return [(verb, body.get("options")) for verb, body in self.requests if verb in ordered]

    def when_ready(self, act: Callable[[], object], *, said: str = "Ctrl-C to stop") -> threading.Thread:
        """Act in a thread once the pool stays, or once something else is said."""

        def wait() -> None:
            wait_until(lambda: said in self.error.getvalue())
            act()

        thread = threading.Thread(target=wait)
        thread.start()
        return thread


Launching = Callable[..., Launched]


@pytest.fixture
def launching(directory: Path) -> Iterator[Launching]:
    """`launching(verb=answer, …)`: what `run` launches; a function of the request may answer.

    An async function also gets the function that sends what comes before the answer.
    """
    made: list[Launched] = []

    def prepare(**answers: Any) -> Launched:
        launched = Launched(directory, answers)
        made.append(launched)
        return launched

    yield prepare
    for each in made:
        each.close()


def interrupt(number: int = signal.SIGINT) -> None:
    """A signal to the main thread: other threads of the test runner do not block it."""
    signal.pthread_kill(threading.main_thread().ident or 0, number)


WEB = item_of("web")


def test_run_names_the_addresses_and_ends_with_its_pool(launching: Launching) -> None:
    gateway = {"state": "running", "addresses": ["http://127.0.0.1:80"], "problem": "", "routes": 1}
    launched = launching(start=result(WEB, gateway=gateway))
    thread = launched.when_ready(launched.end)
    assert launched.run() == 0
    thread.join()
    assert launched.error.getvalue() == (
        "web  http://127.0.0.1:8081\nthe gateway serves http://127.0.0.1:80\n1 server ready, Ctrl-C to stop\n"
    )
    assert [verb for verb, _ in launched.orders] == ["start", "stop"]
    assert launched.orders[1] == ("stop", {})
    verbs = [verb for verb, _ in launched.requests]
    assert verbs.count("events") >= 1
    assert verbs.count("show") == 1


@pytest.mark.parametrize(
    ("items", "line"),
    [
        ([WEB, item_of("off", state="disabled", ready=False), item_of("x", state="sleeping", ready=False)],
         "1 server ready, Ctrl-C to stop"),
        ([WEB, item_of("tool", state="stopped", ready=False, on_demand=True)], "1 server ready, Ctrl-C to stop"),
        ([WEB, item_of("slow", ready=False)], "1 of 2 servers ready, Ctrl-C to stop"),
    ],
)  # fmt: skip
def test_ready_line_counts_the_servers_that_should_run(
    launching: Launching, items: list[dict[str, Any]], line: str
) -> None:
    launched = launching(start=result(*items))
    thread = launched.when_ready(launched.end)
    assert launched.run(output="json") == 0
    thread.join()
    assert launched.error.getvalue() == f"{line}\n"


def test_exit_code_is_that_of_a_pool_that_ended_itself(launching: Launching) -> None:
    launched = launching(start=result(WEB))

    def end() -> None:
        write_exit(str(launched.place), status=9, reason="web has failed", keeper_pid=0)
        launched.end()

    thread = launched.when_ready(end)
    assert launched.run() == 9
    thread.join()
    assert launched.error.getvalue().splitlines()[-1] == "the pool has ended: web has failed"


def test_exit_code_is_that_of_a_server_whose_exit_is_told_late(launching: Launching) -> None:
    ended = {
        "seq": 1, "kind": "lifecycle", "server": "web", "event": "worker ended", "time": "2026-01-31T12:00:00Z",
        "message": "", "severity": "info", "status": 3,
    }  # fmt: skip

    async def events(body: dict[str, Any], send: Send) -> dict[str, Any]:
        if body["options"].get("follow"):
            await asyncio.Event().wait()
        send({"event": ended})
        return result()

    failed = result(item_of("web", state="failed", ready=False))
    launched = launching(start=result(WEB), status=failed, events=events)
    thread = launched.when_ready(launched.end, said="every server has ended")
    assert launched.run() == 3
    thread.join()


def test_hangup_of_a_terminal_stops_the_pool(launching: Launching) -> None:
    launched = launching(start=result(WEB))
    thread = launched.when_ready(lambda: interrupt(signal.SIGHUP))
    assert launched.run() == 0
    thread.join()
    assert launched.orders[1:] == [("stop", {})]


def test_third_signal_leaves_the_rest_to_the_keeper(launching: Launching) -> None:
    def stop(body: dict[str, Any]) -> None:
        interrupt(signal.SIGTERM)

    launched = launching(start=result(WEB), stop=stop)
    thread = launched.when_ready(interrupt)
    assert launched.run() == 130
    thread.join()
    assert launched.orders[1:] == [("stop", {}), ("stop", {"kill": True, "deps": False})]


def test_stop_that_takes_too_long_ends_in_a_kill(launching: Launching) -> None:
    launched = launching(start=result(WEB))

    async def stop(body: dict[str, Any], send: Send) -> dict[str, Any]:
        if not body["options"]:
            await asyncio.Event().wait()
        return result()

    launched.answers["stop"] = stop
    thread = launched.when_ready(launched.end)
    begun = time.monotonic()
    assert launched.run(limit_seconds=2.0) == 0
    thread.join()
    assert time.monotonic() - begun >= 1.0
    assert launched.orders[1:] == [("stop", {}), ("stop", {"kill": True, "deps": False})]


@pytest.mark.parametrize(
    ("number", "command", "code"),
    [(signal.SIGINT, (), 130), (signal.SIGTERM, (), 0), (signal.SIGTERM, ("true",), 143)],
)
def test_signal_during_the_launch_stops_the_pool_once_it_is_launched(
    launching: Launching, number: int, command: tuple[str, ...], code: int
) -> None:
    launched = launching()
    assert launched.run(*command, noted=[number]) == code
    assert launched.orders == [("stop", {})]


def test_reason_of_a_supervisor_that_did_not_start_is_what_it_wrote(launching: Launching) -> None:
    launched = launching(start=lambda body: (launched.place / "supervisor.log").write_text("it is broken\n"))
    assert launched.run() == 8
    assert launched.error.getvalue().startswith("error: the supervisor could not start: it is broken\n")


def test_hangup_reloads_under_a_service_manager(
    launching: Launching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notified = NotifySocket(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", notified.path)
    change = {"name": "web", "bind": "", "change": "restart", "keys": ["app"], "message": ""}
    launched = launching(start=result(WEB), reload=result(WEB, changes=[change]))

    def hang_up() -> None:
        interrupt(signal.SIGHUP)
        notified.await_line("READY=1", times=2)
        launched.end()

    thread = launched.when_ready(hang_up)
    assert launched.run() == 0
    thread.join()
    assert [line.partition("=")[0] for line in notified.lines] == [
        "READY", "STATUS", "RELOADING", "MONOTONIC_USEC", "READY", "STOPPING",
    ]  # fmt: skip
    assert "STATUS=1 server ready" in notified.lines
    notified.close()
    assert [verb for verb, _ in launched.orders] == ["start", "reload", "stop"]
    assert launched.error.getvalue().splitlines()[-2:] == ["~ web: app", "1 restarted"]


def test_reload_that_is_not_answered_is_reported(
    launching: Launching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notified = NotifySocket(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", notified.path)
    launched = launching(start=result(WEB), reload=lambda body: None)
    threads = [
        launched.when_ready(lambda: interrupt(signal.SIGHUP)),
        launched.when_ready(launched.end, said="error: the supervisor ended before it answered\n"),
    ]
    assert launched.run() == 0
    for thread in threads:
        thread.join()
    notified.close()


def test_lines_about_the_pool_are_objects_if_its_output_is(launching: Launching) -> None:
    launched = launching(start=result(WEB))
    thread = launched.when_ready(launched.end)
    assert launched.run(objects=True) == 0
    thread.join()
    assert (
        json.loads(launched.error.getvalue().splitlines()[-1])["message"] == "1 server ready, Ctrl-C to stop"
    )


@pytest.mark.parametrize(
    ("answer", "allow_empty", "stays", "code"),
    [
        ({"items": [item_of("web")]}, False, True, 0),
        ({"items": []}, False, False, 5),
        ({"items": []}, True, True, 0),
        ({"items": [], "without_servers": True}, False, True, 0),
        ({"items": [item_of("web", state="failed")], "exit_code": 1}, False, False, 1),
        ({"items": [item_of("web"), item_of("api", state="failed")], "exit_code": 1}, False, True, 0),
        ({"items": [item_of("web", state="backoff")], "exit_code": 1}, False, True, 0),
        ({"items": [item_of("web")], "exit_code": 4}, False, False, 4),
    ],
)
def test_pool_stays_if_there_is_something_to_wait_for(
    launching: Launching, answer: dict[str, Any], allow_empty: bool, stays: bool, code: int
) -> None:
    launched = launching(start={**result(), **answer})
    thread = launched.when_ready(launched.end) if stays else None
    assert launched.run(allow_empty=allow_empty) == code
    assert ("Ctrl-C to stop" in launched.error.getvalue()) is stays
    if thread is not None:
        thread.join()


def test_command_does_not_run_if_a_server_has_failed_and_its_failure_is_reported_once(
    launching: Launching,
) -> None:
    died = {"event": "worker ended", "time": "2026-01-31T12:00:00Z", "message": "", "severity": "info"}

    async def start(body: dict[str, Any], send: Send) -> dict[str, Any]:
        errors = [{"code": 1, "error": "E", "name": "api", "message": "no disk (app.py, line 3)"}]
        return result(item_of("web"), item_of("api", state="failed"), exit_code=1, errors=errors)

    async def events(body: dict[str, Any], send: Send) -> dict[str, Any] | None:
        for seq, (server, cause) in enumerate([("api", "no disk"), ("web", "no memory")], 1):
            send(
                {
                    "event": {
                        **died,
                        "seq": seq,
                        "kind": "lifecycle",
                        "server": server,
                        "cause": cause,
                        "next": "n",
                    }
                }
            )
        return None if body["options"].get("follow") else result()

    launched = launching(start=start, events=events)
    assert launched.run("touch", "ran") == 1
    said = launched.error.getvalue()
    assert said.splitlines().count("error: api: no disk (app.py, line 3)") == 1
    assert "api: no disk; n" not in said
    assert said.splitlines().count("web: no memory; n") == 1
    assert not Path("ran").exists()


@pytest.mark.parametrize("output", [None, "json"])
def test_problems_are_reported_when_they_come_and_json_has_them_at_the_end(
    launching: Launching, capsys: pytest.CaptureFixture[str], output: str | None
) -> None:
    errors = [{"code": 1, "error": "E", "name": "api", "message": "exited"}]
    stopped = [item_of("web", state="stopped"), item_of("other", state="stopped")]

    async def start(body: dict[str, Any], send: Send) -> dict[str, Any]:
        send({"warning": "slow"})
        return result(WEB, exit_code=1, errors=errors, warnings=["slow", "old"])

    launched = launching(start=start, stop=result(*stopped))
    thread = launched.when_ready(launched.end, said="Ctrl-C to stop" if output else "error: api: exited\n")
    assert launched.run(output=output) == 0
    thread.join()
    if not output:
        assert "warning: slow\nwarning: old\nerror: api: exited\n" in launched.error.getvalue()
        return
    assert launched.error.getvalue().startswith("1 server ready, Ctrl-C to stop\n")
    document = json.loads(capsys.readouterr().out)
    assert ([each["message"] for each in document["errors"]], document["warnings"]) == (
        ["exited"],
        ["slow", "old"],
    )
    assert [(each["name"], each["state"]) for each in document["items"]] == [("web", "stopped")]


@pytest.mark.parametrize(
    ("keys", "printed"),
    [
        ({}, "web: killed\\x1b; restarting"),
        ({"quiet": True}, ""),
        ({"objects": True}, {"time": "2026-01-31T12:00:00Z", "server": "web",
                                    "message": "web: killed\x1b; restarting", "level": "warning"}),
    ],
)  # fmt: skip
def test_problem_of_a_server_is_printed_between_its_output(
    launching: Launching, keys: dict[str, Any], printed: Any
) -> None:
    event = {
        "seq": 1, "kind": "lifecycle", "server": "web", "event": "worker ended", "time": "2026-01-31T12:00:00Z",
        "message": "", "severity": "info", "cause": "killed\x1b", "next": "restarting",
    }  # fmt: skip

    async def events(body: dict[str, Any], send: Send) -> dict[str, Any]:
        send({"event": event})
        if body["options"].get("follow"):
            launched.end()
            await asyncio.Event().wait()
        return result()

    launched = launching(start=result(WEB), events=events)
    assert launched.run(**keys) == 0
    said = [line for line in launched.error.getvalue().splitlines() if "killed" in line]
    assert [json.loads(line) if isinstance(printed, dict) else line for line in said] == [printed] * bool(
        printed
    )
