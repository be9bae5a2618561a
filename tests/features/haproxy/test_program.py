"""Managing processes of HAProxy, with a program in its place that records its commands and answers as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.features.haproxy import _program
from poolctl.features.haproxy._program import HaproxyProcessManager, HaproxyRefusal

# Answers commands on its runtime socket until SIGUSR1 or SIGTERM. `answers.json` has the answer to each command, and
# what `-c` prints, with which it refuses the configuration (`check`) or accepts it (`warnings`); `commands` gets each
# command.
PROGRAM = """
import json, os, re, signal, socket, sys, time

here = os.path.dirname(os.path.abspath(__file__))
answers = lambda: json.load(open(os.path.join(here, "answers.json")))
if "-c" in sys.argv:
    sys.stderr.write(answers().get("check", "") + answers().get("warnings", ""))
    sys.exit(bool(answers().get("check")))
if "exits" in answers():
    sys.exit(answers()["exits"])
runtime = open(sys.argv[-1]).read()
listener = socket.socket(fileno=int(re.search(r"fd@(\\d+)", runtime)[1]))
listener.setblocking(True)

def leave(number, frame):
    if "ignores" in answers():
        return
    if "stays" not in answers() or number == signal.SIGTERM:
        os._exit(0)
    listener.close()
    while "stays" in answers():
        time.sleep(0.01)
    os._exit(7)

signal.signal(signal.SIGUSR1, leave)
signal.signal(signal.SIGTERM, leave)
while True:
    connection, _ = listener.accept()
    command = connection.makefile("r").readline().strip()
    with open(os.path.join(here, "commands"), "a") as file:
        file.write(command + "\\n")
    connection.sendall(answers().get(command, "\\n").encode())
    connection.close()
"""
STATISTICS = "# pxname,svname,scur\nroute:r,one,0\nroute:r,BACKEND,{}\nstream:s,BACKEND,7\n"
CLIENTS = "# pxname,svname,scur\ngateway,FRONTEND,{}\nroute:r,BACKEND,0\n"


def setup(
    text: str = "global\n", *, numbers: tuple[int, ...] = (), drained: tuple[str, ...] = (), name: str = "one"
) -> Any:
    """What the program needs of a setup; `name` distinguishes it from others."""
    backends = (
        SimpleNamespace(name="stream:s", is_stream=True, passes_tls=False),
        SimpleNamespace(name="route:r", is_stream=False, passes_tls=False),
    )
    made = SimpleNamespace(
        text=text, name=name, descriptor_numbers=numbers, drain_commands=lambda: drained,
        files={"map": b"a b\n", "c.pem": b"pem"}, frontends=["gateway", "stream:s"], used_targets={"one"},
        configuration=SimpleNamespace(backends=backends, servers_by_line_number=lambda: ()),
    )  # fmt: skip
    made.without = lambda refused: made
    return made


class Stage:
    """The manager of a program, and the files that say what that does."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.script = directory / "program"
        self.script.write_text(f"#!{sys.executable} -IS\n{PROGRAM}")
        self.script.chmod(0o755)
        self.says()
        self.program = HaproxyProcessManager(str(self.script), str(directory / "files"))
        self.changes: list[str] | None = []
        monkeypatch.setattr(_program, "runtime_commands", lambda before, after: self.changes)

    def says(self, **answers: object) -> None:
        new = self.directory / "answers.new"
        new.write_text(json.dumps(answers))
        new.replace(self.directory / "answers.json")  # at once: the program may be reading it

    def commands(self) -> list[str]:
        """The commands since the last time, apart from those that only look."""
        file = self.directory / "commands"
        found = file.read_text().splitlines() if file.exists() else []
        file.write_text("")
        return [each for each in found if not each.startswith("show ")]

    def modes(self) -> dict[str, int]:
        """The modes of the program's files, and of their directory."""
        files = Path(self.program.directory)
        return {
            path.name if path != files else ".": path.stat().st_mode & 0o777
            for path in (files, *files.iterdir())
        }

    @property
    def pid(self) -> int:
        assert self.program.process is not None
        return self.program.process.pid


Play = Callable[[Callable[[Stage], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Play:
    stage = Stage(tmp_path_factory.mktemp("h"), monkeypatch)  # with a path that is short enough for sockets

    def run(scene: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
        async def work() -> None:
            try:
                async with asyncio.timeout(60):
                    await scene(stage)
            finally:
                await stage.program.stop_immediately()

        asyncio.run(work())

    return run


def test_files_are_the_users_alone_and_the_process_serves(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.program.apply(setup(drained=("set server route:r/one state drain",)))
        modes = {name: mode for name, mode in stage.modes().items() if name != "runtime.cfg"}
        assert modes.pop(".") == 0o700
        assert modes == dict.fromkeys(("haproxy.cfg", "map", "c.pem", "haproxy.sock"), 0o600)
        assert stage.commands() == ["set server route:r/one state drain"]
        assert stage.program.process is not None
        assert await stage.program.process.ask("show info") == "\n"

    play(scene)


def test_change_is_made_by_commands_of_the_same_process(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.program.apply(setup())
        pid = stage.pid
        stage.changes = ["set server a state ready", "del server b"]
        stage.says(**{"set server a state ready": "\n", "del server b": "Server still has connections.\n"})
        after = setup(name="two")
        await stage.program.apply(after)
        assert (stage.pid, stage.program.setup) == (pid, after)
        assert stage.commands() == ["set server a state ready", "del server b"]

    play(scene)


@pytest.mark.slow
@pytest.mark.parametrize("why", ["refused", "impossible"])
def test_change_that_no_command_makes_is_made_by_another_process(play: Play, why: str) -> None:
    async def scene(stage: Stage) -> None:
        await stage.program.apply(setup())
        before = stage.program.process
        assert before is not None
        stage.changes = ["set server a state ready"] if why == "refused" else None
        stage.says(**{"set server a state ready": "No such server.\n"})
        after = setup(name="two")
        await stage.program.apply(after)
        assert (stage.pid != before.pid, stage.program.setup) == (True, after)
        assert stage.commands()[-2:] == ["shutdown frontend gateway", "shutdown frontend stream:s"]
        assert await before.exited == 0
        await asyncio.sleep(0)  # callbacks run after the awaited result is there
        assert not stage.program.replaced_pids

    play(scene)


@pytest.mark.slow
def test_configuration_that_is_refused_leaves_the_process_as_it_is(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        first = setup()
        await stage.program.apply(first)
        pid = stage.pid
        stage.changes = None
        alerts = "".join(f"[ALERT] (1) : problem {number}\n" for number in range(5))
        stage.says(check=f"[NOTICE] (1) : a note\n{alerts}")
        with pytest.raises(HaproxyRefusal) as refused:
            await stage.program.apply(setup(name="two"))
        assert str(refused.value) == "problem 0; problem 1; problem 2"
        stage.says(check="[NOTICE] (1) : a note\n")
        with pytest.raises(HaproxyRefusal, match="it does not say why"):
            await stage.program.apply(setup(name="two"))
        assert (stage.pid, stage.program.setup) == (pid, first)

    play(scene)


def test_refusal_has_the_lines_on_which_an_alert_continues(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        # As HAProxy 3 prints them.
        stage.says(
            check="[ALERT]    (1) : config : 'bind fd@7' in section 'frontend' : \n"
            "  'crt-list' : error in file 'list' : no start line.\n  no SSL private key.\n"
            "[WARNING]  (1) : a warning\n  and its end\n[ALERT]    (1) : config : Fatal errors found.\n"
        )
        with pytest.raises(HaproxyRefusal) as refused:
            await stage.program.apply(setup())
        assert str(refused.value) == (
            "config : 'bind fd@7' in section 'frontend' : 'crt-list' : error in file 'list' : no start line. "
            "no SSL private key.; config : Fatal errors found."
        )

    play(scene)


def test_configuration_of_which_haproxy_warns_is_applied(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.program.apply(setup())
        before = stage.pid
        stage.changes = None
        stage.says(warnings="[WARNING]  (1) : 'stats' is deprecated\n  [ALERT] is not at the start here\n")
        after = setup(name="two")
        await stage.program.apply(after)
        assert (stage.pid != before, stage.program.setup) == (True, after)

    play(scene)


def test_process_that_ends_at_its_start_is_a_refusal(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.says(exits=3)
        with pytest.raises(HaproxyRefusal, match=r"ended at its start with status 3|Connection reset"):
            await stage.program.apply(setup())
        assert stage.program.process is None

    play(scene)


def test_process_without_a_runtime_socket_answers_nothing(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.program.apply(setup())
        process = stage.program.process
        assert process is not None
        os.unlink(process.socket_path)
        with pytest.raises(HaproxyRefusal, match="its runtime socket does not answer: "):
            await process.ask("show info")
        await stage.program.drain(60.0)
        assert await process.exited == 0, "it was asked to end at once"

    play(scene)


@pytest.mark.slow
def test_drain_waits_for_the_last_request_within_its_time(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.program.apply(setup())
        process = stage.program.process
        assert process is not None
        await stage.program.drain(60.0)
        assert (stage.program.process, await process.exited) == (None, 0)
        stage.says(stays=True)
        await stage.program.apply(setup())
        process = stage.program.process
        assert process is not None
        await stage.program.drain(0.01)
        assert process.exited.done(), "it was ended"

    play(scene)


@pytest.mark.slow
def test_drain_lets_the_last_request_end_by_itself(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.program.drain(60.0)
        stage.says(stays=True)
        await stage.program.apply(setup())
        process = stage.program.process
        assert process is not None
        draining = asyncio.ensure_future(stage.program.drain(60.0))
        with contextlib.suppress(HaproxyRefusal):
            while await process.ask("show info"):
                pass
        assert not draining.done()
        stage.says()
        await draining
        assert await process.exited == 7, "it was not ended"

    play(scene)


@pytest.mark.slow
def test_clients_of_a_replaced_process_have_a_second_before_idle_connections_are_closed(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.says(**{"show stat": CLIENTS.format(1)}, stays=True)
        await stage.program.apply(setup())
        before = stage.program.process
        assert before is not None
        stage.changes = None
        began = asyncio.get_running_loop().time()
        await stage.program.apply(setup(name="two"))
        await stage.program.wait_until_unused("another server")
        assert asyncio.get_running_loop().time() - began < 1.0
        await stage.program.wait_until_unused("one")
        assert asyncio.get_running_loop().time() - began >= 2.0
        assert stage.program.replaced_pids == [before.pid], "it has connections"
        stage.says()
        assert await before.exited == 7

    play(scene)


def test_oldest_replaced_process_is_ended_when_there_are_too_many(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_program, "_MOST_REPLACED", 2)
    monkeypatch.setattr(_program, "CLOSE_SPREAD_SECONDS", 0.01)

    async def scene(stage: Stage) -> None:
        ended: list[int] = []
        stage.program.on_too_many = ended.append
        stage.says(stays=True)
        stage.changes = None
        pids = []
        for number in range(4):
            await stage.program.apply(setup(name=str(number)))
            await stage.program.wait_until_unused("one")
            pids.append(stage.pid)
        assert ended == pids[:1]
        while len(stage.program.replaced_pids) > 2:
            await asyncio.sleep(0.001)
        assert stage.program.replaced_pids == pids[1:3]

    play(scene)


def test_processes_that_a_killed_predecessor_has_left_count_as_replaced(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.program.apply(setup())
        left = stage.program.process
        assert left is not None
        successor = HaproxyProcessManager(stage.program.program, stage.program.directory)
        successor.adopt_left_processes()
        assert successor.replaced_pids == [left.pid]
        other = HaproxyProcessManager(stage.program.program, "/other")
        other.adopt_left_processes()
        assert other.replaced_pids == []
        await successor.drain(0.01)
        assert (await left.exited, successor.replaced_pids) == (0, [])

    play(scene)


def test_finish_waits_for_requests_to_routes_and_not_for_streams(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.says(**{"show stat": STATISTICS.format(1)})
        await stage.program.apply(setup())
        process = stage.program.process
        assert process is not None
        finishing = asyncio.ensure_future(stage.program.end_after_last_request(60.0))
        while "show stat" not in (stage.directory / "commands").read_text():
            await asyncio.sleep(0.001)
        assert not finishing.done()
        stage.says(**{"show stat": STATISTICS.format(0)})
        await finishing
        assert process.exited.done()
        await stage.program.end_after_last_request(60.0)

    play(scene)


def test_finish_ends_requests_after_its_time(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.says(**{"show stat": STATISTICS.format(1)})
        await stage.program.apply(setup())
        process = stage.program.process
        assert process is not None
        await stage.program.end_after_last_request(0.05)
        assert process.exited.done()

    play(scene)


def test_process_that_ignores_the_end_is_killed(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_program, "_EXIT_SECONDS", 0.01)

    async def scene(stage: Stage) -> None:
        await stage.program.apply(setup())
        process = stage.program.process
        assert process is not None
        stage.says(ignores=True)
        await stage.program.stop_immediately()
        assert await process.exited == -signal.SIGKILL
        assert stage.program.process is None
        process.signal(signal.SIGTERM)  # which has no effect

    play(scene)
