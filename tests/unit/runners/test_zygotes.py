"""Processes that a zygote names are accepted only when it can have forked them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from poolctl import ServerConfig
from poolctl.keeper import wire
from poolctl.platform import parent_and_start, process_start
from poolctl.runners.embedded_runner import ProcessRunner
from poolctl.runners.local.app_zygotes import AppZygote, AppZygotes, ImportLimit
from poolctl.runners.local.children import Children, Forged, ProcessIdentity
from poolctl.runners.local.local_worker import LocalWorker
from poolctl.runners.local.zygotes import InterpreterZygoteIdentity, Zygotes
from poolctl.runners.process_link import Link, LinkLost
from poolctl.runners.runner_protocol import Exit, Placement, RunnerEventHandler, WorkerFailed
from poolctl.runners.withheld_variables import withheld_variables
from poolctl.runners.worker_spec import Spec
from tests.deadline import wait_until
from tests.processes import is_alive
from tests.serving import turns
from tests.unit.runners.real_runner import fetch, kept, placed, served
from tests.virtual_loop import run_in_virtual_time


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


@pytest.mark.parametrize("pid", [-1, 0, 1, 2**22 + 1, 2**40, "word", None, True, 5.0, [], {}, "9" * 100])
async def test_invalid_pid_is_refused(pid: object) -> None:
    keeper = Keeper()
    with pytest.raises(Forged, match="an invalid 'pid'"):
        await keeper.children.verified_process({"pid": pid}, None, None)
    keeper.close()


async def test_new_process_of_the_user_is_taken_with_its_start_time(child: int) -> None:
    keeper = Keeper()
    found = await keeper.children.verified_process({"pid": child}, os.geteuid(), process_start(os.getpid()))
    assert found == (child, process_start(child))
    keeper.close()


@pytest.mark.parametrize(
    "case", ["another of the pool", "another user's", "older than the zygote", "not there"]
)
async def test_process_that_the_zygote_cannot_have_forked_is_refused(child: int, case: str) -> None:
    keeper = Keeper()
    uid, not_before, pid = os.geteuid(), 0, child
    if case == "another of the pool":
        keeper.children.register_unless_exited(child)
    elif case == "another user's":
        uid += 1
    elif case == "older than the zygote":
        not_before = (process_start(child) or 0) + 1
    else:
        pid = (1 << 22) - 1
    with pytest.raises(Forged, match=f"pid {pid} as a new process"):
        await keeper.children.verified_process({"pid": pid}, uid, not_before)
    keeper.close()


async def test_process_that_exited_before_the_check_is_known_by_its_report() -> None:
    keeper = Keeper()
    pid = (1 << 22) - 1
    keeper.before = lambda: keeper.children.early.update({pid: Exit.from_returncode(3)})
    assert await keeper.children.verified_process({"pid": pid}, 0, 0) == (pid, None)
    assert keeper.children.register_unless_exited(pid) == Exit.from_returncode(3)
    keeper.close()


@pytest.mark.loop(run=run_in_virtual_time)
async def test_process_that_does_not_become_a_child_of_the_keeper_is_reported_once(child: int) -> None:
    keeper = Keeper()
    deeds: list[str] = []
    keeper.children.schedule_parent_check(ProcessIdentity(child, process_start(child)), deeds.append)
    parent = os.getppid()
    keeper.children.schedule_parent_check(ProcessIdentity(parent, process_start(parent)), deeds.append)
    await asyncio.sleep(60)
    assert deeds == [f"named pid {parent} as a new process, but it is not a process of the pool"]
    keeper.close()


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
        keeper or cast(Link, Silent()),
        children(),
        ours,
        "key",
        ProcessIdentity(os.getpid(), None),
        None,
        "web",
    )
    return zygote, theirs


def children() -> Children:
    """What trusts no zygote, and needs no keeper where the processes are there."""
    return Children(cast(Link, Silent()), 0)


async def asked(theirs: socket.socket) -> wire.Message:
    """The next request that reaches the process."""
    return (await asked_with_descriptors(theirs))[0]


async def asked_with_descriptors(theirs: socket.socket) -> tuple[wire.Message, list[int]]:
    """The next request that reaches the process, and its descriptors."""
    async with asyncio.timeout(60):
        while True:
            try:
                received = wire.receive(theirs)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            assert received is not None
            return received


async def test_zygote_that_is_not_needed_any_more_answers_requests_in_progress() -> None:
    zygote, theirs = one()
    with theirs:
        fork = asyncio.ensure_future(zygote.fork([]))
        request = await asked(theirs)
        zygote.end()
        wire.send(theirs, {"id": request["id"], "pid": os.getppid()})
        assert (await fork).pid == os.getppid()
        assert wire.receive(theirs) is None, "and then it is let go"


async def test_zygotes_entry_is_kept_at_the_keeper_until_its_forks_are_made() -> None:
    """The keeper shuts down a socket that it drops, and with it the link."""

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


@pytest.mark.parametrize("newer_first", [True, False])
async def test_later_of_two_imports_stays_in_either_order_of_completion(newer_first: bool) -> None:
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
            assert [await asked(process[began]) for _ in range(2)] == [{"order": "go"}, {"op": "ping"}]
            await turns()
        assert wire.receive(process[1.0]) is None
        with pytest.raises(BlockingIOError):
            wire.receive(process[2.0])
        zygotes.close()


async def test_zygote_without_waiters_is_closed_at_once() -> None:
    zygote, theirs = one()
    with theirs:
        zygote.end()
        assert wire.receive(theirs) is None


async def test_refused_fork_and_unanswered_fork_are_distinguished() -> None:
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


async def test_zygote_is_usable_or_gives_the_reason_or_has_exited() -> None:
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


async def test_zygote_that_names_a_process_it_cannot_have_forked_is_cut_off() -> None:
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


def worker(index: int, **config: object) -> LocalWorker:
    server = ServerConfig(name="web", bind="127.0.0.1:8080", **(config or {"app": "web:app"}))
    placement = Placement.of("web", 1, index)
    return LocalWorker(
        cast(Children, None), cast(RunnerEventHandler, None), placement, server, "web", start=None
    )


def begun(workers: list[LocalWorker]) -> list[bool]:
    return [each.begun.done() for each in workers]


async def a_moment() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_worker_begins_when_another_has_its_application() -> None:
    turns, workers = ImportLimit(at_once=2), [worker(index) for index in range(4)]
    for each in workers:
        turns.queue(each.order_to_begin, each.imported)
    assert begun(workers) == [True, True, False, False]
    workers[1].received({"event": "imported"}, [])
    await a_moment()
    assert begun(workers) == [True, True, True, False]
    workers[1].mark_ready()  # ready as well: its turn was over before
    await a_moment()
    assert begun(workers) == [True, True, True, False]


async def test_a_worker_that_ends_gives_up_its_turn_and_one_that_ended_before_takes_none() -> None:
    turns, workers = ImportLimit(at_once=1), [worker(index) for index in range(4)]
    for each in workers:
        turns.queue(each.order_to_begin, each.imported)
    workers[1].record_exit(Exit(status=1))
    workers[0].record_exit(Exit(status=1))
    await a_moment()
    assert begun(workers) == [True, True, True, False]


async def test_app_zygote_takes_a_turn_and_gives_it_back_when_it_ends() -> None:
    turns, waiting = ImportLimit(at_once=1), worker(0)
    (ours, theirs), at_keeper = wire.pair(), wire.pair()
    keeper = Link(at_keeper[0])
    zygote = AppZygote(keeper, Children(keeper, 0), ours, "key", ProcessIdentity(1, None), None, "web")
    turns.queue(zygote.begin_import, zygote.imported)
    turns.queue(waiting.order_to_begin, waiting.imported)
    assert zygote.begun.done()
    assert not waiting.begun.done()
    theirs.close()
    async with asyncio.timeout(60):
        await waiting.begun
    assert isinstance(zygote.up.exception(), LinkLost)
    turns.queue(
        zygote.begin_import, zygote.imported
    )  # one that has ended while it waited begins, to no effect
    keeper.close()
    at_keeper[1].close()


# Zygotes of a keeper in this process, whose time passes at once.

HERE = ProcessIdentity(os.getpid(), process_start(os.getpid()))


class StoringKeeper:
    """A keeper that starts nothing: it keeps the orders that it gets, and the ends of the links to new zygotes."""

    def __init__(self) -> None:
        ours, self._sock = wire.pair()
        self.link = Link(ours)
        self.children = Children(self.link, 0)
        self.zygotes = Zygotes(self.link, self.children, "/run/pool")
        self.answers = True
        self.sent = [True]  # the answers to signals; the last one is repeated
        self.orders: list[wire.Message] = []
        self.stored: tuple[wire.Message, socket.socket] | None = None
        self.spawned: list[socket.socket] = []
        self._sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._received)

    def _received(self) -> None:
        received = wire.receive(self._sock)
        if received is None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            return
        message, fds = received
        reply: wire.Message = {"id": message.pop("id", None)}
        self.orders.append(message)
        if message["op"] == "get" and self.stored is not None:
            reply["meta"], sock = self.stored
            wire.send(self._sock, reply, [sock.fileno()])
            sock.close()
            self.stored = None
            return
        if message["op"] == "spawn":
            self.spawned.append(wire.socket_from_fd(fds.pop()))
            self.spawned[-1].setblocking(False)
            reply["pid"] = HERE.pid
        elif message["op"] == "signal":
            reply["sent"] = self.sent.pop(0) if len(self.sent) > 1 else self.sent[0]
        for fd in fds:
            os.close(fd)
        if reply["id"] is not None and self.answers:
            wire.send(self._sock, reply)

    def taken(self) -> list[wire.Message]:
        """The orders since the last call."""
        orders, self.orders = self.orders, []
        return orders

    def close(self) -> None:
        self.zygotes.close()
        self.link.close()
        self._sock.close()
        for sock in self.spawned:
            sock.close()


@pytest.fixture
@contextlib.asynccontextmanager
async def keeper(virtual_time: None, descriptors_closed: None) -> AsyncIterator[StoringKeeper]:
    keeper = StoringKeeper()
    try:
        yield keeper
    finally:
        keeper.close()


KILLED = {"op": "signal", "pid": HERE.pid, "start": HERE.start, "signal": signal.SIGKILL, "group": True}
PYTHON = InterpreterZygoteIdentity("/usr/bin/python")
DROPPED = {"op": "drop", "name": "zygote /usr/bin/python"}


async def started(
    keeper: StoringKeeper, source: InterpreterZygoteIdentity = PYTHON
) -> tuple[Link, socket.socket]:
    """The link to a new zygote that is up, and the zygote's end."""
    starting = keeper.zygotes.start(source)
    while not keeper.spawned:
        await asyncio.sleep(0)
    zygote = keeper.spawned.pop()
    wire.send(zygote, {"event": "up"})
    return await starting, zygote


async def test_zygote_is_spawned_and_put_into_the_store(keeper: StoringKeeper) -> None:
    link, zygote = await started(keeper)
    with zygote:
        get, spawn, put = keeper.taken()
        assert get == {"op": "get", "name": "zygote /usr/bin/python"}
        assert (spawn["op"], spawn["argv"][0], spawn["output"]) == (
            "spawn", "/usr/bin/python", "/run/pool/zygotes.log",
        )  # fmt: skip
        assert put == {
            "op": "put",
            "name": "zygote /usr/bin/python",
            "meta": {"without": spawn["without"], "pid": HERE.pid, "start": HERE.start},
        }
        assert await keeper.zygotes.ensure_zygote_up(PYTHON) is link
        assert keeper.zygotes.processes == [HERE]
        keeper.zygotes.close()
        assert wire.receive(zygote) is None
        assert keeper.zygotes.processes == []
        await asyncio.sleep(1.9)
        assert keeper.taken() == [DROPPED]
        await asyncio.sleep(0.2)
        assert keeper.taken() == [KILLED]


async def test_zygote_of_the_store_is_asked_whether_it_is_up(keeper: StoringKeeper) -> None:
    ours, zygote = wire.pair()
    meta = {"without": withheld_variables(), "pid": HERE.pid, "start": HERE.start}
    keeper.stored = meta, ours
    zygote.setblocking(False)
    starting = keeper.zygotes.start(PYTHON)
    with zygote:
        assert await asked(zygote) == {"op": "ping"}
        wire.send(zygote, {"event": "up"})
        wire.send(zygote, {"event": "unfit", "reason": "too late"})
        await starting
        assert [order["op"] for order in keeper.taken()] == ["get"]
        assert keeper.zygotes.processes == [HERE]


async def test_zygote_of_the_store_with_other_variables_is_replaced(keeper: StoringKeeper) -> None:
    ours, other = wire.pair()
    keeper.stored = {"without": ["SECRET"], "pid": 1, "start": 1}, ours
    _, zygote = await started(keeper)
    with zygote, other:
        assert wire.receive(other) is None
        assert keeper.zygotes.processes == [HERE]


@pytest.mark.parametrize(("is_stored", "seconds"), [(True, 10), (False, 30)])
async def test_zygote_that_is_not_up_in_time_is_killed_and_not_used_again(
    keeper: StoringKeeper, is_stored: bool, seconds: int
) -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = wire.pair()
    with theirs:
        if is_stored:
            meta = {"without": withheld_variables(), "pid": HERE.pid, "start": HERE.start}
            keeper.stored = meta, ours
        else:
            ours.close()
        with pytest.raises(LinkLost, match=f"the interpreter was not up within {seconds} s"):
            await keeper.zygotes.ensure_zygote_up(PYTHON)
        assert loop.time() == pytest.approx(seconds)
        assert keeper.zygotes.processes == []
        await asyncio.sleep(2.1)
        assert keeper.taken()[-2:] == [DROPPED, KILLED]
        for sock in keeper.spawned:
            sock.close()
        keeper.spawned.clear()
        _, zygote = await started(keeper)
        zygote.close()


async def test_zygote_that_has_exited_is_replaced_at_the_next_start(keeper: StoringKeeper) -> None:
    first, zygote = await started(keeper)
    keeper.taken()
    zygote.close()
    while keeper.zygotes.processes:
        await asyncio.sleep(0.1)
    assert keeper.taken() == [DROPPED]
    second, zygote = await started(keeper)
    assert second is not first
    zygote.close()


async def test_worker_of_a_zygote_that_exits_right_after_its_answer_is_used(
    keeper: StoringKeeper, child: int
) -> None:
    _, zygote = await started(keeper)
    forking = asyncio.ensure_future(keeper.zygotes.fork(PYTHON, []))
    request = await asked(zygote)
    wire.send(zygote, {"id": request["id"], "pid": child})
    zygote.close()
    assert await forking == (child, process_start(child))
    assert keeper.zygotes.processes == []


async def test_zygote_that_exits_as_soon_as_it_is_up_is_lost_to_a_fork(keeper: StoringKeeper) -> None:
    forking = asyncio.ensure_future(keeper.zygotes.fork(PYTHON, []))
    while not keeper.spawned:
        await asyncio.sleep(0)
    with keeper.spawned.pop() as zygote:
        wire.send(zygote, {"event": "up"})
    with pytest.raises(LinkLost):
        await forking


async def test_interpreter_that_is_unfit_says_why_and_how_to_fix_it(keeper: StoringKeeper) -> None:
    starting = asyncio.ensure_future(keeper.zygotes.ensure_zygote_up(PYTHON))
    while not keeper.spawned:
        await asyncio.sleep(0)
    with keeper.spawned.pop() as zygote:
        wire.send(zygote, {"event": "news"})
        wire.send(zygote, {"event": "unfit", "reason": "has no uvicorn", "hint": "install it"})
        wire.send(zygote, {"event": "up"})
        with pytest.raises(WorkerFailed, match="/usr/bin/python has no uvicorn") as failed:
            await starting
        assert (wire.receive(zygote), keeper.zygotes.processes) == (None, [])
    assert failed.value.hint == "install it"


async def test_zygote_that_breaks_the_protocol_or_named_a_foreign_process_is_cut_off(
    keeper: StoringKeeper,
) -> None:
    keeper.zygotes.discard(PYTHON, "named pid 1")  # it has exited meanwhile
    link, zygote = await started(keeper)
    with zygote:
        keeper.zygotes.discard(PYTHON, "named pid 1")
        assert (link.sock.fileno(), keeper.zygotes.processes) == (-1, [])
    link, zygote = await started(keeper)
    with zygote:
        forking = asyncio.ensure_future(keeper.zygotes.fork(PYTHON, []))
        request = await asked(zygote)
        assert request["op"] == "worker"
        wire.send(zygote, {"id": request["id"], "pid": 0})
        with pytest.raises(WorkerFailed, match="no worker can be forked in /usr/bin/python: ") as failed:
            await forking
        assert failed.value.hint == "see /run/pool/zygotes.log"
        assert link.sock.fileno() == -1


async def test_zygote_that_is_silent_with_a_fork_pending_is_lost_after_ten_seconds(
    keeper: StoringKeeper,
) -> None:
    _, zygote = await started(keeper)
    with zygote, pytest.raises(LinkLost, match="has not answered for 10 s"):
        await keeper.zygotes.fork(PYTHON, [])
    assert asyncio.get_running_loop().time() == pytest.approx(10)


@pytest.mark.parametrize("losses", [0, 1, 2])
async def test_fork_is_tried_twice(keeper: StoringKeeper, losses: int) -> None:
    left = losses

    async def attempt() -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            raise LinkLost("it exited")
        return "forked"

    if losses < 2:
        assert await keeper.zygotes.with_retry(PYTHON, attempt) == "forked"
        return
    source = InterpreterZygoteIdentity("/usr/bin/python", (33, 34))
    with pytest.raises(WorkerFailed, match="no worker can be forked in /usr/bin/python: it ex") as failed:
        await keeper.zygotes.with_retry(source, attempt)
    command = "setpriv --reuid=33 --regid=34 --init-groups /usr/bin/python -c 'import uvicorn'"
    assert failed.value.hint == f"try: {command}"


@pytest.mark.parametrize(
    ("sent", "times", "seconds"), [([True], 1, 0.0), ([False, False, True], 3, 0.01), ([False], 20, 0.1)]
)
async def test_signal_is_repeated_until_the_keeper_is_the_parent(
    keeper: StoringKeeper, sent: list[bool], times: int, seconds: float
) -> None:
    loop = asyncio.get_running_loop()
    keeper.sent = sent
    await keeper.children.try_signal(HERE, loop.create_future(), signal.SIGTERM)
    assert keeper.taken() == [{**KILLED, "signal": signal.SIGTERM, "group": False}] * times
    assert loop.time() == pytest.approx(seconds)


async def test_signal_is_given_up_when_the_process_has_exited_or_the_keeper_does_not_answer(
    keeper: StoringKeeper,
) -> None:
    loop = asyncio.get_running_loop()
    exited: asyncio.Future[Exit] = loop.create_future()
    keeper.sent = [False]
    exited.set_result(Exit.from_returncode(0))
    await keeper.children.try_signal(HERE, exited, signal.SIGTERM)
    assert len(keeper.taken()) == 1
    keeper.answers = False
    await keeper.children.try_signal(HERE, loop.create_future(), signal.SIGTERM)
    assert loop.time() == pytest.approx(15)
    keeper.link.close()
    await keeper.children.try_signal(HERE, loop.create_future(), signal.SIGTERM)
    assert loop.time() == pytest.approx(15)


async def test_process_is_killed_after_its_time_unless_it_has_exited(keeper: StoringKeeper) -> None:
    loop = asyncio.get_running_loop()
    exited: asyncio.Future[Exit] = loop.create_future()
    keeper.children.kill_group_after(HERE, exited, 3.0)
    keeper.children.kill_group_after(HERE, loop.create_future(), 4.0)
    keeper.children.kill_group_now(ProcessIdentity(HERE.pid, None))
    await asyncio.sleep(2)
    assert keeper.taken() == []
    exited.set_result(Exit.from_returncode(0))
    await asyncio.sleep(1.9)
    assert keeper.taken() == []
    await asyncio.sleep(0.2)
    assert keeper.taken() == [KILLED]


async def test_foreign_process_is_reported_after_three_seconds_and_its_pid_may_be_named_again(
    keeper: StoringKeeper,
) -> None:
    loop = asyncio.get_running_loop()
    reported: list[float] = []
    keeper.children.schedule_parent_check(
        HERE, lambda _: reported.append(loop.time())
    )  # the keeper's pid is unknown
    keeper.children.keeper_pid = 1 << 22
    keeper.children.schedule_parent_check(
        ProcessIdentity(HERE.pid, None), lambda _: reported.append(loop.time())
    )  # has exited
    await asyncio.sleep(5)
    assert reported == []
    keeper.children.register_unless_exited(HERE.pid)
    keeper.children.schedule_parent_check(HERE, lambda _: reported.append(loop.time()))
    await asyncio.sleep(5)
    (at,) = reported
    assert 8.0 <= at <= 8.1001
    assert await keeper.children.verified_process({"pid": HERE.pid}, None, None) == HERE


async def test_process_is_confirmed_once_and_may_exit_afterwards(keeper: StoringKeeper, child: int) -> None:
    deeds: list[str] = []
    keeper.children.keeper_pid = os.getpid()
    keeper.children.schedule_parent_check(ProcessIdentity(child, process_start(child)), deeds.append)
    await asyncio.sleep(0.2)
    keeper.children.keeper_pid = 1 << 22
    await asyncio.sleep(5)
    assert deeds == []


class Written:
    """The output of servers, whose pipes are read to their ends at once."""

    def __init__(self) -> None:
        self.paths: dict[str, str] = {}
        self.said: list[tuple[str, list[str]]] = []
        self.waits: list[tuple[str, float]] = []
        self.discarded: list[str] = []
        self.followed: list[tuple[str, int]] = []

    def create_pipe(self, server: ServerConfig) -> tuple[str, int]:
        return server.name, os.open(os.devnull, os.O_WRONLY)

    def discard(self, pipe: str) -> None:
        self.discarded.append(pipe)

    def register_pipe(self, pipe: str, pid: int) -> None:
        self.followed.append((pipe, pid))

    async def wait_until_stored(self, pipe: str, seconds: float) -> None:
        self.waits.append((pipe, seconds))

    async def append_lines(self, server: ServerConfig, lines: list[str]) -> None:
        self.said.append((server.name, lines))


WEB, API = (
    ServerConfig(name=name, bind=f"127.0.0.1:{port}", app="shop:app")
    for port, name in ((1, "web"), (2, "api"))
)
SPEC = cast(Spec, {"python": "/usr/bin/python", "user": None})


class Imports:
    """App zygotes for WEB and API, of which one is importing since 5.0; `theirs` is its end of the link."""

    def __init__(self, keeper: StoringKeeper) -> None:
        self.written = Written()
        self.all = AppZygotes(
            keeper.link, keeper.children, keeper.zygotes, cast(Any, self.written), ImportLimit(at_once=1)
        )
        self.key = self.all.retain_and_get_key(WEB, SPEC)
        assert self.all.retain_and_get_key(API, SPEC) == self.key
        ours, self.theirs = wire.pair()
        self.theirs.setblocking(False)
        meta = {"key": self.key, "asked_at": 5.0, "pid": HERE.pid, "start": HERE.start, "server": "web"}
        self.all.adopt("", meta, [ours.detach()])

    def get(self, server: ServerConfig = WEB, since: float = 5.0) -> asyncio.Task[AppZygote | str]:
        return asyncio.ensure_future(self.all.get_or_import(server, SPEC, since))


async def test_adopted_application_serves_all_servers_that_share_it_until_it_is_not_needed(
    keeper: StoringKeeper,
) -> None:
    imports = Imports(keeper)
    with imports.theirs as theirs:
        first, second = imports.get(), imports.get(API)
        assert [await asked(theirs), await asked(theirs)] == [{"order": "go"}, {"op": "ping"}]
        wire.send(theirs, {"event": "up"})
        zygote = await first
        assert isinstance(zygote, AppZygote)
        assert await second is await imports.get() is zygote
        assert (imports.all.processes, zygote.code_since, zygote.usable) == ([HERE], 5.0, True)
        imports.all.release(API.key)
        imports.all.release(API.key)
        assert zygote.usable
        imports.all.release(WEB.key)
        assert not zygote.usable
        assert wire.receive(theirs) is None
        assert imports.all.handle_exit(HERE.pid, Exit.from_returncode(0))
        assert not imports.all.handle_exit(HERE.pid, Exit.from_returncode(1))
        assert (imports.all.processes, zygote.exited.result()) == ([], Exit.from_returncode(0))
        await asyncio.sleep(3)
        assert keeper.taken() == [{"op": "drop", "name": zygote.name}], "it has not to be killed"


async def test_application_that_cannot_be_shared_is_not_imported_again_until_it_is_not_needed(
    keeper: StoringKeeper,
) -> None:
    imports = Imports(keeper)
    with imports.theirs as theirs:
        getting = imports.get()
        wire.send(theirs, {"event": "unusable", "problem": "it has started a thread"})
        wire.send(theirs, {"event": "up"})
        assert await getting == "it has started a thread"
        assert await imports.get(API) == "it has started a thread"
        for server in (WEB, API):
            imports.all.release(server.key)
        imports.all.handle_exit(HERE.pid, Exit.from_returncode(0))
        await asyncio.sleep(0)
        keeper.taken()
        again = imports.get()
        while not keeper.orders:
            await asyncio.sleep(0)
        assert keeper.taken()[0]["op"] == "get"
        imports.all.close()
        with pytest.raises(WorkerFailed, match="was stopped before its application was imported"):
            await again
        assert imports.written.discarded == ["web"]


@pytest.mark.parametrize("is_reported", [True, False])
async def test_import_that_fails_is_reported_to_each_server_with_its_own_log(
    keeper: StoringKeeper, is_reported: bool
) -> None:
    imports = Imports(keeper)
    wire.send(imports.theirs, {"event": "failed", "message": "no settings"})
    both = asyncio.gather(imports.get(), imports.get(API), return_exceptions=True)
    await asyncio.sleep(1)
    exit_ = Exit.from_returncode(3) if is_reported else Exit(message="ended")
    if is_reported:
        imports.all.handle_exit(HERE.pid, exit_)
    imports.theirs.close()
    web, api = await both
    assert isinstance(web, WorkerFailed)
    assert isinstance(api, WorkerFailed)
    assert web.message == api.message == exit_.message_before_ready("no settings")
    assert (web.hint, api.hint) == ("poolctl logs web", "poolctl logs api")
    assert web.exit == api.exit == exit_
    assert imports.written.waits == [("", 10.0)]
    assert imports.written.said == [("api", [])]
    assert asyncio.get_running_loop().time() == pytest.approx(1.0 if is_reported else 2.0)


async def test_adopted_import_has_thirty_seconds(keeper: StoringKeeper) -> None:
    imports = Imports(keeper)
    with imports.theirs:
        with pytest.raises(WorkerFailed, match="was not ready within 30s") as failed:
            await imports.get()
        assert failed.value.hint == "poolctl logs web; start_timeout sets how long it may take"
        assert failed.value.exit is None
        assert asyncio.get_running_loop().time() == pytest.approx(30)
        while KILLED not in keeper.orders:
            await asyncio.sleep(0)
        assert asyncio.get_running_loop().time() == pytest.approx(30)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("foreign", [False, True])
async def test_process_that_a_zygote_of_another_user_forked_for_an_application_is_confirmed(
    keeper: StoringKeeper, foreign: bool, tmp_path: Path
) -> None:
    os.chmod(tmp_path, 0o777)  # others may change the interpreter: root does not run it
    os.symlink(sys.executable, tmp_path / "python")
    spec = cast(Spec, {"python": str(tmp_path / "python"), "user": (os.geteuid(), os.getegid())})

    keeper.children.keeper_pid = 1 << 22 if foreign else os.getppid()
    written, turns = Written(), ImportLimit(at_once=1)
    imports = AppZygotes(keeper.link, keeper.children, keeper.zygotes, cast(Any, written), turns)
    importing = asyncio.ensure_future(imports.get_or_import(WEB, spec, 0.0))
    while not keeper.spawned:
        await asyncio.sleep(0)
    with keeper.spawned.pop() as zygote:
        wire.send(zygote, {"event": "up"})
        request, (spec_fd, link, output) = await asked_with_descriptors(zygote)
        for fd in (spec_fd, output):
            os.close(fd)
        assert request["op"] == "app"
        wire.send(zygote, {"id": request["id"], "pid": HERE.pid})
        with wire.socket_from_fd(link) as theirs:
            assert await asked(theirs) == {"order": "go"}
            wire.send(theirs, {"event": "up"})
            made = await importing
            assert isinstance(made, AppZygote)
            assert (imports.processes, made.uid, made.usable) == ([HERE], os.geteuid(), True)
            assert written.followed == [("web", HERE.pid)]
            await asyncio.sleep(4)
            assert made.usable is not foreign
            assert (KILLED in keeper.taken()) is foreign
            assert len(keeper.zygotes.processes) == (not foreign)
            imports.close()
            assert wire.receive(theirs) is None


@pytest.mark.parametrize(("is_up", "forks", "seconds"), [(False, 0, 0), (True, 0, 2), (True, 1, 12)])
async def test_process_with_an_application_is_killed_if_it_does_not_end(
    keeper: StoringKeeper, is_up: bool, forks: int, seconds: int
) -> None:
    ours, theirs = wire.pair()
    zygote = AppZygote(keeper.link, keeper.children, ours, "key", HERE, None, "web")
    with theirs:
        if is_up:
            wire.send(theirs, {"event": "up"})
            await zygote.up
        pending = [asyncio.ensure_future(zygote.fork([])) for _ in range(forks)]
        await asyncio.sleep(0)
        zygote.end()
        while KILLED not in keeper.orders:
            await asyncio.sleep(0.25)
        assert seconds <= asyncio.get_running_loop().time() <= seconds + 0.25
        for each in pending:
            with pytest.raises(LinkLost):
                await each


# Zygotes of a real keeper.


@pytest.mark.slow
async def test_zygote_is_started_once_serves_many_forks_and_ends_when_it_is_closed(
    runner: ProcessRunner,
) -> None:
    server = served(python=sys.executable)
    await runner.check_startable(server)
    (process,) = runner.zygotes.processes
    source = InterpreterZygoteIdentity(sys.executable)
    entry = f"zygote {source.key}"
    assert await runner.zygotes.ensure_zygote_up(source) is await runner.zygotes.ensure_zygote_up(source)
    assert (await kept(runner))[entry] == {"without": [], "pid": process.pid, "start": process.start}
    workers = [await placed(runner, server, 1 + number) for number in range(2)]
    for each in workers:
        assert each.pid is not None
        keeper = runner.children.keeper_pid, process_start(each.pid)
        while parent_and_start(each.pid) != keeper:  # a moment after the fork
            await asyncio.sleep(0.01)
    assert runner.zygotes.processes == [process]
    runner.zygotes.close()
    assert runner.zygotes.processes == []
    await asyncio.to_thread(wait_until, lambda: not is_alive(process.pid))
    assert entry not in await kept(runner)
    assert await fetch(server), "workers keep running"


async def test_interpreter_that_exits_at_its_start_is_named_with_its_output(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)

    with pytest.raises(WorkerFailed) as caught:
        await runner.check_startable(served(python=str(python)))
    assert f"no worker can be forked in {python}: the interpreter exited" in caught.value.message
    assert "zygotes.log" in caught.value.hint
    assert runner.zygotes.processes == []


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (InterpreterZygoteIdentity("/usr/bin/python"), "/usr/bin/python"),
        (InterpreterZygoteIdentity("/usr/bin/python", (1, 2)), "1:2:/usr/bin/python"),
        (InterpreterZygoteIdentity("/a\nb", (0, 0)), "0:0:/a\nb"),
    ],
)
def test_zygote_is_known_by_its_interpreter_and_user(source: InterpreterZygoteIdentity, key: str) -> None:
    assert source.key == key
    assert InterpreterZygoteIdentity.from_key(key) == source


async def test_exits_of_earlier_processes_are_forgotten_when_a_fork_begins_and_none_is_in_progress() -> None:
    found = children()
    with found.recording_early_exits():
        found.early[7] = Exit.from_returncode(0)
        with found.recording_early_exits():
            assert 7 in found.early
        assert 7 in found.early
    with found.recording_early_exits():
        assert found.early == {}


async def test_process_that_has_ended_may_be_named_again(child: int) -> None:
    keeper = Keeper()
    assert keeper.children.register_unless_exited(child) is None
    keeper.children.schedule_parent_check(ProcessIdentity(child, process_start(child)), lambda deed: None)
    keeper.children.forget(child)
    assert (await keeper.children.verified_process({"pid": child}, None, None)).pid == child
    keeper.close()
