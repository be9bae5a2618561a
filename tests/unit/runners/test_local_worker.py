"""Messages of a worker are checked, and one that breaks the protocol is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl import ServerConfig, platform
from poolctl.keeper import wire
from poolctl.listeners import sock_diag
from poolctl.listeners.sock_diag import accept_queue
from poolctl.platform import process_start
from poolctl.runners.local import local_worker as module
from poolctl.runners.local.local_worker import (
    AdoptedWorker,
    LocalWorker,
    NotifySocket,
    RoutesMessage,
    RunnerWorkers,
    StackReader,
    Tallies,
    Tally,
    WorkerHeartbeats,
    wait_until_listening,
)
from poolctl.runners.local.server_sockets import WorkerRoutes
from poolctl.runners.local.zygotes import Children, ProcessIdentity
from poolctl.runners.process_link import Descriptor, Malformed
from poolctl.runners.runner_protocol import Exit, Placement, RunnerEventHandler, WorkerFailed
from poolctl.runners.stack_report import WorkerStacks
from poolctl.runners.worker_spec import added_environment, argument_vector
from poolctl.worker import tally
from poolctl.worker.process_setup import BEAT
from poolctl.worker.tally import ASK, ASK_AGAIN, STACK_BYTES, StackDumper, promise_stacks, read_stacks
from tests.deadline import wait_until
from tests.descriptors import no_descriptor_left
from tests.examples import examples
from tests.virtual_loop import VirtualLoop


class Keeper:
    """Kills the processes that it is told to kill."""

    def __init__(self) -> None:
        self.killed: list[ProcessIdentity] = []
        self.signals: list[int] = []

    def continue_now(self, process: ProcessIdentity) -> None:
        """Nothing here is suspended."""

    async def try_signal(
        self, process: ProcessIdentity, exited: asyncio.Future[Exit], number: int, *, group: bool = False
    ) -> None:
        self.signals.append(number)

    def kill_group_after(
        self, process: ProcessIdentity, exited: asyncio.Future[Exit], seconds: float
    ) -> None:
        self.killed.append(process)


class Heard:
    """What a runner reports by itself."""

    def __init__(self) -> None:
        self.expirations: list[Placement] = []

    def expired(self, placement: Placement) -> None:
        self.expirations.append(placement)


def worker(
    keeper: Keeper | None = None,
    events: Heard | None = None,
    *,
    name: str = "web",
    index: int = 0,
    generation: int = 1,
    pid: int = 2,
    **config: Any,
) -> LocalWorker:
    serves = {"bind": "127.0.0.1:8080", "app": "web:app"}
    server = ServerConfig(name=name, **(config if "command" in config else serves | config))
    return LocalWorker(
        cast(Children, keeper or Keeper()),
        lambda: cast(RunnerEventHandler, events),
        Placement.of(name, generation, index, pid=pid),
        server,
        "web",
    )


@pytest.mark.parametrize(
    "message",
    [
        {"event": ["ready"]},
        {"event": {}},
        {"event": "ready", "leaving": "yes"},
        {"event": "ready", "resting": 1},
        {"event": "failed", "message": ["x"]},
    ],
)
def test_value_of_another_type_is_malformed(message: wire.Message) -> None:
    async def scenario() -> None:
        with pytest.raises(Malformed):
            worker().received(message)

    asyncio.run(scenario())


def test_message_of_another_version_is_ignored() -> None:
    async def scenario() -> None:
        worker().received({"event": "of tomorrow", "with": {"more": [1]}})
        worker().received({})

    asyncio.run(scenario())


def test_text_is_shortened_and_without_control_characters() -> None:
    async def scenario() -> None:
        found = worker()
        found.received({"event": "failed", "message": "\x1b]0;title\x07 \ud800 déjà\n" + "x" * 10_000})
        assert found.reason.startswith("\ufffd]0;title\ufffd \ufffd déjà\nxxx")
        assert len(found.reason) == 4000

    asyncio.run(scenario())


def test_served_requests_are_believed_once_and_only_where_there_is_a_limit() -> None:
    async def scenario() -> None:
        for limit, times in ((None, 0), (10, 1)):
            heard = Heard()
            found = worker(events=heard, http={"max_requests": limit})
            found.received({"event": "expired"})
            found.received({"event": "expired"})
            assert len(heard.expirations) == times

    asyncio.run(scenario())


def test_worker_that_closes_its_control_socket_and_lives_on_misbehaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_END_SECONDS", 0.02)

    async def scenario() -> None:
        for ends in (True, False):
            keeper = Keeper()
            found = worker(keeper)
            ours, theirs = wire.pair()
            found.control_by(ours)
            theirs.close()
            await asyncio.sleep(0)
            if ends:
                found.record_exit(Exit.from_returncode(0))
            await asyncio.sleep(0.05)
            assert keeper.killed == ([] if ends else [found.process])
            assert found.breach == ("" if ends else "it closed its control socket")

    _run_virtually(scenario())


@pytest.mark.parametrize(
    ("keys", "seconds"),
    [
        ({}, 1.0),
        ({"ready_after": "20s", "start_timeout": 0.5}, 20.0),
        ({"health": {"liveness": {"exec": ["true"]}}}, 1.0),
        # The probe decides.
        ({"health": {"readiness": {"exec": ["true"]}}}, 0.0),
    ],
)
def test_program_without_a_port_is_ready_when_it_has_run_for_a_second_or_its_own_time(
    keys: dict[str, Any], seconds: float
) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await worker(command=["celery"], **keys).wait_until_ready([])
        assert loop.time() - begun == seconds

    _run_virtually(scenario())


def test_program_without_a_port_that_notifies_is_ready_when_it_says_so() -> None:
    async def scenario() -> None:
        found = worker(command=["celery"], notify=True)
        asyncio.get_running_loop().call_later(20, found.mark_ready)
        await found.wait_until_ready([])
        assert asyncio.get_running_loop().time() == 20

    _run_virtually(scenario())


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [
        (0, "exited with status 0 before it was ready", "job = true if it runs to its end; poolctl logs web"),
        (3, "exited with status 3 before it was ready", "poolctl logs web"),
    ],
)
def test_program_without_a_port_that_ends_at_once_has_not_started(
    status: int, message: str, hint: str
) -> None:
    async def scenario() -> None:
        found = worker(command=["celery"])
        asyncio.get_running_loop().call_later(0.9, found.record_exit, Exit.from_returncode(status))
        with pytest.raises(WorkerFailed) as raised:
            await found.wait_until_ready([])
        assert raised.value.message == message
        assert raised.value.hint.endswith(hint)

    _run_virtually(scenario())


def test_program_that_may_have_come_to_the_end_of_its_input_gets_one_without_end() -> None:
    async def scenario() -> None:
        for keys in ({}, {"bind": "127.0.0.1:1"}):
            found = worker(command=["cat"], **keys)
            found.record_exit(Exit.from_returncode(0))
            failure = found.answered.exception()
            assert isinstance(failure, WorkerFailed)
            assert 'write stdin = "open" if it ends at the end of its input' in failure.hint
            assert ("job = true" in failure.hint) == (not keys)

    _run_virtually(scenario())


def test_program_without_a_port_has_nothing_to_drain_and_gets_one_signal() -> None:
    async def scenario() -> None:
        keeper = Keeper()
        found = worker(keeper, command=["celery"], stop_timeout=9)
        await found.stop_accepting(None)
        await found.drain(None)
        assert (keeper.signals, asyncio.get_running_loop().time()) == ([], 0)
        asyncio.get_running_loop().call_later(5, found.record_exit, Exit.from_returncode(0))
        assert (await found.stop(9, None)).ok
        assert keeper.signals == [signal.SIGTERM]

    _run_virtually(scenario())


def _run_virtually(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work)


@pytest.mark.parametrize(
    ("config", "reports", "says", "unseen"),
    [
        ({}, True, False, True),
        ({}, True, True, False),
        ({"command": ["./queue"]}, False, False, True),
        ({"command": ["./migrate"], "job": True}, False, False, False),
    ],
    ids=[
        "a worker that said nothing",
        "one that has reported",
        "a program that is gone",
        "a job that is gone",
    ],
)
def test_status_0_of_an_adopted_process_counts_only_if_it_was_seen_or_is_a_job(
    config: dict[str, Any], reports: bool, says: bool, unseen: bool
) -> None:
    """A supervisor that was killed may have ordered it to end."""

    async def scenario() -> None:
        found = worker(**config)
        found.start = -1  # of a process that has exited
        found.mark_adopted(reports=reports)
        if says:
            found.received({"event": "ready", "leaving": False, "resting": ""})
        found.record_exit(Exit.from_returncode(0))
        found.answered.exception()
        assert found.exited.result().ok is not unseen

    asyncio.run(scenario())


PLACEMENT = Placement.of("web", 1, 0, where="pid 7", pid=7)


class Pool:
    """The tallies of one worker, at a time that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        fd = tally.create_tally_page()
        self.page = tally.map_page(fd)
        self.tally = Tally(fd, self.now, lambda: self.now)
        self.refused: list[tuple[str, str, str]] = []
        self.ended: list[tally.Counts] = []
        keeper: Any = SimpleNamespace(send=lambda message, fds=(): None)
        worker: Any = SimpleNamespace(tally=self.tally)
        events: Any = SimpleNamespace(
            record_impossible_counts_event=lambda *why: self.refused.append(why),
            add_up_counts=lambda server, name, counts: self.ended.append(counts),
        )
        self.tallies = Tallies(keeper, {PLACEMENT.id: worker}, lambda: events)

    def counts(self) -> tally.Counts:
        counts = self.tallies.counts(PLACEMENT)
        assert counts is not None
        return counts


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    made.tally.close()


@pytest.mark.parametrize("slot", range(1, tally.COUNTED))
def test_number_that_no_worker_can_have_counted_is_refused_and_reported_once(pool: Pool, slot: int) -> None:
    pool.page[tally.STARTED] = pool.page[tally.BUCKETS] = 5
    before = pool.counts()
    pool.now += 2
    pool.page[slot] = 1 << 63
    for _ in range(3):
        assert pool.counts()[: tally.COUNTED] == before[: tally.COUNTED]
    assert [(server, worker) for server, worker, _ in pool.refused] == [("web", PLACEMENT.id)]
    assert f"slot {slot} went from {before[slot]} to" in pool.refused[0][2]


def test_refusal_is_reported_when_a_heartbeat_was_the_first_to_read_the_page(pool: Pool) -> None:
    pool.page[tally.BEAT_ANSWERED_NS] = 7
    pool.page[tally.STARTED] = 1 << 63
    assert pool.tally.last_beat_ns() == 7
    pool.counts()
    assert len(pool.refused) == 1


def test_worker_as_fast_as_one_can_be_is_believed_and_a_faster_one_is_not(pool: Pool) -> None:
    for seconds in (0.0, 0.25, 2.0, 3600.0):
        pool.now += seconds
        pool.page[tally.STARTED] += int(seconds * tally.MAX_PER_SECOND)
        assert pool.counts()[tally.STARTED] == pool.page[tally.STARTED]
    # A step back: the response to a probe is counted and then subtracted.
    pool.page[tally.STARTED] -= 1
    assert pool.counts()[tally.STARTED] == pool.page[tally.STARTED]
    assert not pool.refused
    pool.now += 1
    pool.page[tally.STARTED] += 3 * tally.MAX_PER_SECOND
    assert pool.counts()[tally.STARTED] < pool.page[tally.STARTED]
    assert pool.refused


def test_counts_of_a_refused_worker_that_ends_are_those_before(pool: Pool) -> None:
    pool.page[tally.STARTED], pool.page[tally.BUCKETS] = 5, 3
    pool.page[tally.OPEN_CONNECTIONS] = 2
    pool.counts()
    pool.page[tally.STARTED] = 1 << 40
    pool.tallies.collect_final_counts("web", "web:1.0:7", pool.tally)
    (left,) = pool.ended
    assert (left[tally.STARTED], left[tally.DISCONNECTED], left[tally.OPEN_CONNECTIONS]) == (5, 2, 0)
    assert pool.refused[0][:2] == ("web", "web:1.0:7")


def test_page_of_an_earlier_supervisor_is_judged_by_the_time_since_the_machine_started() -> None:
    fd = tally.create_tally_page()
    page = tally.map_page(fd)
    page[tally.STARTED] = 50 * tally.MAX_PER_SECOND
    believed, refused = Tally(fd, now=lambda: 60.0), Tally(fd, now=lambda: 40.0)
    assert (believed.counts() or [])[tally.STARTED] == page[tally.STARTED]
    assert (refused.counts() or [])[tally.STARTED] == 0
    believed.close()


def writes_over_time() -> st.SearchStrategy[list[tuple[float, list[tuple[int, int]]]]]:
    """Numbers that an application writes into its page, after a pause in seconds each time."""
    number = st.one_of(
        st.integers(0, 100), st.integers(0, (1 << 64) - 1), st.sampled_from([1 << 62, 1 << 63])
    )
    writes = st.lists(st.tuples(st.integers(1, tally.SIZE_BYTES // 8 - 1), number), min_size=1, max_size=20)
    return st.lists(st.tuples(st.floats(0, 1e6), writes), min_size=2, max_size=5)


def readings(steps: list[tuple[float, list[tuple[int, int]]]]) -> Iterator[tuple[float, tally.Counts]]:
    """The time and the counts of a server whose worker has written this, and has ended after each step."""
    pool, total = Pool(), [0] * tally.COUNTED
    try:
        for seconds, changes in steps:
            pool.now += seconds
            for slot, value in changes:
                pool.page[slot] = value
            counts = pool.counts()
            array("q", counts)
            seen = list(total)
            tally.add(seen, counts)
            yield pool.now, seen
            tally.add(total, tally.final_counts(counts))
            array("q", total)
            assert pool.tally.last_beat_ns() <= tally.MAX
    finally:
        pool.tally.close()


@pytest.mark.slow
def test_every_reading_of_a_page_with_random_numbers_fits_an_array() -> None:
    @examples(200)
    @given(writes_over_time())
    def check(steps: list[tuple[float, list[tuple[int, int]]]]) -> None:
        for _, counts in readings(steps):
            array("q", counts)

    check()


def test_sum_of_any_number_of_pages_fits_too() -> None:
    total, most = [0] * tally.COUNTED, [tally.MAX] * tally.COUNTED
    for _ in range(3):
        tally.add(total, most)
    array("q", total)
    assert total[tally.STARTED] == tally.MAX


def server(*command: str, bind: str = "127.0.0.1:8123", **keys: Any) -> ServerConfig:
    return ServerConfig(name="web", bind=bind, command=list(command), **keys)


@pytest.mark.parametrize(
    ("bind", "word", "filled"),
    [
        ("127.0.0.1:8123", "{host}:{port}", "127.0.0.1:8123"), ("[::1]:8123", "{host}", "::1"),
        ("127.0.0.1:8123", "{bind}/{name}", "127.0.0.1:8123/web"), ("127.0.0.1:8123", "--fd={fd}", "--fd=3"),
        ("127.0.0.1:8123", "{unknown}", "{unknown}"), ("127.0.0.1:8123", "{{port}}", "{port}"),
        ("unix:/tmp/a.sock", "[{fd}]", "[3]"),
    ],
)  # fmt: skip
def test_placeholders_are_filled_in_and_other_braces_stay(bind: str, word: str, filled: str) -> None:
    assert argument_vector(server("prog", word, bind=bind)) == ["prog", filled]


def test_placeholders_of_the_address_are_filled_in_in_the_environment_too(tmp_path: Path) -> None:
    (tmp_path / "its.env").write_text("FROM_FILE={port}\n")
    env = {"URL": "http://{host}:{port}", "AT": "{bind}", "FORMAT": "{name} {message}"}
    found = added_environment(server("prog", env=env, env_file=str(tmp_path / "its.env")))
    assert found == {
        "FROM_FILE": "{port}", "URL": "http://127.0.0.1:8123", "AT": "127.0.0.1:8123", "FORMAT": "{name} {message}",
        "HOST": "127.0.0.1", "PORT": "8123",
    }  # fmt: skip
    app = ServerConfig(name="web", bind=":1", app="m:app", env={"AT": "{port}"}, env_file=[])
    assert added_environment(app) == {"AT": "{port}"}


@pytest.fixture
def short_path() -> Any:
    with tempfile.TemporaryDirectory(prefix="pc-") as directory:
        yield Path(directory)


@contextlib.contextmanager
def listening(kind: str, directory: Path, backlog: int = 100) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX) as listener:
        listener.bind(("127.0.0.1", 0) if kind == "tcp" else str(directory / "a.sock"))
        listener.listen(backlog)
        yield listener


def program_at(listener: socket.socket, pid: int | None = None, **keys: Any) -> LocalWorker:
    """A worker with a command that uses the listener, whose process is this one."""
    where = listener.getsockname()
    bind = f"unix:{where}" if isinstance(where, str) else f"127.0.0.1:{where[1]}"
    return worker(command=["prog"], bind=bind, pid=pid or os.getpid(), **keys)


async def one_in_queue(listener: socket.socket) -> None:
    """Wait until a connection is in the accept queue: the other process accepts no more."""
    async with asyncio.timeout(60):
        while accept_queue(listener) == 0:
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def accepting_process(listener: socket.socket, count: int = 1_000_000) -> Iterator[int]:
    """Another process that accepts up to `count` connections from the listener; yields its pid."""
    pid = os.fork()
    if pid == 0:
        kept = [listener.accept() for _ in range(count)]
        signal.pause()
        os._exit(len(kept))
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_program_has_answered_when_it_has_accepted_and_not_before(kind: str, short_path: Path) -> None:
    async def scenario() -> None:
        with listening(kind, short_path) as listener:
            program = program_at(listener)
            waiting = asyncio.ensure_future(program.wait_until_ready([listener]))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            accepted, _ = listener.accept()
            with accepted, contextlib.ExitStack() as others:
                # The program is busy with the first one, and its queue is never empty.
                for _ in range(3):
                    others.enter_context(socket.socket(listener.family)).connect(listener.getsockname())
                await asyncio.wait_for(waiting, 60)
                assert accepted.recv(1) == b"", "it is not kept waiting by ours"

    asyncio.run(scenario())


def test_a_full_queue_of_a_unix_listener_is_no_answer(short_path: Path) -> None:
    async def scenario() -> None:
        with listening("unix", short_path, 0) as listener, contextlib.ExitStack() as others:
            listener.settimeout(60)
            others.enter_context(socket.socket(socket.AF_UNIX)).connect(listener.getsockname())
            waiting = asyncio.ensure_future(program_at(listener).wait_until_ready([listener]))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            for _ in range(2):
                others.enter_context((await asyncio.to_thread(listener.accept))[0])
            await asyncio.wait_for(waiting, 60)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("generation", [1, 2], ids=["older", "of the same age"])
def test_a_program_is_not_ready_because_another_worker_accepts(
    kind: str, generation: int, short_path: Path
) -> None:
    async def scenario() -> None:
        with listening(kind, short_path) as listener:
            program = program_at(listener, generation=2)
            with accepting_process(listener, 3) as pid:
                other = program_at(listener, pid, generation=generation)
                program.peers = lambda: [other]
                waiting = asyncio.ensure_future(program.wait_until_ready([listener]))
                await one_in_queue(listener)
                assert not waiting.done()
                with listener.accept()[0]:
                    await asyncio.wait_for(waiting, 60)

    asyncio.run(scenario())


def test_a_program_is_ready_when_it_has_accepted_a_client_while_probes_wait(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_LISTING_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(module, "_LISTING_SECONDS", 60.0)

    async def scenario() -> None:
        with listening("tcp", short_path) as listener, contextlib.ExitStack() as clients:
            for _ in range(5):
                clients.enter_context(socket.create_connection(listener.getsockname()))
            program = program_at(listener)
            waiting = asyncio.ensure_future(program.wait_until_ready([listener]))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            with listener.accept()[0]:
                await asyncio.wait_for(waiting, 60)

    asyncio.run(scenario())


def test_connection_that_an_unknown_process_accepts_counts_only_without_an_older_worker(
    short_path: Path,
) -> None:
    async def work(listener: socket.socket, stranger: int, leader: int) -> None:
        begun = process_start(stranger) or 0
        for start, older, is_ready in ((begun, 0, True), (begun + 1, 0, False), (begun, 1, False)):
            program = program_at(listener, leader, generation=2)
            program.start = start
            peers = [program_at(listener, 1, generation=1)] * older
            program.peers = lambda peers=peers: peers  # type: ignore[misc]
            waiting = asyncio.ensure_future(program.wait_until_ready([listener]))
            if is_ready:
                await asyncio.wait_for(waiting, 60)
            else:
                await asyncio.sleep(0.3)
                assert not waiting.done()
                waiting.cancel()

    with (
        listening("tcp", short_path) as listener,
        accepting_process(listener) as stranger,
        subprocess.Popen(["sleep", "60"]) as leader,
    ):
        asyncio.run(work(listener, stranger, leader.pid))
        leader.kill()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_connection_that_is_closed_at_once_counts_only_without_an_older_worker(
    kind: str, short_path: Path
) -> None:
    async def scenario() -> None:
        with listening(kind, short_path) as listener:
            program, keeper = program_at(listener, generation=2), Keeper()
            waiting = asyncio.ensure_future(program.wait_until_ready([listener]))
            await one_in_queue(listener)
            listener.accept()[0].close()
            await asyncio.wait_for(waiting, 60)

            older, program = program, program_at(listener, keeper=keeper, generation=3)
            program.peers = lambda: [older]
            waiting = asyncio.ensure_future(program.wait_until_ready([listener]))
            for _ in range(3):
                await one_in_queue(listener)
                listener.accept()[0].close()
            await asyncio.sleep(0.1)
            assert (waiting.done(), keeper.killed) == (False, [])
            await one_in_queue(listener)
            with listener.accept()[0]:
                await asyncio.wait_for(waiting, 60)

    asyncio.run(scenario())


def test_program_that_is_given_only_connections_with_data_is_ready_when_it_accepts(short_path: Path) -> None:
    async def scenario() -> None:
        with listening("tcp", short_path) as listener:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
            program = program_at(listener)
            waiting = asyncio.ensure_future(program.wait_until_ready([listener]))
            listener.settimeout(60)
            accepting = asyncio.ensure_future(asyncio.to_thread(listener.accept))
            with (await accepting)[0]:
                await asyncio.wait_for(waiting, 60)

    asyncio.run(scenario())


@pytest.mark.parametrize("hidden_by", ["kernel", "deferred accept", "rights"])
def test_program_whose_connections_cannot_be_attributed_is_killed_while_an_older_worker_runs(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, hidden_by: str
) -> None:
    async def scenario() -> None:
        with listening("tcp", short_path) as listener:
            if hidden_by == "kernel":
                monkeypatch.setattr(sock_diag, "_NETLINK_SOCK_DIAG", 31)  # a protocol that there is not
            elif hidden_by == "deferred accept":
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
            else:
                monkeypatch.setattr(platform, "socket_inodes", lambda pid: None)
            listener.settimeout(60)
            older = program_at(listener)
            waiting = asyncio.ensure_future(older.wait_until_ready([listener]))
            (await asyncio.to_thread(listener.accept))[0].close()
            await asyncio.wait_for(waiting, 60)

            keeper = Keeper()
            program = program_at(listener, keeper=keeper, generation=2)
            program.peers = lambda: [older]
            with accepting_process(listener):
                waiting = asyncio.ensure_future(program.wait_until_ready([listener]))
                async with asyncio.timeout(60):
                    while not keeper.killed:
                        await asyncio.sleep(0.01)
                program.record_exit(Exit.from_signal(signal.SIGKILL))
                with pytest.raises(WorkerFailed, match="the system does not show which process accepts"):
                    await waiting

                notified = program_at(listener, generation=3)
                notified.peers = lambda: [older]
                notified.mark_ready()
                (await notified.connect_for_probe("http", True, [listener], own=True)).close()

    asyncio.run(scenario())


def test_own_connection_is_one_that_the_worker_has_accepted(short_path: Path) -> None:
    async def scenario() -> None:
        with listening("tcp", short_path) as listener, accepting_process(listener, 3) as pid:
            older = program_at(listener, pid, generation=1)
            program = program_at(listener, generation=2)
            program.peers = lambda: [older]
            connecting = asyncio.ensure_future(program.connect_for_probe("http", True, [listener], own=True))
            await one_in_queue(listener)
            accepted, address = listener.accept()
            with accepted, await asyncio.wait_for(connecting, 60) as probe:
                assert probe.getsockname() == address
                probe.send(b"GET")
                assert accepted.recv(3) == b"GET"

    asyncio.run(scenario())


def test_a_program_that_binds_by_itself_has_answered_when_it_listens(free_port: Any) -> None:
    async def scenario() -> None:
        port = free_port()
        there = server("prog", "{port}", bind=f"127.0.0.1:{port}")
        waiting = asyncio.ensure_future(wait_until_listening(there))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        with socket.create_server(("127.0.0.1", port)):
            await asyncio.wait_for(waiting, 60)

    asyncio.run(scenario())


def test_program_is_looked_for_after_pauses_that_grow_to_a_fifth_of_a_second(short_path: Path) -> None:
    path = str(short_path / "program.sock")

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as listener:

            def listen() -> None:
                listener.bind(path)
                listener.listen()

            loop.call_later(1.0, listen)
            await wait_until_listening(server("prog", bind=f"unix:{path}"))
        pauses = [0.01 * 1.5**number for number in range(8)]
        assert loop.time() == pytest.approx(sum(pauses) + 3 * 0.2)

    _run_virtually(scenario())


def test_program_with_a_port_that_ends_before_it_listens_has_not_started(short_path: Path) -> None:
    async def scenario() -> None:
        found = worker(command=["serve"], bind=f"unix:{short_path}/program.sock")
        asyncio.get_running_loop().call_later(5, found.record_exit, Exit.from_returncode(3))
        with pytest.raises(WorkerFailed, match="exited with status 3 before it was ready"):
            await found.wait_until_ready([])
        assert asyncio.get_running_loop().time() == 5

    _run_virtually(scenario())


def test_ready_is_a_line_among_others_and_the_socket_goes_away() -> None:
    async def scenario() -> str:
        notify = NotifySocket.open(os.geteuid())
        told: list[bool] = []
        notify.start(lambda: told.append(True))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as program:
            program.sendto(b"STATUS=READY=1 soon\nMAINPID=7", notify.path)
            await asyncio.sleep(0.02)
            assert not told
            program.sendto(b"STATUS=up\nREADY=1\n", notify.path)
            while not told:
                await asyncio.sleep(0)
        notify.close()
        notify.close()
        return notify.path

    path = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert not os.path.exists(os.path.dirname(path))


NOBODY, SOMEBODY = 65534, 54321

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def in_a_child(uid: int, act: Callable[[], None]) -> int:
    """The pid of a child that does it as that user, and ends."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(uid, uid, uid)
            act()
        finally:
            os._exit(0)
    return pid


async def ended(pid: int) -> None:
    await asyncio.to_thread(os.waitpid, pid, 0)


def say(path: str, message: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(message, path)


@root_only
def test_ready_is_accepted_only_from_the_programs_user_and_root() -> None:
    async def scenario() -> None:
        heard: list[int] = []
        notify = NotifySocket.open(NOBODY)
        notify.start(lambda: heard.append(1))
        for uid, count in ((SOMEBODY, 0), (NOBODY, 1), (0, 2)):
            await ended(in_a_child(uid, lambda: say(notify.path, b"STATUS=up\nREADY=1")))
            await asyncio.sleep(0.01)
            assert len(heard) == count, uid
        notify.close()

    asyncio.run(scenario())


def test_few_messages_are_read_from_a_program_that_floods() -> None:
    heard: list[int] = []
    notify = NotifySocket.open(os.geteuid())

    def flood() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(notify.path)
            while True:
                sock.send(b"READY=1")

    async def scenario() -> None:
        notify.start(lambda: heard.append(1))
        while notify._pause is None and len(heard) <= 100:
            await asyncio.sleep(0)
        count = len(heard)
        assert 0 < count <= 100
        assert select.select([notify], [], [], 60)[0], "there are more"
        await asyncio.sleep(0.35)
        assert len(heard) == count
        notify.close()

    pid = in_a_child(os.geteuid(), flood)
    try:
        _run_virtually(scenario())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


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
    ) -> None:
        os.kill(process.pid, number)


class WithoutPatience(Parent):
    """Signals, and lets the time be over when faulthandler has written, or if nothing is to be expected."""

    async def try_signal(
        self, process: ProcessIdentity, exited: asyncio.Future[Exit], number: int, *, group: bool = False
    ) -> None:
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


def local_worker(process: subprocess.Popen[bytes], tally: Tally, app_dir: str = "/") -> LocalWorker:
    """The process as a worker, which has not reported anything."""
    server = ServerConfig(name="web", bind="127.0.0.1:1", app="app:app", app_dir=app_dir)
    placement = Placement.of("web", 1, 0, pid=process.pid)
    worker = LocalWorker(cast(Children, None), cast(RunnerEventHandler, None), placement, server, "")
    worker.tally, worker.start = tally, process_start(process.pid)
    return worker


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
        worker = local_worker(process, tally, str(directory))
        worker.control_by(ours)
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


def test_worker_goes_on_and_is_asked_again_unless_it_is_stopped(tmp_path: Path) -> None:
    async def scenario() -> None:
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

    asyncio.run(scenario())


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


def test_worker_that_has_exited_has_no_stacks() -> None:
    async def scenario() -> None:
        reader = StackReader(cast(Children, None), {})
        found = await reader.stacks("web.1.0", SECONDS)
        assert (found.problem, found.name, found.worker) == ("it has exited", "web", "web.1.0")

    asyncio.run(scenario())


def test_child_that_is_forked_has_the_systems_handlers_unless_the_application_has_set_its_own() -> None:
    tally, ends = Tally.new(), os.pipe()
    before = signal.getsignal(ASK)
    assert not tally.has_stacks
    try:
        for handler in (None, signal.SIG_IGN):
            dump = StackDumper()
            dump.install_signal_handlers(os.dup(ends[0]))
            dump.enable_for_page(tally.fileno(), lambda: None)
            if handler is not None:
                signal.signal(ASK, handler)
            dump.disable_and_close()
            assert signal.getsignal(ASK) is (handler or signal.SIG_DFL)
            assert tally.has_stacks
    finally:
        signal.signal(ASK, before)
        tally.close()
        for fd in ends:
            os.close(fd)


def test_page_file_bounds_what_is_written_and_is_cleared_for_the_next_stacks() -> None:
    tally = Tally.new()
    try:
        tally.clear_stacks()
        assert os.write(tally.fileno(), b"x" * (2 * STACK_BYTES)) == STACK_BYTES
        with pytest.raises(PermissionError):
            os.write(tally.fileno(), b"x")
        assert len(tally.stacks()) == STACK_BYTES
        tally.clear_stacks()
        assert tally.stacks() == b""
        os.write(tally.fileno(), b"next")
        assert tally.stacks() == b"next"
        assert tally.counts() is not None
    finally:
        tally.close()


class Placed:
    """A worker, and its end of the control socket."""

    def __init__(self, index: int, *, handover_group: str = "plain", **config: Any) -> None:
        server = ServerConfig(name="web", bind="127.0.0.1:8080", app="web:app", **config)
        placement = Placement.of("web", 1, index, pid=2)
        self.worker = LocalWorker(
            cast(Children, None), cast(RunnerEventHandler, None), placement, server, "", handover_group
        )
        ours, self.its = wire.pair()
        self.worker.control_by(ours)
        self.its.setblocking(False)

    def orders(self) -> list[str]:
        """The orders that it has got since; a page is shown by its inode."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while (received := wire.receive(self.its)) is not None:
                message, fds = received
                found.append(" ".join([message["order"], *(str(os.fstat(fd).st_ino) for fd in fds)]))
                for fd in fds:
                    os.close(fd)
        return found

    def close(self) -> None:
        assert self.worker.control is not None
        for sock in (self.its, self.worker.control.sock):
            if isinstance(sock, socket.socket):
                sock.close()


@pytest.fixture
def placed() -> Iterator[list[Placed]]:
    made: list[Placed] = []
    yield made
    for each in made:
        each.close()


def place(all_workers: RunnerWorkers, placed: list[Placed], index: int, **options: Any) -> Placed:
    made = Placed(index, **options)
    placed.append(made)
    all_workers.add(made.worker)
    return made


def end(workers: RunnerWorkers, placed: list[Placed]) -> None:
    for each in placed:
        workers.remove(each.worker)


def test_page_is_sent_once_the_worker_has_begun_and_to_all_the_same(placed: list[Placed]) -> None:
    async def scenario() -> None:
        workers = RunnerWorkers()
        first, second = (place(workers, placed, index, workers=2) for index in (0, 1))
        assert first.orders() == second.orders() == []
        first.worker.order_to_begin()
        second.worker.order_to_begin()
        orders = first.orders()
        assert [each.split()[0] for each in orders] == ["go", "peers"]
        assert second.orders() == orders
        end(workers, placed)

    asyncio.run(scenario())


def test_single_worker_gets_a_page_when_a_second_one_comes(placed: list[Placed]) -> None:
    async def scenario() -> None:
        workers = RunnerWorkers()
        first = place(workers, placed, 0)
        first.worker.order_to_begin()
        assert first.orders() == ["go"]
        second = place(workers, placed, 1)
        second.worker.order_to_begin()
        assert first.orders() == second.orders()[1:] != []
        end(workers, placed)

    asyncio.run(scenario())


def test_workers_of_another_user_share_no_page_with_the_earlier_ones(placed: list[Placed]) -> None:
    async def scenario() -> None:
        workers = RunnerWorkers()
        first, other = (
            place(workers, placed, 0, workers=2, handover_group=each) for each in ("plain", "plain www")
        )
        first.worker.order_to_begin()
        other.worker.order_to_begin()
        sent = [each for each in (*first.orders(), *other.orders()) if each.startswith("peers")]
        assert len(set(sent)) == len(sent)
        end(workers, placed)

    asyncio.run(scenario())


def test_worker_that_has_ended_makes_no_second_one(placed: list[Placed]) -> None:
    async def scenario() -> None:
        workers = RunnerWorkers()
        first = place(workers, placed, 0)
        first.worker.exited.set_result(Exit(status=0))
        second = place(workers, placed, 0)
        second.worker.order_to_begin()
        assert second.orders() == ["go"]
        end(workers, placed)

    asyncio.run(scenario())


def test_worker_that_is_removed_leaves_the_others_and_their_page(placed: list[Placed]) -> None:
    async def scenario() -> None:
        workers = RunnerWorkers()
        first, second = (place(workers, placed, index, workers=2) for index in (0, 1))
        key = first.worker.server.key
        second.worker.order_to_begin()
        for _ in range(2):
            workers.remove(first.worker)
            assert list(workers.values()) == list(workers.of(key)) == [second.worker]
        third = place(workers, placed, 2, workers=2)
        third.worker.order_to_begin()
        assert second.orders() == third.orders()
        end(workers, placed)
        assert (dict(workers), list(workers.of(key))) == ({}, [])

    with no_descriptor_left():
        asyncio.run(scenario())
        for each in placed:
            each.close()


# A worker whose event loop is idle.


class Kernel:
    """The kernel's view of a worker: its processor time, and whether it waits for events."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used_ns: list[int | None] = [1000]
        self.waits = True
        self.answered_ns = 900
        monkeypatch.setattr(module, "process_cpu_ns", lambda _: self._next())
        monkeypatch.setattr(module, "waits_for_events", lambda _: self.waits)

    def _next(self) -> int | None:
        return self.used_ns.pop(0) if len(self.used_ns) > 1 else self.used_ns[0]

    def beat_cpu_ns(self) -> int:
        return self.answered_ns


def test_idle_worker_stays_idle_while_its_processor_time_does_not_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel, check = Kernel(monkeypatch), module.EventLoopIdleDetector()
    assert check.is_idle(7, cast(Tally, kernel))
    kernel.waits = False
    assert check.is_idle(7, cast(Tally, kernel)), "it has not run since"
    kernel.used_ns = [1001]
    assert not check.is_idle(7, cast(Tally, kernel)), "it has run, and not answered"
    kernel.waits, kernel.answered_ns = True, 1000
    assert check.is_idle(7, cast(Tally, kernel))
    kernel.used_ns = [None]
    assert not check.is_idle(7, cast(Tally, kernel))


def test_worker_that_waits_without_another_answer_or_has_run_is_not_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = module._AFTER_ANSWER_NS
    for used, waits, idle in (
        ([900 + most], True, True),
        ([901 + most], True, False),
        ([1000], False, False),
        ([1000, 1001], True, False),
        ([None], True, False),
    ):
        kernel, check = Kernel(monkeypatch), module.EventLoopIdleDetector()
        kernel.used_ns, kernel.waits = list(used), waits
        assert check.is_idle(7, cast(Tally, kernel)) == idle, used
    kernel, check = Kernel(monkeypatch), module.EventLoopIdleDetector()
    kernel.waits = False
    assert not check.is_idle(7, cast(Tally, kernel))
    kernel.waits, kernel.used_ns = True, [1001]
    assert not check.is_idle(7, cast(Tally, kernel)), "it has not answered since"


def test_notification_socket_can_be_reached_by_every_user_and_goes_away() -> None:
    async def scenario() -> None:
        notify = NotifySocket.open(NOBODY)
        directory = os.path.dirname(notify.path)
        assert os.stat(directory).st_mode & 0o777 == 0o711
        assert os.stat(notify.path).st_mode & 0o777 == 0o777
        assert not os.get_blocking(notify.fileno())
        notify.start(print)
        notify.close()
        notify.close()
        assert os.path.basename(directory) not in os.listdir(os.path.dirname(directory))
        assert notify.fileno() == -1

    with no_descriptor_left():
        asyncio.run(scenario())


def test_program_is_reached_through_its_listener_or_at_its_address(short_path: Path) -> None:
    async def scenario() -> None:
        path = str(short_path / "program.sock")
        with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
            unix.bind(path)
            unix.listen()
            port = tcp.getsockname()[1]
            for listener, config, target in (
                (tcp, server("x", bind=f"127.0.0.1:{port}"), None),
                (unix, server("x", bind=f"unix:{path}"), None),
                (tcp, server("x"), tcp),
            ):
                probe = await module.connect(config, target)
                with probe:
                    accepted, address = listener.accept()
                    accepted.close()
                    if listener is tcp:
                        assert probe.getsockname() == address
            for listeners in ([], [tcp]):
                program = worker(command=["serve"], bind=f"127.0.0.1:{port}")
                with await program.connect_for_probe("http", False, listeners), tcp.accept()[0]:
                    pass
            tcp.close()
            with pytest.raises(ConnectionRefusedError):
                await module.connect(server("x", bind=f"127.0.0.1:{port}"), None)

    with no_descriptor_left():
        asyncio.run(scenario())


def test_certificate_that_a_worker_cannot_use_is_logged_if_it_was_renewed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        made = worker()
        ours, theirs = wire.pair()
        made.control_by(ours)
        made.received({"event": "tls", "error": "nobody has asked"})
        for error in ("", "the key does not fit"):
            made.reload_tls(made.server, [])
            made.received({"event": "tls", "error": error})
        made.received({"event": "tls", "error": "nobody has asked"})
        theirs.close()
        assert made.control is not None
        made.control.close()

    asyncio.run(work())
    assert [record.getMessage() for record in caplog.records] == [
        "web.1.0: its certificate cannot be used: the key does not fit"
    ]


# Orders to a worker and its messages, over its control socket.


class Reports(Heard):
    """What a runner reports, idleness included."""

    def __init__(self) -> None:
        super().__init__()
        self.idleness: list[tuple[Placement, bool]] = []

    def idle_changed(self, placement: Placement, idle: bool) -> None:
        self.idleness.append((placement, idle))


class Controlled:
    """A worker, and the end of its control socket that its process has."""

    def __init__(self, **config: Any) -> None:
        self.keeper = Keeper()
        self.reports = Reports()
        self.worker = worker(self.keeper, self.reports, **config)
        ours, self.end = wire.pair()
        self.end.setblocking(False)
        self.worker.control_by(ours)

    def orders(self) -> list[tuple[wire.Message, int]]:
        """The orders since the last call, each with the number of its descriptors."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while received := wire.receive(self.end):
                found.append((received[0], len(received[1])))
                for fd in received[1]:
                    os.close(fd)
        return found

    def close(self) -> None:
        if self.worker.control is not None:
            self.worker.control.close()
        self.end.close()


def control(work: Callable[[Controlled], Coroutine[Any, Any, None]], **config: Any) -> None:
    async def watched() -> None:
        controlled = Controlled(**config)
        try:
            await work(controlled)
        finally:
            controlled.close()

    with no_descriptor_left():
        _run_virtually(watched())


def test_orders_to_a_worker_are_sent_as_messages() -> None:
    async def scenario(it: Controlled) -> None:
        found = it.worker
        found.resting, found.idle = "new", True
        found.set_in_rotation(False)
        found.set_in_rotation(True)
        found.set_accepting(False)
        found.set_accepting(True)
        found.watch_idleness(2.5)
        assert it.orders() == [
            ({"order": "out"}, 0),
            ({"order": "in"}, 0),
            ({"order": "rest"}, 0),
            ({"order": "work"}, 0),
            ({"order": "idle", "seconds": 2.5}, 0),
        ]
        assert (found.resting, found.idle) == ("", False)

    control(scenario)


def test_orders_to_a_program_have_no_effect() -> None:
    async def scenario() -> None:
        found = worker(command=["celery"])
        found.set_in_rotation(False)
        found.set_accepting(False)
        found.watch_idleness(1.0)
        found.reload_tls(found.server, [])
        assert not found.request_beat(1)
        found.order_to_begin()
        found.assign_routes(RoutesMessage(None))
        assert found.begun.done()

    asyncio.run(scenario())


def test_worker_reports_its_state_by_messages() -> None:
    async def scenario(it: Controlled) -> None:
        found = it.worker
        futures = {name: getattr(found, name) for name in ("imported", "left", "reported", "answered")}

        def done() -> set[str]:
            return {name for name, future in futures.items() if future.done()}

        found.received({"event": "imported"})
        assert done() == {"imported"}
        found.received({"event": "ready", "leaving": False, "resting": "rest"})
        assert (done(), found.resting, found.leaving) == ({"imported", "reported", "answered"}, "rest", False)
        ready_at = found.ready_at
        assert ready_at is not None
        found.received({"event": "ready", "leaving": True, "resting": ""})
        assert (done(), found.resting, found.leaving) == (set(futures), "", True)
        assert found.ready_at == ready_at
        found.received({"event": "idle"})
        assert found.to_adopted() == AdoptedWorker(found.placement, found.server, ready_at, True, True, "")
        found.received({"event": "busy"})
        assert it.reports.idleness == [(found.placement, True), (found.placement, False)]
        assert not found.idle
        assert not found.wrote_stacks.is_set()
        found.received({"event": "stacks"})
        assert found.wrote_stacks.is_set()

    control(scenario)


def test_worker_has_imported_its_application_when_it_is_ready() -> None:
    async def scenario() -> None:
        found = worker()
        assert (found.preloaded, found.imported.done()) == (False, False)
        assert found.to_adopted() == AdoptedWorker(found.placement, found.server, None, False, False, "")
        found.mark_ready()
        assert found.imported.done()
        assert found.ready_at is not None

    asyncio.run(scenario())


@pytest.mark.parametrize(("lives", "reports"), [(True, False), (True, True), (False, False)])
def test_adopted_program_has_reported_at_once_if_its_process_runs(lives: bool, reports: bool) -> None:
    async def scenario() -> None:
        found = worker(command=["serve"])
        found.placement = replace(found.placement, pid=os.getpid())
        found.start = (process_start(os.getpid()) or 0) - (not lives)
        found.mark_adopted(reports=reports)
        assert found.reported.done() == (lives and not reports)

    asyncio.run(scenario())


def test_worker_that_leaves_has_left_when_it_says_so() -> None:
    async def scenario(it: Controlled) -> None:
        it.worker.received({"event": "left"})
        await it.worker.stop_accepting(None)
        assert it.orders() == []

    control(scenario)


@pytest.mark.parametrize(
    ("group", "receivers", "to"),
    [("http", "http", "pair"), ("http", "tls", "none"), ("http", None, "none"), (None, None, "none")],
)
def test_connections_of_a_leaving_worker_go_to_workers_of_the_same_group(
    group: str | None, receivers: str | None, to: str
) -> None:
    async def scenario(it: Controlled) -> None:
        it.worker.handover_group = group
        it.worker.mark_ready()
        loop = asyncio.get_running_loop()
        await it.worker.stop_accepting(receivers)
        assert (it.orders(), loop.time()) == ([({"order": "drain", "to": to}, 0)], 3.0)
        loop.call_later(2, it.worker.received, {"event": "left"})
        await it.worker.drain(receivers)
        assert (it.orders(), loop.time()) == ([({"order": "drain", "to": to}, 0)], 6.0)
        assert it.keeper.signals == []

    control(scenario, drain_timeout=3)


def test_drain_ends_when_the_worker_has_exited() -> None:
    async def scenario(it: Controlled) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(2, it.worker.record_exit, Exit.from_returncode(0))
        await it.worker.drain(None)
        assert loop.time() == 2.0

    control(scenario, drain_timeout=3)


def test_program_with_a_port_is_signalled_once_to_leave() -> None:
    async def scenario() -> None:
        keeper = Keeper()
        serves: dict[str, Any] = {"bind": "127.0.0.1:8080", "stop_signal": "SIGQUIT", "drain_timeout": 3}
        found = worker(keeper, command=["serve"], **serves)
        await found.stop_accepting(None)
        await found.stop_accepting(None)
        assert (keeper.signals, found.left.done()) == ([signal.SIGQUIT], True)
        await found.drain(None)
        assert (keeper.signals, asyncio.get_running_loop().time()) == ([signal.SIGQUIT], 3.0)

    _run_virtually(scenario())


def test_worker_that_has_not_answered_yet_is_drained_by_a_signal_too_within_the_stop_timeout() -> None:
    async def scenario(it: Controlled) -> None:
        it.worker.handover_group = "http"
        await it.worker.stop_accepting("http")
        assert it.orders() == [({"order": "drain", "to": "pair"}, 0)]
        assert (it.keeper.signals, asyncio.get_running_loop().time()) == ([signal.SIGTERM], 2.0)
        await it.worker.drain("http")
        assert asyncio.get_running_loop().time() == 4.0, "one that reads no orders is left to the stop"

    control(scenario, drain_timeout=30, stop_timeout=2)


@pytest.mark.parametrize("is_ready", [True, False])
def test_worker_that_has_not_answered_yet_is_stopped_by_a_signal_too(is_ready: bool) -> None:
    async def scenario(it: Controlled) -> None:
        if is_ready:
            it.worker.mark_ready()
        asyncio.get_running_loop().call_later(4, it.worker.record_exit, Exit.from_returncode(0))
        assert await it.worker.stop(5, None) == Exit.from_returncode(0)
        assert it.orders() == [({"order": "stop", "to": "none"}, 0)]
        assert it.keeper.signals == ([] if is_ready else [signal.SIGTERM])

    control(scenario)


@pytest.mark.parametrize("survives", [True, False])
def test_worker_that_does_not_stop_in_time_is_killed_with_its_session(survives: bool) -> None:
    async def scenario(it: Controlled) -> None:
        loop = asyncio.get_running_loop()
        it.worker.mark_ready()
        if not survives:
            loop.call_later(6, it.worker.record_exit, Exit.from_signal(9))
            assert await it.worker.stop(5, None) == Exit.from_signal(9)
        else:
            with pytest.raises(TimeoutError):
                await it.worker.stop(5, None)
            assert loop.time() == 5 + module.KILL_SECONDS
        assert it.keeper.signals == [signal.SIGKILL]

    control(scenario)


def test_worker_that_exits_settles_everything_and_its_last_words_count() -> None:
    async def scenario(it: Controlled) -> None:
        found = it.worker
        wire.send(it.end, {"event": "failed", "message": "no such table"})
        disowned: list[str] = []
        found.on_never_started = lambda: disowned.append("disowned")
        found.record_exit(Exit.from_returncode(3))
        found.record_exit(Exit.from_returncode(4))
        futures = (found.reported, found.begun, found.imported, found.left)
        assert all(future.done() for future in futures)
        assert found.exited.result() == Exit.from_returncode(3)
        failure = found.answered.exception()
        assert isinstance(failure, WorkerFailed)
        assert failure.message == Exit.from_returncode(3).message_before_ready("no such table")
        assert (failure.hint, failure.exit) == ("poolctl logs web", Exit.from_returncode(3))
        found.mark_never_started("named pid 1")
        found.on_violation("sent nonsense")
        assert (found.breach, disowned, it.keeper.killed) == ("", [], [])
        assert found.control is not None
        assert found.control.sock.fileno() == -1
        with pytest.raises(ConnectionRefusedError, match="it has exited"):
            await found.connect_for_probe("http", False, [])

    control(scenario)


def test_worker_whose_zygote_lied_counts_as_exited_and_one_that_lies_is_killed_once() -> None:
    async def scenario(it: Controlled) -> None:
        disowned: list[str] = []
        it.worker.on_never_started = lambda: disowned.append(it.worker.breach)
        it.worker.mark_never_started("named pid 1")
        assert disowned == ["its zygote named pid 1"]
        other = worker(it.keeper)
        other.on_violation("sent nonsense")
        other.on_violation("sent more")
        assert (other.breach, it.keeper.killed) == ("it sent nonsense", [other.process])

    control(scenario)


@pytest.mark.parametrize("status", [0, 3])
def test_job_is_never_ready_and_a_failed_one_says_why(status: int) -> None:
    async def scenario() -> None:
        found = worker(command=["migrate"], job=True)
        asyncio.get_running_loop().call_later(5, found.record_exit, Exit.from_returncode(status))
        with pytest.raises(WorkerFailed) as raised:
            await found.wait_until_ready([])
        assert asyncio.get_running_loop().time() == 5
        before = "" if status else " before it was ready"
        assert raised.value.message == f"exited with status {status}{before}"
        assert (raised.value.hint, raised.value.exit) == ("poolctl logs web", Exit.from_returncode(status))

    _run_virtually(scenario())


def test_probe_gets_a_connection_of_its_own_to_the_worker() -> None:
    async def scenario(it: Controlled) -> None:
        with await it.worker.connect_for_probe("echo", True, []) as ours:
            received = wire.receive(it.end)
            assert received is not None
            message, (fd,) = received
            assert message == {"order": "conn", "kind": "echo", "plain": True}
            with socket.socket(fileno=fd) as theirs:
                theirs.send(b"?")
                assert ours.recv(10) == b"?"

    control(scenario)


def test_worker_that_reads_no_orders_is_not_sent_more_connections() -> None:
    async def scenario(it: Controlled) -> None:
        assert it.worker.control is not None
        while not it.worker.control.waits:
            it.worker.set_in_rotation(True)
        with pytest.raises(BlockingIOError, match="it has not read earlier commands"):
            await it.worker.connect_for_probe("echo", True, [])

    control(scenario)


def test_routes_are_sent_once_the_worker_begins_and_only_while_they_are_the_newest() -> None:
    async def scenario(it: Controlled) -> None:
        found = it.worker
        with contextlib.closing(Descriptor(os.memfd_create("web's"))) as own:
            routes = WorkerRoutes({"web": own}, {"web": "secret"}, ("10.0.0.0/8",))
            found.assign_routes(RoutesMessage(routes, "web"))
            assert it.orders() == []
            found.order_to_begin()
            sent = {"order": "routes", "key": "secret", "trusted": ["10.0.0.0/8"]}
            assert it.orders() == [({"order": "go"}, 0), (sent, 1)]
            found.assign_routes(RoutesMessage(routes, "api"))
            assert it.orders() == [({"order": "routes"}, 0)]
        found.assign_routes(RoutesMessage(routes, "web"))
        assert it.orders() == []

    control(scenario)


def test_heartbeat_is_asked_for_on_the_page_and_by_a_message() -> None:
    async def scenario(it: Controlled) -> None:
        found = it.worker
        beats = WorkerHeartbeats({found.placement.id: found})
        assert not beats.request_beat(found.placement, 5)
        assert beats.last_beat_ns(found.placement) == 0
        assert not beats.idle_since_answer(found.placement)
        fd = tally.create_tally_page()
        page = tally.map_page(fd)
        found.tally = Tally(fd)
        assert beats.request_beat(found.placement, 7)
        assert page[tally.BEAT_ASKED_NS] == 7
        assert it.end.recv(100) == BEAT
        page[tally.BEAT_ANSWERED_NS] = 9
        page[tally.BEAT_CPU_NS] = 11
        assert not beats.idle_since_answer(found.placement)
        assert (beats.last_beat_ns(found.placement), found.tally.beat_cpu_ns()) == (9, 11)
        unknown = Placement.of("web", 9, 9)
        assert (beats.request_beat(unknown, 1), beats.last_beat_ns(unknown)) == (False, 0)
        assert not beats.idle_since_answer(unknown)
        found.tally.close()
        found.tally.close()
        assert found.tally.fileno() == -1

    control(scenario)


def test_facts_for_another_supervisor_are_complete() -> None:
    async def scenario() -> None:
        found = worker(bind="127.0.0.1:8080", command=["serve"], stop_signal="SIGINT")
        found.start, found.ready_at, found.handover_group = 5, 1.5, "http"
        expected: dict[str, Any] = {
            "server": "web",
            "key": "127.0.0.1:8080",
            "generation": 1,
            "index": 0,
            "pid": 2,
            "start": 5,
            "ready_at": 1.5,
            "output": "web",
            "protocol": "http",
            "notify": None,
            "stop_signal": signal.SIGINT,
            "keeps_group": True,
        }
        assert found.meta() == expected
        found.hook = "before_start"
        assert found.meta() == {**expected, "hook": "before_start"}
        found.placement = replace(found.placement, pid=os.getpid())
        found.start = None
        assert found.meta()["start"] == process_start(os.getpid())

    asyncio.run(scenario())


class SentToKeeper:
    """The messages that the keeper is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[wire.Message, list[int]]] = []

    def send(self, message: wire.Message, fds: Any = ()) -> None:
        self.sent.append((message, list(fds)))


def test_counts_of_exited_workers_are_added_up_and_kept_until_they_are_saved() -> None:
    keeper = SentToKeeper()
    workers: dict[str, LocalWorker] = {}
    added: list[tuple[str, str, tally.Counts]] = []
    events: Any = SimpleNamespace(add_up_counts=lambda *ended: added.append(ended))
    tallies = Tallies(cast(Any, keeper), workers, lambda: events)
    with no_descriptor_left():
        for name, requests in (("web.1.1", 3), ("web.1.0", 2), ("web.1.2", 0)):
            fd = tally.create_tally_page()
            page = tally.map_page(fd)
            page[tally.STARTED] = page[tally.BUCKETS] = requests
            ended = Tally(fd)
            tallies.collect_final_counts("web", name, ended)
            assert ended.fileno() == -1
            assert [each for each, fds in keeper.sent if fds == [fd]] == (
                [{"op": "put", "name": f"tally:{name}", "meta": {"server": "web"}}] if requests else []
            )
            keeper.sent.clear()
            del page
        assert [(name, server, counts[tally.STARTED]) for server, name, counts in added] == [
            ("web.1.1", "web", 3),
            ("web.1.0", "web", 2),
        ]
        assert tallies.unsaved_workers == ["web.1.0", "web.1.1"]
        fd = tally.create_tally_page()
        page = tally.map_page(fd)
        page[tally.STARTED] = page[tally.BUCKETS] = 4
        assert tallies.add_up_unsaved_counts("api.1.0", {"server": "api"}, [fd]) == []
        del page
        assert (added[-1][:2], added[-1][2][tally.STARTED]) == (("api", "api.1.0"), 4)
        assert tallies.unsaved_workers == ["api.1.0", "web.1.0", "web.1.1"]
        tallies.discard_saved_counts()
        dropped = sorted(message["name"] for message, _ in keeper.sent if message["op"] == "drop")
        assert dropped == ["tally:api.1.0", "tally:web.1.0", "tally:web.1.1"]
        assert tallies.unsaved_workers == []
        assert tallies.counts(PLACEMENT) is None
