"""Processes that a zygote names are accepted only when it can have forked them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from poolctl import ServerConfig
from poolctl.keeper import wire
from poolctl.platform import process_parent, process_start
from poolctl.runners.embedded_runner import ProcessRunner
from poolctl.runners.local import zygotes as module
from poolctl.runners.local.local_worker import LocalWorker
from poolctl.runners.local.zygotes import (
    AppZygote,
    AppZygotes,
    Children,
    Forged,
    ImportFailed,
    ImportLimit,
    Process,
    Source,
)
from poolctl.runners.process_link import Link, LinkLost
from poolctl.runners.runner_protocol import Exit, Placement, RunnerEvents, WorkerFailed
from tests.deadline import wait_until
from tests.processes import is_alive
from tests.unit.runners.real_runner import fetch, kept, placed, served, with_runner


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


class Keeper:
    """A keeper that answers every call; `before` is done first, as exits are reported in order."""

    def __init__(self) -> None:
        ours, self._sock = wire.pair()
        self.link = Link(ours)
        self.children = Children(self.link, os.getpid())
        self.before: Any = lambda: None
        self._sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._answer)

    def _answer(self) -> None:
        received = wire.receive(self._sock)
        assert received is not None
        self.before()
        wire.send(self._sock, {"id": received[0]["id"]})

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()
        self.link.close()


@pytest.fixture
def child() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize("pid", [-1, 0, 1, 2**40, "word", None, True, 5.0, [], {}, "9" * 100])
def test_invalid_pid_is_refused(pid: object) -> None:
    async def scenario() -> None:
        keeper = Keeper()
        with pytest.raises(Forged, match="an invalid 'pid'"):
            await keeper.children.verify({"pid": pid}, None, None)
        keeper.close()

    run(scenario())


def test_new_process_of_the_user_is_taken_with_its_start_time(child: int) -> None:
    async def scenario() -> None:
        keeper = Keeper()
        found = await keeper.children.verify({"pid": child}, os.geteuid(), process_start(os.getpid()))
        assert found == (child, process_start(child))
        keeper.close()

    run(scenario())


@pytest.mark.parametrize(
    "case", ["another of the pool", "another user's", "older than the zygote", "not there"]
)
def test_process_that_the_zygote_cannot_have_forked_is_refused(child: int, case: str) -> None:
    async def scenario() -> None:
        keeper = Keeper()
        uid, not_before, pid = os.geteuid(), 0, child
        if case == "another of the pool":
            keeper.children.add(child)
        elif case == "another user's":
            uid += 1
        elif case == "older than the zygote":
            not_before = (process_start(child) or 0) + 1
        else:
            pid = (1 << 22) - 1
        with pytest.raises(Forged, match=f"pid {pid} as a new process"):
            await keeper.children.verify({"pid": pid}, uid, not_before)
        keeper.close()

    run(scenario())


def test_process_that_exited_before_the_check_is_known_by_its_report() -> None:
    async def scenario() -> None:
        keeper = Keeper()
        pid = (1 << 22) - 1
        keeper.before = lambda: keeper.children.early.update({pid: Exit.from_status(3)})
        assert await keeper.children.verify({"pid": pid}, 0, 0) == (pid, None)
        assert keeper.children.add(pid) == Exit.from_status(3)
        keeper.close()

    run(scenario())


def test_process_that_does_not_become_a_child_of_the_keeper_is_reported_once(
    child: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(module, "_LAST_LOOK_SECONDS", 0.05)

    async def scenario() -> None:
        keeper = Keeper()
        deeds: list[str] = []
        keeper.children.confirm(Process(child, process_start(child)), deeds.append)
        parent = os.getppid()
        keeper.children.confirm(Process(parent, process_start(parent)), deeds.append)
        while not deeds:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert deeds == [f"named pid {parent} as a new process, but it is not a process of the pool"]
        keeper.close()

    run(scenario())


class Silent:
    """A keeper that is told much and answers nothing."""

    def send(self, message: wire.Message, fds: object = ()) -> None:
        pass

    async def call(self, message: wire.Message, fds: object = ()) -> None:
        raise LinkLost("there is none")


def one(keeper: Link | None = None) -> tuple[AppZygote, socket.socket]:
    ours, theirs = wire.pair()
    theirs.setblocking(False)
    zygote = AppZygote(
        keeper or cast(Link, Silent()), children(), "key", Process(os.getpid(), None), None, "web"
    )
    zygote.follow(ours)
    return zygote, theirs


def children() -> Children:
    """What trusts no zygote, and needs no keeper where the processes are there."""
    return Children(cast(Link, Silent()), 0)


async def asked(theirs: socket.socket) -> wire.Message:
    """The next request that reaches the process."""
    async with asyncio.timeout(60):
        while True:
            try:
                received = wire.receive(theirs)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            assert received is not None
            return received[0]


def test_zygote_that_is_not_needed_any_more_answers_requests_in_progress() -> None:
    async def run() -> None:
        zygote, theirs = one()
        with theirs:
            fork = asyncio.ensure_future(zygote.fork([]))
            request = await asked(theirs)
            zygote.end()
            wire.send(theirs, {"id": request["id"], "pid": os.getppid()})
            assert (await fork).pid == os.getppid()
            assert wire.receive(theirs) is None, "and then it is let go"

    asyncio.run(run())


def test_zygotes_entry_is_kept_at_the_keeper_until_its_forks_are_made() -> None:
    """The keeper shuts down a socket that it drops, and with it the link."""

    async def run() -> None:
        ours, keeper = wire.pair()
        zygote, theirs = one(Link(ours))
        zygote.up.set_result("")
        with theirs, keeper:
            fork = asyncio.ensure_future(zygote.fork([]))
            request = await asked(theirs)
            zygote.end()
            with pytest.raises(BlockingIOError):
                wire.receive(keeper)
            wire.send(theirs, {"id": request["id"], "pid": os.getppid()})
            await fork
            assert (await asked(keeper))["op"] == "drop"

    asyncio.run(run())


@pytest.mark.parametrize("newer_first", [True, False])
def test_later_of_two_imports_stays_in_either_order_of_completion(newer_first: bool) -> None:
    async def run() -> None:
        ours, keeper = wire.pair()
        zygotes = AppZygotes(Link(ours), children(), *[cast(Any, None)] * 3)
        with contextlib.ExitStack() as ends:
            ends.enter_context(ours)
            ends.enter_context(keeper)
            process = {}
            for began in (2.0, 1.0) if newer_first else (1.0, 2.0):
                link, process[began] = wire.pair()
                ends.enter_context(process[began])
                meta = {"key": "key", "asked_at": began, "pid": os.getpid(), "server": "web"}
                zygotes.adopt("key.1", meta, [link.detach()])
                wire.send(process[began], {"event": "up"})
                await asyncio.wait([making.task for making in zygotes._imports_in_progress.values()])
            for each in process.values():
                assert [await asked(each), await asked(each)] == [{"order": "go"}, {"op": "ping"}]
            assert wire.receive(process[1.0]) is None
            with pytest.raises(BlockingIOError):
                wire.receive(process[2.0])
            zygotes._present["key"].link.close()

    asyncio.run(run())


def test_zygote_without_waiters_is_closed_at_once() -> None:
    async def run() -> None:
        zygote, theirs = one()
        with theirs:
            zygote.end()
            assert wire.receive(theirs) is None

    asyncio.run(run())


def test_refused_fork_and_unanswered_fork_are_distinguished() -> None:
    async def run() -> None:
        zygote, theirs = one()
        refused, lost = (
            asyncio.ensure_future(zygote.fork([])),
            asyncio.ensure_future(zygote.fork([])),
        )
        request = await asked(theirs)
        wire.send(theirs, {"id": request["id"], "error": "cannot fork: Resource temporarily unavailable"})
        with pytest.raises(WorkerFailed, match="no worker can be forked: cannot fork"):
            await refused
        theirs.close()
        with pytest.raises(LinkLost):
            await lost

    asyncio.run(run())


def test_zygote_is_usable_or_gives_the_reason_or_has_exited() -> None:
    async def run() -> None:
        for message, problem in (({"event": "up"}, ""), ({"event": "unusable", "problem": "no"}, "no")):
            zygote, theirs = one()
            with theirs:
                wire.send(theirs, message)
                assert await zygote.up == problem
            zygote.link.close()
        zygote, theirs = one()
        wire.send(theirs, {"event": "failed", "message": "cannot import it"})
        theirs.close()
        with pytest.raises(LinkLost):
            await zygote.up
        assert zygote._reason == "cannot import it"

    asyncio.run(run())


def test_zygote_that_names_a_process_it_cannot_have_forked_is_cut_off() -> None:
    async def run() -> None:
        zygote, theirs = one()
        with theirs:
            fork = asyncio.ensure_future(zygote.fork([]))
            request = await asked(theirs)
            wire.send(theirs, {"id": request["id"], "pid": "word"})
            with pytest.raises(
                WorkerFailed, match="its preloaded application answered with a message with an inv"
            ):
                await fork
            assert wire.receive(theirs) is None, "and is let go"

    asyncio.run(run())


def worker(index: int, **config: object) -> LocalWorker:
    server = ServerConfig(name="web", bind="127.0.0.1:8080", **(config or {"app": "web:app"}))
    return LocalWorker(
        cast(Children, None), cast(RunnerEvents, None), Placement.of("web", 1, index), server, "web"
    )


def begun(workers: list[LocalWorker]) -> list[bool]:
    return [each.begun.done() for each in workers]


async def a_moment() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_worker_begins_when_another_has_its_application() -> None:
    async def run() -> None:
        turns, workers = ImportLimit(at_once=2), [worker(index) for index in range(4)]
        for each in workers:
            turns.queue(each.begin, each.imported)
        assert begun(workers) == [True, True, False, False]
        workers[1].received({"event": "imported"}, [])
        await a_moment()
        assert begun(workers) == [True, True, True, False]
        workers[1].answer()  # ready as well: its turn was over before
        await a_moment()
        assert begun(workers) == [True, True, True, False]

    asyncio.run(run())


def test_a_worker_that_ends_gives_up_its_turn_and_one_that_ended_before_takes_none() -> None:
    async def run() -> None:
        turns, workers = ImportLimit(at_once=1), [worker(index) for index in range(4)]
        for each in workers:
            turns.queue(each.begin, each.imported)
        workers[1].ended(Exit(status=1))
        workers[0].ended(Exit(status=1))
        await a_moment()
        assert begun(workers) == [True, True, True, False]

    asyncio.run(run())


def test_app_zygote_takes_a_turn_and_gives_it_back_when_it_ends() -> None:
    async def run() -> None:
        turns, waiting = ImportLimit(at_once=1), worker(0)
        (ours, theirs), at_keeper = wire.pair(), wire.pair()
        keeper = Link(at_keeper[0])
        zygote = AppZygote(keeper, Children(keeper, 0), "key", Process(1, None), None, "web")
        zygote.follow(ours)
        turns.queue(zygote.begin, zygote.imported)
        turns.queue(waiting.begin, waiting.imported)
        assert zygote.begun.done()
        assert not waiting.begun.done()
        theirs.close()
        async with asyncio.timeout(60):
            await waiting.begun
        assert isinstance(zygote.up.exception(), LinkLost)
        turns.queue(zygote.begin, zygote.imported)  # one that has ended while it waited begins, to no effect
        keeper.close()
        at_keeper[1].close()

    asyncio.run(run())


# Zygotes of a real keeper.


@pytest.mark.slow
def test_zygote_is_started_once_serves_many_forks_and_ends_when_it_is_closed() -> None:
    async def work(runner: ProcessRunner) -> None:
        server = served(python=sys.executable)
        await runner.check(server)
        (process,) = runner.zygotes.processes
        source = Source(sys.executable)
        entry = f"zygote {source.key}"
        assert await runner.zygotes.up(source) is await runner.zygotes.up(source)
        assert (await kept(runner))[entry] == {"without": [], "pid": process.pid, "start": process.start}
        workers = [await placed(runner, server, 1 + number) for number in range(2)]
        for each in workers:
            assert each.pid is not None
            keeper = runner.children.keeper_pid, process_start(each.pid)
            while process_parent(each.pid) != keeper:  # a moment after the fork
                await asyncio.sleep(0.01)
        assert runner.zygotes.processes == [process]
        runner.zygotes.close()
        assert runner.zygotes.processes == []
        await asyncio.to_thread(wait_until, lambda: not is_alive(process.pid))
        assert entry not in await kept(runner)
        assert await fetch(server), "workers keep running"

    with_runner(work)


@pytest.mark.slow
def test_killed_zygote_is_replaced_at_the_next_fork() -> None:
    async def work(runner: ProcessRunner) -> None:
        server = served()
        await runner.check(server)
        (first,) = runner.zygotes.processes
        os.kill(first.pid, signal.SIGKILL)
        await placed(runner, server)
        while first in runner.zygotes.processes:
            await asyncio.sleep(0.01)
        (second,) = runner.zygotes.processes
        assert second.pid != first.pid

    with_runner(work)


@pytest.mark.slow
def test_zygote_is_replaced_when_other_variables_are_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(runner: ProcessRunner) -> None:
        server = served(python=sys.executable)
        await runner.check(server)
        (first,) = runner.zygotes.processes
        monkeypatch.setattr(module, "withheld_variables", lambda: ["SECRET"])
        await runner.check(server)
        (second,) = runner.zygotes.processes
        assert second.pid != first.pid
        await runner.zygotes.up(Source(sys.executable))
        entries = await kept(runner)
        assert [meta["without"] for name, meta in entries.items() if name.startswith("zygote ")] == [
            ["SECRET"]
        ]

    with_runner(work)


def test_interpreter_that_exits_at_its_start_is_named_with_its_output(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)

    async def work(runner: ProcessRunner) -> None:
        with pytest.raises(WorkerFailed) as caught:
            await runner.check(served(python=str(python)))
        assert f"no worker can be forked in {python}: the interpreter exited" in caught.value.message
        assert "helpers.log" in caught.value.hint
        assert runner.zygotes.processes == []

    with_runner(work)


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (Source("/usr/bin/python"), "/usr/bin/python"),
        (Source("/usr/bin/python", (1, 2)), "1:2:/usr/bin/python"),
        (Source("/a\nb", (0, 0)), "0:0:/a\nb"),
    ],
)
def test_zygote_is_known_by_its_interpreter_and_user(source: Source, key: str) -> None:
    assert source.key == key
    assert Source.of(key) == source


def test_exits_of_earlier_processes_are_forgotten_when_a_fork_begins_and_none_is_in_progress() -> None:
    async def scenario() -> None:
        found = children()
        with found.forking():
            found.early[7] = Exit.from_status(0)
            with found.forking():
                assert 7 in found.early
            assert 7 in found.early
        with found.forking():
            assert found.early == {}

    run(scenario())


def test_process_that_has_ended_may_be_named_again(child: int) -> None:
    async def scenario() -> None:
        keeper = Keeper()
        assert keeper.children.add(child) is None
        keeper.children.confirm(Process(child, process_start(child)), lambda deed: None)
        keeper.children.ended(child)
        assert (await keeper.children.verify({"pid": child}, None, None)).pid == child
        keeper.close()

    run(scenario())


BROKEN = "import sys\nprint('about to fail')\nraise RuntimeError('no settings')\n"


def preloading(directory: Path, text: str, name: str = "web", **keys: Any) -> ServerConfig:
    (directory / "shop.py").write_text(text)
    return served(name=name, app="shop:app", app_dir=str(directory), preload=True, **keys)


@pytest.mark.slow
def test_import_that_fails_is_explained_once_for_each_server_that_shares_it(tmp_path: Path) -> None:
    async def work(runner: ProcessRunner) -> None:
        servers = [preloading(tmp_path, BROKEN, name) for name in ("web", "api")]
        for server in servers:
            await runner.open(server)
        results = await asyncio.gather(
            *(runner.prepare(each, 0.0) for each in servers), return_exceptions=True
        )
        for server, result in zip(servers, results, strict=True):
            assert isinstance(result, WorkerFailed)
            assert result.hint == f"poolctl logs {server.name}"
            assert result.exit is not None
            assert not result.exit.ok
            while not any("no settings" in line for line in await runner.logs(server.name, 50)):
                await asyncio.sleep(0.01)
        assert isinstance(results[0], ImportFailed) != isinstance(results[1], ImportFailed)

    with_runner(work)


@pytest.mark.slow
def test_import_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    async def work(runner: ProcessRunner) -> None:
        server = preloading(tmp_path, "import time\ntime.sleep(600)\n", start_timeout=0.5)
        await runner.open(server)
        with pytest.raises(ImportFailed, match="was not ready within 500ms") as caught:
            await runner.prepare(server, 0.0)
        assert "start_timeout" in caught.value.hint
        while runner.app_zygotes.processes:
            await asyncio.sleep(0.01)

    with_runner(work)


@pytest.mark.slow
def test_application_that_cannot_be_shared_gives_its_reason_until_its_code_is_newer(tmp_path: Path) -> None:
    text = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"

    async def work(runner: ProcessRunner) -> None:
        server = preloading(tmp_path, text + "app = None\n")
        await runner.open(server)
        reason = await runner.prepare(server, 0.0)
        assert "thread" in reason
        assert await runner.prepare(server, 0.0) == reason
        (tmp_path / "shop.py").write_text("from tests.asgi_apps import hello as app\n")
        assert await runner.prepare(server, time.monotonic()) == ""

    with_runner(work)


@pytest.mark.slow
def test_import_of_a_server_that_is_stopped_ends() -> None:
    async def work(runner: ProcessRunner) -> None:
        server = served(preload=True)
        await runner.open(server)
        preparing = asyncio.ensure_future(runner.prepare(server, 0.0))
        while not runner.app_zygotes.processes:
            await asyncio.sleep(0)
        runner.app_zygotes.release(server.key)
        with pytest.raises(WorkerFailed, match="was stopped before its application was imported"):
            await preparing

    with_runner(work)
