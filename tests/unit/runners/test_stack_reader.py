"""Stacks of workers that hang, in Python and in the kernel."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from poolctl import ServerConfig
from poolctl.keeper import wire
from poolctl.platform import process_start
from poolctl.runners.local.children import Children, ProcessIdentity
from poolctl.runners.local.local_worker import (
    LocalWorker,
)
from poolctl.runners.local.stack_reader import StackReader
from poolctl.runners.local.tally_page import Tally
from poolctl.runners.runner_protocol import Exit, Placement, RunnerEventHandler
from poolctl.runners.stack_report import WorkerStacks
from poolctl.worker.tally import (
    ASK,
    ASK_AGAIN,
    STACK_BYTES,
    StackDumper,
    clear_and_rewind_stacks,
    promise_stacks,
    read_stacks,
    writes_stacks,
)
from tests.deadline import wait_until

# Longer than an answer takes, however busy the machine is.
SECONDS = 60.0
APP = """
import asyncio, itertools, os, signal, socket, sys, threading, time

PAGE, CONTROL, PLACE = 3, 4, 100
control = socket.socket(fileno=CONTROL)
secret = "hunter2"

def begin():
    from poolctl.worker.tally import StackDumper
    dump = StackDumper()
    dump.install_signal_handlers(PLACE)
    dump.enable_for_page(PAGE, lambda: control.send(b'{"event":"stacks"}'))
    control.send(b'{"event":"imported"}')
    return dump

def sleep(): begin(); time.sleep(1000)

def spin():
    begin()
    while True: pass

def lock():
    begin()
    held = threading.Lock()
    held.acquire(); held.acquire()

def hold_the_interpreter():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})  # no bytecode runs any more, from here on
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    begin()
    sum(itertools.repeat(0, 10**15))

async def wait_for_event(): await asyncio.Event().wait()

async def numbers():
    await wait_for_event()
    yield 1

async def read_numbers():
    async for _ in numbers(): pass

async def wait_for_task(task): await task

async def deadlocked():
    task = asyncio.create_task(wait_for_event(), name="A")
    others = [asyncio.create_task(wait_for_event()) for _ in range(20)]
    others += [asyncio.create_task(wait_for_task(task), name="B"), asyncio.create_task(read_numbers(), name="C")]
    thread = threading.Thread(target=time.sleep, args=(1000,), name="sleeper", daemon=True)
    thread.start()
    await asyncio.sleep(0.01)
    begin()
    await asyncio.wait(others)

def deadlock(): asyncio.run(deadlocked())

globals()[sys.argv[1]]()
"""


class Parent(Children):
    """Signals as the keeper does, without one."""

    def __init__(self, page: int) -> None:
        self.page = page

    async def try_signal(
        self, process: ProcessIdentity, exited: asyncio.Future[Exit], number: int, *, group: bool = False
    ) -> bool:
        os.kill(process.pid, number)
        return True


class WithoutPatience(Parent):
    """Signals, and lets the time be over when faulthandler has written, or if nothing is to be expected."""

    async def try_signal(
        self, process: ProcessIdentity, exited: asyncio.Future[Exit], number: int, *, group: bool = False
    ) -> bool:
        os.kill(process.pid, number)
        if number == ASK_AGAIN:
            wait_until(lambda: b"in <module>" in read_stacks(self.page))
        raise TimeoutError


def launched(directory: Path, function: str, page: int, control: int) -> subprocess.Popen[bytes]:
    """A process that is in this function of APP, or will be soon."""
    (directory / "app.py").write_text(APP)
    return subprocess.Popen(
        [sys.executable, "-c", _LAUNCH, str(page), str(control), str(directory), function],
        pass_fds=(page, control),
    )


def local_worker(
    process: subprocess.Popen[bytes], tally: Tally, app_dir: str = "/", control: socket.socket | None = None
) -> LocalWorker:
    """The process as a worker, which has not reported anything."""
    server = ServerConfig(name="web", bind="127.0.0.1:1", app="app:app", app_dir=app_dir)
    placement = Placement.of("web", 1, 0, pid=process.pid)
    return LocalWorker(
        cast(Children, None),
        cast(RunnerEventHandler, None),
        placement,
        server,
        "",
        start=process_start(process.pid),
        control=control,
        tally=tally,
    )


@asynccontextmanager
async def running(
    directory: Path, function: str, children: type[Parent] = Parent
) -> AsyncIterator[tuple[LocalWorker, StackReader]]:
    """A worker that is in this function of APP, and the reader of its stacks."""
    tally = Tally.new()
    ours, theirs = wire.pair()
    with theirs:
        process = launched(directory, function, tally.fileno(), theirs.fileno())
    try:
        worker = local_worker(process, tally, str(directory), ours)
        await asyncio.wait_for(worker.imported, SECONDS)
        yield worker, StackReader(children(tally.fileno()), {worker.placement.id: worker})
        worker.record_exit(Exit())
    finally:
        process.kill()
        process.wait()
        tally.close()


_LAUNCH = """
import os, runpy, sys
page, control, directory, function = sys.argv[1:]
os.dup2(int(page), 103); os.dup2(int(control), 104)
os.dup2(103, 3); os.dup2(104, 4)
os.closerange(5, 105)
sys.argv[1:] = [function]
runpy.run_path(directory + "/app.py", run_name="app")
"""


def stacks_of(directory: Path, function: str, children: type[Parent] = Parent) -> WorkerStacks:
    async def scenario() -> WorkerStacks:
        async with running(directory, function, children) as (worker, reader):
            return await reader.stacks(worker.placement.id, SECONDS)

    return asyncio.run(scenario())


def functions(stack: Any) -> list[str]:
    return [frame.function for frame in stack.frames]


@pytest.mark.parametrize("function", ["spin", "lock"])
def test_stack_of_a_hung_main_thread_names_the_function(tmp_path: Path, function: str) -> None:
    _assert_hangs_in(function, stacks_of(tmp_path, function))


def _assert_hangs_in(function: str, found: WorkerStacks) -> None:
    assert (found.source, found.problem, found.kernel) == ("python", "", ())
    (main,) = found.threads
    assert (main.main, main.name) == (True, "MainThread")
    assert function in functions(main)[:2], "at the latest when it begins"
    assert found.place.startswith(f"{functions(main)[0]} (app.py:")
    assert "hunter2" not in str(found)


async def test_worker_goes_on_and_is_asked_again_unless_it_is_stopped(tmp_path: Path) -> None:
    async with running(tmp_path, "sleep") as (worker, reader):
        one, two = await asyncio.gather(*(reader.stacks(worker.placement.id, SECONDS) for _ in range(2)))
        assert one is two, "requests at the same time share an answer"
        again = await reader.stacks(worker.placement.id, SECONDS)
        assert again is not one
        _assert_hangs_in("sleep", again)
        _stop(worker.process.pid)
        found = await reader.stacks(worker.placement.id, SECONDS)
        assert "is stopped" in found.problem
        assert found.source == ""
        assert [each.state for each in found.kernel] == ["T"]


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)


def test_stack_of_a_c_function_that_holds_the_interpreter_is_faulthandlers(tmp_path: Path) -> None:
    found = stacks_of(tmp_path, "hold_the_interpreter", WithoutPatience)
    assert found.source == "faulthandler"
    assert "inside a C function" in found.problem
    assert [each.main for each in found.threads] == [True, False]
    assert "hold_the_interpreter" in functions(found.threads[0])
    assert found.tasks == ()
    assert found.kernel[0].tid == found.pid


def test_tasks_of_a_deadlock_show_what_each_waits_for(tmp_path: Path) -> None:
    found = stacks_of(tmp_path, "deadlock")
    assert {each.name for each in found.threads} == {"MainThread", "sleeper"}
    by_name = {name: task for task in found.tasks for name in task.names}
    crowd = found.tasks[0]
    assert (crowd.count, len(crowd.names), crowd.waits) == (21, 5, "waits for a Future")
    assert functions(crowd) == ["Event.wait", "wait_for_event"]
    assert [each.library for each in crowd.frames] == [True, False]
    assert by_name["B"].waits == "waits for task A"
    assert functions(by_name["B"]) == ["wait_for_task"]
    assert functions(by_name["C"]) == ["Event.wait", "wait_for_event", "numbers", "read_numbers"]
    shown = "\n".join(found.lines())
    assert "21 tasks A, " in shown
    assert "thread sleeper:" in shown


def test_process_without_the_handlers_is_not_killed() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    tally = Tally.new()

    async def scenario() -> None:
        worker = local_worker(process, tally)
        reader = StackReader(WithoutPatience(tally.fileno()), {worker.placement.id: worker})
        found = await reader.stacks(worker.placement.id, SECONDS)
        assert "has just been forked" in found.problem
        promise_stacks(tally.fileno())
        found = await reader.stacks(worker.placement.id, SECONDS)
        assert "does not answer" in found.problem
        assert (found.source, found.threads) == ("", ())

    try:
        asyncio.run(scenario())
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        tally.close()


async def test_worker_that_has_exited_has_no_stacks() -> None:
    reader = StackReader(cast(Children, None), {})
    found = await reader.stacks("web.1.0", SECONDS)
    assert (found.problem, found.name, found.worker) == ("it has exited", "web", "web.1.0")


def test_child_that_is_forked_has_the_systems_handlers_unless_the_application_has_set_its_own() -> None:
    tally, ends = Tally.new(), os.pipe()
    before = signal.getsignal(ASK)
    assert not writes_stacks(tally.fileno())
    try:
        for handler in (None, signal.SIG_IGN):
            dump = StackDumper()
            dump.install_signal_handlers(os.dup(ends[0]))
            dump.enable_for_page(tally.fileno(), lambda: None)
            if handler is not None:
                signal.signal(ASK, handler)
            dump.disable_and_close()
            assert signal.getsignal(ASK) is (handler or signal.SIG_DFL)
            assert writes_stacks(tally.fileno())
    finally:
        signal.signal(ASK, before)
        tally.close()
        for fd in ends:
            os.close(fd)


def test_page_file_bounds_what_is_written_and_is_cleared_for_the_next_stacks() -> None:
    tally = Tally.new()
    try:
        clear_and_rewind_stacks(tally.fileno())
        assert os.write(tally.fileno(), b"x" * (2 * STACK_BYTES)) == STACK_BYTES
        with pytest.raises(PermissionError):
            os.write(tally.fileno(), b"x")
        assert len(read_stacks(tally.fileno())) == STACK_BYTES
        clear_and_rewind_stacks(tally.fileno())
        assert read_stacks(tally.fileno()) == b""
        os.write(tally.fileno(), b"next")
        assert read_stacks(tally.fileno()) == b"next"
        assert tally.counts() is not None
    finally:
        tally.close()
