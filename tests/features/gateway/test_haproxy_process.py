"""Processes of HAProxy, with a program in its place that records its commands and answers as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.gateway.haproxy.configuration import HaproxyBackend, HaproxyServer, ServerAddresses
from poolctl.features.gateway.haproxy.process import (
    GATEWAY,
    LIMITS,
    EndLimits,
    HaproxyProcess,
    HaproxyProcesses,
    HaproxyRefusal,
)
from poolctl.features.gateway.haproxy.setup import DRAIN, ServerState, SetupParts
from poolctl.keeper import wire
from poolctl.platform import processes
from poolctl.runners.helper_process import HelperLog
from tests.coroutines import staged_by
from tests.deadline import until
from tests.features.gateway.scripted_haproxy import LogFiles, gateway_settings
from tests.helper_keeper import ExecutingKeeper
from tests.processes import command_line, freeze

# Answers commands on its runtime socket, as a daemon, until SIGUSR1 or SIGTERM. `answers.json` has the answer to each
# command, and what it prints at its start, with which it refuses a configuration that has the text `bad` (`refuses`) or
# accepts it (`warnings`); `commands` gets each command.
PROGRAM = """
import json, os, re, select, signal, socket, sys, time

here = os.path.dirname(os.path.abspath(__file__))
answers = lambda: json.load(open(os.path.join(here, "answers.json")))
text = answers().get("refuses", "") + answers().get("warnings", "")
sys.stderr.write(text.replace("PID", str(os.getpid())))
if "refuses" in answers() and answers().get("bad", "") in open(sys.argv[3]).read():
    sys.exit(1)
assert sys.argv[1:3] == ["-D", "-f"]
if os.fork():
    sys.exit(0)
os.setsid()
listener = socket.socket(fileno=int(re.search("stats socket fd@([0-9]+)", open(sys.argv[3]).read())[1]))
listener.setblocking(True)
sessions = []

def leave(number, frame):
    if "ignores" in answers():
        return
    listener.close()
    while "stays" in answers() and number != signal.SIGTERM:
        serve()
        time.sleep(0.01)
    while sessions and number != signal.SIGTERM:
        serve()
    os._exit(0)

def serve():
    for each in select.select(sessions, [], [], 0.01)[0]:
        commands = each.recv(4096).decode()
        if not commands:
            sessions.remove(each)
            each.close()
        with open(os.path.join(here, "commands"), "a") as file:
            file.write(commands)
        for command in commands.splitlines():
            default = f"Pid: {os.getpid()}\\n" if command == "show info" else "\\n"
            each.sendall((answers().get(command, default) + "\\n> ").encode())

signal.signal(signal.SIGUSR1, leave)
signal.signal(signal.SIGTERM, leave)
while True:
    if select.select([listener], [], [], 0.0)[0]:
        sessions.append(listener.accept()[0])
    serve()
"""
STREAM = HaproxyBackend("stream:s", "s", True, (), ())
STATISTICS = "# pxname,svname,scur\nroute:r,BACKEND,{}\nstream:s,BACKEND,7\n"


def haproxies(directory: Path) -> list[str]:
    """The command lines of the processes that are there."""
    found = []
    for pid in processes():
        with contextlib.suppress(OSError):  # it has ended
            found.append(command_line(pid))
    return [line for line in found if str(directory / "haproxy") in line]


def processes_of(
    directory: Path,
    record: Callable[[str, str], object] = lambda *event: None,
    limits: EndLimits = LIMITS,
) -> HaproxyProcesses:
    output: Any = LogFiles()
    return HaproxyProcesses(str(directory), output, "access.log", record, limits)


class Stage:
    """The pool's processes, of a program whose files say what it does; the keeper is this process."""

    def __init__(self, directory: Path, limits: EndLimits = LIMITS) -> None:
        self.directory = directory
        self.script = directory / "program"
        self.script.write_text(f"#!{sys.executable} -IS\n{PROGRAM}")
        self.script.chmod(0o755)
        self.says()
        self.keeper = ExecutingKeeper()
        self.log = HelperLog(str(directory), GATEWAY, None, None)
        self.events: list[tuple[str, str]] = []
        self.processes = processes_of(directory, lambda *event: self.events.append(event), limits)
        self.use()
        self.started: list[HaproxyProcess] = []

    def use(self, *backends: HaproxyBackend, program: str = "", **states: ServerState) -> None:
        """Start the next process with these backends, and the states of the servers of `route:r`."""
        settings, addresses = gateway_settings(program or str(self.script)), ServerAddresses({})
        setup = SetupParts(settings, (), (), (), addresses, {}, {}, {"c.pem": b"pem"}, (), "", "").build()
        self.processes.wanted = setup._replace(
            configuration=setup.configuration._replace(backends=(STREAM, *backends)),
            states={("route:r", name): state for name, state in states.items()},
        )

    def says(self, **answers: object) -> None:
        new = self.directory / "answers.new"
        new.write_text(json.dumps(answers))
        new.replace(self.directory / "answers.json")  # at once: the program may be reading it

    async def start(self) -> HaproxyProcess:
        keeper: Any = self.keeper
        process = await self.processes.spawn(keeper, self.log, GATEWAY, "mark")
        self.started.append(process)
        return process

    async def replace(self, process: HaproxyProcess) -> HaproxyProcess:
        new = await self.start()
        await self.processes.retire(process)
        return new

    def hold(self, process: HaproxyProcess) -> None:
        """Have it in the keeper's store."""
        meta = {**process.identity, "settings": process.mark, "path": process.path}
        self.keeper.entries[GATEWAY.entry] = meta, []

    def commands(self) -> list[str]:
        """The commands since the last time, apart from those that only look."""
        file = self.directory / "commands"
        found = file.read_text().splitlines() if file.exists() else []
        file.write_text("")
        return [each for each in found if not each.startswith(("show ", "prompt"))]

    def modes(self) -> dict[str, int]:
        """The modes of the program's files, and of their directory."""
        files = self.directory / "haproxy"
        return {
            path.name if path != files else ".": path.stat().st_mode & 0o777
            for path in (files, *files.iterdir())
        }

    async def close(self) -> None:
        for each in self.started:
            each.signal(signal.SIGKILL)
        await self.processes.end_all(self.log)
        await self.keeper.wait_for_exits()
        await asyncio.gather(*(each.exited for each in self.started))


Play = Callable[..., None]


@pytest.fixture
def play(tmp_path_factory: pytest.TempPathFactory) -> Play:
    def run(scene: Callable[[Stage], Coroutine[Any, Any, None]], limits: EndLimits = LIMITS) -> None:
        async def work() -> None:
            stage = Stage(
                tmp_path_factory.mktemp("h"), limits
            )  # with a path that is short enough for sockets
            try:
                async with asyncio.timeout(60):
                    await scene(stage)
            finally:
                await stage.close()

        asyncio.run(work())

    return run


@staged_by("play")
async def test_files_are_the_users_alone_and_the_process_serves(stage: Stage, /) -> None:
    stage.use(one=ServerState(DRAIN))
    process = await stage.start()
    modes = stage.modes()
    assert modes.pop(".") == 0o700
    assert modes == dict.fromkeys(("haproxy.cfg", "c.pem"), 0o600)
    assert os.stat(process.path).st_mode & 0o777 == 0o600
    assert stage.commands() == ["set maxconn server route:r/one 0", "set server route:r/one state drain"]
    assert await process.ask("show info") == f"Pid: {process.pid}\n"
    assert process.up.is_set()


@staged_by("play")
async def test_refusal_says_the_first_alerts(stage: Stage, /) -> None:
    alerts = "".join(f"[ALERT]    (PID) : problem {number}\n" for number in range(5))
    stage.says(refuses=f"[NOTICE]   (PID) : a note\n{alerts}")
    with pytest.raises(HaproxyRefusal) as refused:
        await stage.start()
    assert str(refused.value) == "problem 0; problem 1; problem 2"
    stage.says(refuses="[NOTICE]   (PID) : a note\n")
    with pytest.raises(HaproxyRefusal, match="program cannot be started: its runtime socket does not answer"):
        await stage.start()


@staged_by("play")
async def test_refusal_has_the_lines_on_which_an_alert_continues(stage: Stage, /) -> None:
    # As HAProxy 3 prints them.
    stage.says(
        refuses="[ALERT]    (PID) : config : 'bind fd@7' in section 'frontend' : \n"
        "  'crt-list' : error in file 'list' : no start line.\n  no SSL private key.\n"
        "[WARNING]  (PID) : a warning\n  and its end\n[ALERT]    (PID) : config : Fatal errors found.\n"
    )
    with pytest.raises(HaproxyRefusal) as refused:
        await stage.start()
    assert str(refused.value) == (
        "config : 'bind fd@7' in section 'frontend' : 'crt-list' : error in file 'list' : no start line. "
        "no SSL private key.; config : Fatal errors found."
    )


@staged_by("play")
async def test_server_whose_line_is_refused_is_left_out_alone_and_reported_once(stage: Stage, /) -> None:
    server = HaproxyServer("bad", "https://bad.example", "10.0.0.1:443", "", 1, "")
    stage.use(HaproxyBackend("route:r", "r", False, ("backend route:r",), (server,)))
    assert stage.processes.wanted is not None
    ((line, _),) = stage.processes.wanted.configuration.servers_by_line_number()
    alert = f"[ALERT]    (PID) : config : [/d/haproxy.cfg:{line}] : 'server r/bad' : no such CA\n"
    stage.says(refuses=alert, bad=server.address)
    for _ in range(2):
        assert (await stage.start()).refused == {("route:r", server)}
    why = "https://bad.example gets no requests, as HAProxy does not accept it: 'server r/bad' : no such CA"
    assert stage.events == [("backend refused", why)]


@staged_by("play")
async def test_configuration_of_which_haproxy_warns_is_used(stage: Stage, /) -> None:
    stage.says(warnings="[WARNING]  (PID) : 'stats' is deprecated\n  [ALERT] is not at the start here\n")
    assert (await stage.start()).up.is_set()


@staged_by("play")
async def test_program_that_cannot_be_executed_is_a_refusal(stage: Stage, /) -> None:
    stage.use(program="/nowhere/haproxy")
    with pytest.raises(HaproxyRefusal, match="/nowhere/haproxy cannot be started"):
        await stage.start()
    assert not [*stage.directory.glob("g.*")], "its runtime socket is gone"


@staged_by("play")
async def test_process_without_a_runtime_socket_answers_nothing_and_still_ends_when_replaced(
    stage: Stage, /
) -> None:
    process = await stage.start()
    os.unlink(process.path)
    with pytest.raises(HaproxyRefusal, match="its runtime socket does not answer: "):
        await process.ask("show info")
    await stage.processes.retire(process)
    await process.exited


@staged_by("play")
async def test_replaced_process_accepts_no_more_and_ends_with_its_last_connection(stage: Stage, /) -> None:
    stage.says(stays=True)
    first = await stage.start()
    second = await stage.replace(first)
    assert stage.commands() == ["set server next/next state ready"]
    with pytest.raises(HaproxyRefusal):
        await first.ask("show info")
    assert stage.processes.replaced_pids == [first.pid], "it has connections"
    assert not second.exited.done()
    stage.says()
    await first.exited
    await asyncio.sleep(0)  # callbacks run after the awaited result is there
    assert stage.processes.replaced_pids == []


@pytest.mark.parametrize(
    "limits",
    [EndLimits(replaced=2, exit_timeout=0.1), EndLimits(replaced_bytes=2 << 20, exit_timeout=0.1)],
)
def test_oldest_replaced_processes_are_ended_when_there_are_too_many(play: Play, limits: EndLimits) -> None:
    async def scene(stage: Stage) -> None:
        stage.says(stays=True)
        process = await stage.start()
        for _ in range(3):
            process = await stage.replace(process)
        await stage.started[0].exited
        await until(lambda: stage.events != [])
        kind, message = stage.events[0]
        assert kind == "gateway connections ended"
        assert f"(pid {stage.started[0].pid})" in message
        await until(lambda: len(stage.processes.replaced_pids) <= 2)

    play(scene, limits)


@staged_by("play")
async def test_next_supervisor_finds_the_process_in_use_and_the_replaced_ones(stage: Stage, /) -> None:
    stage.says(stays=True)
    left = await stage.start()
    used = await stage.start()
    stage.hold(used)
    keeper: Any = stage.keeper
    successor = processes_of(stage.directory)
    found = await successor.adopt(keeper, GATEWAY)
    assert found is not None
    assert (found.pid, found.mark, await found.ask("show info")) == (
        used.pid,
        "mark",
        f"Pid: {used.pid}\n",
    )
    assert successor.replaced_pids == [left.pid]
    other = processes_of(Path("/other"))
    stage.keeper.entries.clear()
    assert await other.adopt(keeper, GATEWAY) is None
    assert other.replaced_pids == []
    await successor.end_all(stage.log)
    await asyncio.gather(left.exited, used.exited, found.exited)


@staged_by("play")
async def test_finish_waits_for_requests_to_routes_and_not_for_streams(stage: Stage, /) -> None:
    stage.says(**{"show stat -1 2 -1": STATISTICS.format(1)})
    process = await stage.start()
    finishing = asyncio.ensure_future(stage.processes.finish_requests(process, 60.0))
    await until(lambda: "show stat" in (stage.directory / "commands").read_text())
    assert not finishing.done()
    stage.says(**{"show stat -1 2 -1": STATISTICS.format(0)})
    await finishing


@staged_by("play")
async def test_finish_waits_for_replaced_processes_within_its_time(stage: Stage, /) -> None:
    stage.says(stays=True)
    first = await stage.start()
    second = await stage.replace(first)
    await stage.processes.finish_requests(second, 0.05)
    assert not first.exited.done()
    await stage.processes.end_all(stage.log)
    assert first.exited.done()
    assert second.exited.done()
    assert not (stage.directory / "haproxy").exists(), "with the keys of certificates"
    await stage.processes.finish_requests(None, 60.0)


def test_process_that_ignores_the_end_is_killed(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        process = await stage.start()
        stage.says(ignores=True)
        await stage.processes.end_all(stage.log)
        await process.exited
        assert not haproxies(stage.directory)
        process.signal(signal.SIGTERM)  # which has no effect

    play(scene, EndLimits(exit_timeout=0.01))


@pytest.mark.parametrize("is_answered", [False, True])
@staged_by("play")
async def test_process_whose_start_is_given_up_is_ended_with_the_others(
    stage: Stage, /, is_answered: bool
) -> None:
    answer, start = asyncio.Event(), stage.keeper.call

    async def call(message: wire.Message, fds: Sequence[Any] = ()) -> tuple[wire.Message, list[int]]:
        reply = await start(message, fds)
        if not is_answered:
            await answer.wait()
        return reply

    stage.keeper.call = call  # type: ignore[method-assign]
    starting = asyncio.ensure_future(stage.start())
    await until(lambda: len(stage.keeper.pids) == 1)
    await asyncio.sleep(0)
    starting.cancel()
    asyncio.get_running_loop().call_soon(answer.set)
    await asyncio.wait({starting})
    await stage.processes.end_all(stage.log)
    assert not haproxies(stage.directory)


@staged_by("play")
async def test_frozen_process_does_not_answer_and_one_that_answers_does_not_hang(stage: Stage, /) -> None:
    process = await stage.start()
    answers: list[bool] = []
    process.answered = lambda: answers.append(True)  # type: ignore[method-assign]
    process.stop_watching()  # it has sent a ping at the start
    process.ping()
    await until(lambda: len(answers) == 2)
    freeze(process.pid)
    process.ping()
    await asyncio.sleep(0.2)
    assert len(answers) == 2
    process.signal(signal.SIGCONT)
    await until(lambda: len(answers) == 3)
