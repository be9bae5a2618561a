"""A child process that is asked: what is read from it, how its end is reported, and when it is ended."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from poolctl.child_process import ChildEnded, ChildOnDemand, HelperProcess
from tests.deadline import wait_until
from tests.processes import is_alive
from tests.virtual_loop import VirtualLoop


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work

    asyncio.run(bounded())


def child(text: str, output: str = "") -> HelperProcess:
    """A child that runs this program, in which `link` is its socket."""
    setup = "import os, signal, socket, sys\nlink = socket.socket(fileno=0)\n"
    return HelperProcess([sys.executable, "-c", setup + text], output=output)


def test_lines_and_sizes_are_read_from_one_stream() -> None:
    async def scenario() -> None:
        process = child("link.sendall(b'one\\n\\n12345' + link.recv(9) + b'\\n'); link.recv(9)")
        await process.send(b"6789")
        assert await process.read_line_truncated(100) == b"one"
        assert await process.read_line_truncated(100) == b""
        assert await process.read_exactly(4) == b"1234"
        assert await process.read_line_truncated(3) == b"567", "no more than that"
        assert await process.read_line_truncated(100) == b"89"
        process.end()

    run(scenario())


@pytest.mark.parametrize(
    ("text", "status"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)]
)
def test_end_in_the_middle_of_an_exchange_is_reported_with_its_status(text: str, status: int) -> None:
    async def scenario() -> None:
        on_demand = ChildOnDemand(lambda: child(f"link.send(b'half'); {text}"), 60.0)
        with pytest.raises(ChildEnded) as ended:
            await on_demand.ask(lambda process: process.read_line_truncated(100))
        assert ended.value.status == status
        assert not ended.value.process.has_answered
        assert on_demand.process is None

    run(scenario())


def test_exchange_that_fails_ends_the_process_and_the_next_one_gets_another() -> None:
    async def scenario() -> None:
        on_demand = ChildOnDemand(lambda: child("link.sendall(b'late\\n'); link.recv(9)"), 60.0)

        async def fail(process: HelperProcess) -> None:
            raise TimeoutError

        async def pid(process: HelperProcess) -> int:
            assert await process.read_line_truncated(100) == b"late"
            return process.pid

        with pytest.raises(TimeoutError):
            await on_demand.ask(fail)
        first = await on_demand.ask(pid)
        assert on_demand.process is not None
        assert on_demand.process.pid == first
        on_demand.close()
        wait_until(lambda: not is_alive(first))

    run(scenario())


def test_exchanges_take_turns() -> None:
    async def scenario() -> None:
        on_demand = ChildOnDemand(lambda: child("while data := link.recv(9): link.sendall(data)"), 60.0)

        async def echo(process: HelperProcess, text: bytes) -> bytes:
            await process.send(text + b"\n")
            return await process.read_line_truncated(100)

        texts = [b"a", b"b", b"c"]
        answers = [on_demand.ask(lambda process, text=text: echo(process, text)) for text in texts]  # type: ignore[misc]
        assert await asyncio.gather(*answers) == texts
        on_demand.close()

    run(scenario())


def test_idle_process_ends() -> None:
    async def scenario() -> None:
        on_demand = ChildOnDemand(lambda: child("link.sendall(b'yes\\n'); link.recv(9)"), 0.05)
        assert await on_demand.ask(lambda process: process.read_line_truncated(100)) == b"yes"
        while on_demand.process is not None:
            await asyncio.sleep(0.01)

    run(scenario())


def test_idle_process_that_was_killed_is_replaced_unnoticed() -> None:
    async def scenario() -> None:
        on_demand = ChildOnDemand(lambda: child("link.sendall(b'yes\\n'); link.recv(9)"), 60.0)
        assert await on_demand.ask(lambda process: process.read_line_truncated(100)) == b"yes"
        assert on_demand.process is not None
        pid = on_demand.process.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid))
        assert await on_demand.ask(lambda process: process.read_line_truncated(100)) == b"yes"
        on_demand.close()

    run(scenario())


def test_process_whose_owner_is_collected_ends() -> None:
    process = child("signal.pause()")
    pid = process.pid
    assert is_alive(pid)
    del process
    gc.collect()
    wait_until(lambda: not is_alive(pid))


def test_fork_leaves_the_process_of_its_parent_alone() -> None:
    program = """
import os, sys
from poolctl.child_process import HelperProcess
process = HelperProcess([sys.executable, "-c", "import signal; signal.pause()"])
if (pid := os.fork()) == 0:
    process.end()
    os._exit(0)
os.waitpid(pid, 0)
os.kill(process.pid, 0)
assert process._process.poll() is None
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_it_prints_is_appended_to_a_private_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    process = child("print('said', file=sys.stderr); sys.exit(1)", str(log))
    assert process.output_start == len("before\n")
    assert asyncio.run(process.wait_briefly_for_exit()) == 1
    assert log.read_text() == "before\nsaid\n"
    process.end()
    other = tmp_path / "other"
    child("", str(other)).end()
    assert os.stat(other).st_mode & 0o777 == 0o600


def test_process_has_a_group_of_its_own() -> None:
    async def scenario() -> None:
        text = "import os, socket\nlink = socket.socket(fileno=0)\n"
        text += "link.sendall(f'{os.getpgrp() == os.getpid()}\\n'.encode())"
        process = HelperProcess([sys.executable, "-c", text])
        assert (process.output, process.output_start) == ("", 0)
        assert await process.read_line_truncated(100) == b"True"
        assert await process.wait_briefly_for_exit() == 0
        assert process.has_ended
        process.end()

    run(scenario())


def test_program_that_is_missing_leaves_no_descriptor_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        HelperProcess(["/nowhere/program"])
    assert len(os.listdir("/proc/self/fd")) == before


def test_process_that_still_runs_has_no_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poolctl.child_process._EXIT_SECONDS", 0.01)

    async def scenario() -> None:
        process = child("link.shutdown(socket.SHUT_WR); signal.pause()")
        on_demand = ChildOnDemand(lambda: process, 60.0)
        with pytest.raises(ChildEnded, match=f"process {process.pid} has ended") as ended:
            await on_demand.ask(lambda each: each.read_line_truncated(100))
        assert (ended.value.status, ended.value.process, on_demand.process) == (None, process, None)
        wait_until(lambda: process.has_ended)

    run(scenario())


def test_request_to_a_process_that_has_ended_is_reported() -> None:
    async def scenario() -> None:
        process = child("")
        assert await process.wait_briefly_for_exit() == 0
        with pytest.raises(ChildEnded) as ended:
            await process.send(b"x" * 10_000_000)
        assert isinstance(ended.value.__cause__, OSError)
        process.end()

    run(scenario())


class Answering:
    """A process that answers at once; `ended` counts its ends."""

    def __init__(self) -> None:
        self.has_answered = self.has_ended = False
        self.ended = 0

    def end(self) -> None:
        self.ended += 1


def test_idle_process_ends_that_long_after_its_last_answer() -> None:
    loop = VirtualLoop()
    started: list[Any] = []

    def start() -> Any:
        started.append(Answering())
        return started[-1]

    async def answer(process: Any) -> Any:
        return process

    async def make() -> ChildOnDemand:
        return ChildOnDemand(start, 10.0)

    on_demand = loop.run_until_complete(make())
    first = loop.run_until_complete(on_demand.ask(answer))
    assert first.has_answered
    loop.pass_time(9)
    assert loop.run_until_complete(on_demand.ask(answer)) is first
    loop.pass_time(9.9)
    assert (first.ended, on_demand.process) == (0, first)
    loop.pass_time(0.2)
    assert (first.ended, on_demand.process) == (1, None)
    second = loop.run_until_complete(on_demand.ask(answer))
    second.has_ended = True
    third = loop.run_until_complete(on_demand.ask(answer))
    assert (second.ended, third is started[2]) == (1, True)
    on_demand.close()
    on_demand.close()
    loop.pass_time(20)
    assert [each.ended for each in started] == [1, 1, 1]
    loop.close()
