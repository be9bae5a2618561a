"""Messages of a worker are checked, and one that breaks the protocol is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast

import pytest

from poolctl import ServerConfig
from poolctl.keeper import wire
from poolctl.platform import process_start
from poolctl.runners.local.children import Children, ProcessIdentity
from poolctl.runners.local.local_worker import (
    KILL_SECONDS,
    LocalWorker,
    RunnerWorkers,
)
from poolctl.runners.local.notify_socket import NotifySocket
from poolctl.runners.local.readiness import connect_for_probe, wait_until_ready
from poolctl.runners.process_link import Descriptor, Malformed
from poolctl.runners.runner_protocol import Exit, Placement, RunnerEventHandler, WorkerFailed
from poolctl.runners.worker_spec import added_environment, argument_vector
from tests.descriptors import no_descriptor_left
from tests.virtual_loop import run_in_virtual_time


class Keeper:
    """Kills the processes that it is told to kill."""

    def __init__(self) -> None:
        self.killed: list[ProcessIdentity] = []
        self.signals: list[int] = []

    def continue_now(self, process: ProcessIdentity) -> None:
        """Nothing here is suspended."""

    async def try_signal(
        self, process: ProcessIdentity, exited: asyncio.Future[Exit], number: int, *, group: bool = False
    ) -> bool:
        self.signals.append(number)
        return True

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
    start: int | None = None,
    control: socket.socket | None = None,
    notify_socket: NotifySocket | None = None,
    handover_group: str | None = None,
    hook: str = "",
    adopted: bool = False,
    **config: Any,
) -> LocalWorker:
    serves = {"bind": "127.0.0.1:8080", "app": "web:app"}
    server = ServerConfig(name=name, **(config if "command" in config else serves | config))
    return LocalWorker(
        cast(Children, keeper or Keeper()),
        cast(RunnerEventHandler, events),
        Placement.of(name, generation, index, pid=pid),
        server,
        "web",
        start=start,
        control=control,
        notify=notify_socket,
        handover_group=handover_group,
        hook=hook,
        **({"adopted": True} if adopted else {}),
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
async def test_value_of_another_type_is_malformed(message: wire.Message) -> None:
    with pytest.raises(Malformed):
        worker().received(message)


async def test_message_of_another_version_is_ignored() -> None:
    worker().received({"event": "of tomorrow", "with": {"more": [1]}})
    worker().received({})


async def test_text_is_shortened_and_without_control_characters() -> None:
    found = worker()
    found.received({"event": "failed", "message": "\x1b]0;title\x07 \ud800 déjà\n" + "x" * 10_000})
    assert found.reason.startswith("\ufffd]0;title\ufffd \ufffd déjà\nxxx")
    assert len(found.reason) == 4000


async def test_served_requests_are_believed_once_and_only_where_there_is_a_limit() -> None:
    for limit, times in ((None, 0), (10, 1)):
        heard = Heard()
        found = worker(events=heard, http={"max_requests": limit})
        found.received({"event": "expired"})
        found.received({"event": "expired"})
        assert len(heard.expirations) == times


@pytest.mark.loop(run=run_in_virtual_time)
async def test_worker_that_closes_its_control_socket_and_lives_on_misbehaves() -> None:
    for ends in (True, False):
        keeper = Keeper()
        ours, theirs = wire.pair()
        found = worker(keeper, control=ours)
        theirs.close()
        await asyncio.sleep(0)
        if ends:
            found.record_exit(Exit.from_returncode(0))
        await asyncio.sleep(60)
        assert keeper.killed == ([] if ends else [found.process])
        found.record_exit(Exit.from_returncode(1))
        message = "exited with status 0" if ends else "exited with status 1: it closed its control socket"
        assert found.exited.result().message == message


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
@pytest.mark.loop(run=run_in_virtual_time)
async def test_program_without_a_port_is_ready_when_it_has_run_for_a_second_or_its_own_time(
    keys: dict[str, Any], seconds: float
) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await wait_until_ready(worker(command=["celery"], **keys), [], RunnerWorkers())
    assert loop.time() - begun == seconds


@pytest.mark.loop(run=run_in_virtual_time)
async def test_program_without_a_port_that_notifies_is_ready_when_it_says_so() -> None:
    notify = NotifySocket.open(os.geteuid())
    found = worker(command=["celery"], notify=True, notify_socket=notify)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as program:
        program.connect(notify.path)
        asyncio.get_running_loop().call_later(20, program.send, b"READY=1")
        await wait_until_ready(found, [], RunnerWorkers())
    assert asyncio.get_running_loop().time() == 20
    assert found.meta()["notify"] == notify.path
    found.record_exit(Exit())
    await asyncio.sleep(0)
    assert notify.fileno() == -1


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [
        (0, "exited with status 0 before it was ready", "job = true if it runs to its end; poolctl logs web"),
        (3, "exited with status 3 before it was ready", "poolctl logs web"),
    ],
)
@pytest.mark.loop(run=run_in_virtual_time)
async def test_program_without_a_port_that_ends_at_once_has_not_started(
    status: int, message: str, hint: str
) -> None:
    found = worker(command=["celery"])
    asyncio.get_running_loop().call_later(0.9, found.record_exit, Exit.from_returncode(status))
    with pytest.raises(WorkerFailed) as raised:
        await wait_until_ready(found, [], RunnerWorkers())
    assert raised.value.message == message
    assert raised.value.hint.endswith(hint)


@pytest.mark.loop(run=run_in_virtual_time)
async def test_program_that_may_have_come_to_the_end_of_its_input_gets_one_without_end() -> None:
    for keys in ({}, {"bind": "127.0.0.1:1"}):
        found = worker(command=["cat"], **keys)
        found.record_exit(Exit.from_returncode(0))
        failure = found.answered.exception()
        assert isinstance(failure, WorkerFailed)
        assert 'write stdin = "open" if it ends at the end of its input' in failure.hint
        assert ("job = true" in failure.hint) == (not keys)


@pytest.mark.loop(run=run_in_virtual_time)
async def test_program_without_a_port_has_nothing_to_drain_and_gets_one_signal() -> None:
    keeper = Keeper()
    found = worker(keeper, command=["celery"], stop_timeout=9)
    await found.stop_accepting(None)
    await found.drain(None)
    assert (keeper.signals, asyncio.get_running_loop().time()) == ([], 0)
    asyncio.get_running_loop().call_later(5, found.record_exit, Exit.from_returncode(0))
    assert (await found.stop(9, None)).ok
    assert keeper.signals == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("config", "adopted", "says", "unseen"),
    [
        ({}, True, False, True),
        ({}, True, True, False),
        ({}, False, False, False),
        ({"command": ["./queue"]}, True, False, True),
        ({"command": ["./migrate"], "job": True}, True, False, False),
    ],
    ids=[
        "a worker that said nothing",
        "one that has reported",
        "one that this supervisor started",
        "a program that is gone",
        "a job that is gone",
    ],
)
async def test_status_0_of_an_adopted_process_counts_only_if_it_was_seen_or_is_a_job(
    config: dict[str, Any], adopted: bool, says: bool, unseen: bool
) -> None:
    """A supervisor that was killed may have ordered it to end."""

    ours, theirs = wire.pair()
    # The start time is of a process that has exited.
    found = worker(start=-1, control=None if config else ours, adopted=adopted, **config)
    if says:
        found.received({"event": "ready", "leaving": False, "resting": ""})
    found.record_exit(Exit.from_returncode(0))
    assert found.exited.result().ok is not unseen
    for end in (ours, theirs):
        end.close()


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


async def ended(pid: int) -> None:
    await asyncio.to_thread(os.waitpid, pid, 0)


class Placed:
    """A worker, and its end of the control socket."""

    def __init__(self, index: int, *, handover_group: str = "plain", **config: Any) -> None:
        server = ServerConfig(name="web", bind="127.0.0.1:8080", app="web:app", **config)
        placement = Placement.of("web", 1, index, pid=2)
        ours, self.its = wire.pair()
        self.worker = LocalWorker(
            cast(Children, None),
            cast(RunnerEventHandler, None),
            placement,
            server,
            "",
            start=None,
            control=ours,
            handover_group=handover_group,
        )
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


async def test_page_is_sent_once_the_worker_has_begun_and_to_all_the_same(placed: list[Placed]) -> None:
    workers = RunnerWorkers()
    first, second = (place(workers, placed, index, workers=2) for index in (0, 1))
    assert first.orders() == second.orders() == []
    first.worker.order_to_begin()
    second.worker.order_to_begin()
    orders = first.orders()
    assert [each.split()[0] for each in orders] == ["go", "peers"]
    assert second.orders() == orders
    end(workers, placed)


async def test_single_worker_gets_a_page_when_a_second_one_comes(placed: list[Placed]) -> None:
    workers = RunnerWorkers()
    first = place(workers, placed, 0)
    first.worker.order_to_begin()
    assert first.orders() == ["go"]
    second = place(workers, placed, 1)
    second.worker.order_to_begin()
    assert first.orders() == second.orders()[1:] != []
    end(workers, placed)


async def test_workers_of_another_user_share_no_page_with_the_earlier_ones(placed: list[Placed]) -> None:
    workers = RunnerWorkers()
    first, other = (
        place(workers, placed, 0, workers=2, handover_group=each) for each in ("plain", "plain www")
    )
    first.worker.order_to_begin()
    other.worker.order_to_begin()
    sent = [each for each in (*first.orders(), *other.orders()) if each.startswith("peers")]
    assert len(set(sent)) == len(sent)
    end(workers, placed)


async def test_worker_that_has_ended_makes_no_second_one(placed: list[Placed]) -> None:
    workers = RunnerWorkers()
    first = place(workers, placed, 0)
    first.worker.exited.set_result(Exit(status=0))
    second = place(workers, placed, 0)
    second.worker.order_to_begin()
    assert second.orders() == ["go"]
    end(workers, placed)


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
        ours, self.end = wire.pair()
        self.end.setblocking(False)
        self.worker = worker(self.keeper, self.reports, control=ours, **config)

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


@contextlib.asynccontextmanager
async def control(**config: Any) -> AsyncIterator[Controlled]:
    controlled = Controlled(**config)
    try:
        yield controlled
    finally:
        controlled.close()


@pytest.fixture
def it(virtual_time: None, descriptors_closed: None) -> AbstractAsyncContextManager[Controlled]:
    return control()


async def test_orders_to_a_program_have_no_effect() -> None:
    found = worker(command=["celery"])
    found.give_standing_order("routes")
    found.order_to_begin()
    found.order("out")
    assert not found.request_beat(1)
    assert found.begun.done()


async def test_certificate_that_a_worker_cannot_use_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    made = worker()
    for error in ("", "the key does not fit"):
        made.received({"event": "tls", "error": error})
    assert [record.getMessage() for record in caplog.records] == [
        "web.1.0: its certificate cannot be used: the key does not fit"
    ]


async def test_worker_reports_its_state_by_messages(it: Controlled) -> None:
    found = it.worker
    futures = {name: getattr(found, name) for name in ("imported", "left", "answered")}

    def done() -> set[str]:
        return {name for name, future in futures.items() if future.done()}

    found.received({"event": "imported"})
    assert done() == {"imported"}
    found.received({"event": "ready", "leaving": False, "resting": "rest"})
    assert (done(), found.resting) == ({"imported", "answered"}, "rest")
    ready_at = found.ready_at
    assert ready_at is not None
    found.received({"event": "ready", "leaving": True, "resting": ""})
    assert (done(), found.resting) == (set(futures), "")
    assert found.ready_at == ready_at
    found.received({"event": "idle"})
    assert found.idle
    found.received({"event": "busy"})
    assert it.reports.idleness == [(found.placement, True), (found.placement, False)]
    assert not found.idle
    assert not found.wrote_stacks.is_set()
    found.received({"event": "stacks"})
    assert found.wrote_stacks.is_set()


async def test_worker_has_imported_its_application_when_it_is_ready() -> None:
    found = worker()
    assert (found.imported.done(), found.left.done()) == (False, False)
    assert (found.ready_at, found.idle, found.resting) == (None, False, "")
    found.mark_ready()
    assert found.imported.done()
    assert found.ready_at is not None


@pytest.mark.parametrize(("lives", "controlled"), [(True, False), (True, True), (False, False)])
async def test_adopted_program_has_reported_at_once_if_its_process_runs(
    lives: bool, controlled: bool
) -> None:
    ours, theirs = wire.pair()
    start = (process_start(os.getpid()) or 0) - (not lives)
    control = ours if controlled else None
    found = worker(command=["serve"], pid=os.getpid(), start=start, control=control, adopted=True)
    assert found.reported.done() == (lives and not controlled)
    found.record_exit(Exit())
    for end in (ours, theirs):
        end.close()


async def test_worker_that_leaves_has_left_when_it_says_so(it: Controlled) -> None:
    it.worker.received({"event": "left"})
    await it.worker.stop_accepting(None)
    assert it.orders() == []


@pytest.mark.parametrize(
    ("group", "receivers", "to"),
    [("http", "http", "pair"), ("http", "tls", "none"), ("http", None, "none"), (None, None, "none")],
)
@pytest.mark.usefixtures("virtual_time", "descriptors_closed")
async def test_connections_of_a_leaving_worker_go_to_workers_of_the_same_group(
    group: str | None, receivers: str | None, to: str
) -> None:
    async with control(handover_group=group, drain_timeout=3) as it:
        it.worker.mark_ready()
        loop = asyncio.get_running_loop()
        await it.worker.stop_accepting(receivers)
        assert (it.orders(), loop.time()) == ([({"order": "drain", "to": to}, 0)], 3.0)
        loop.call_later(2, it.worker.received, {"event": "left"})
        await it.worker.drain(receivers)
        assert (it.orders(), loop.time()) == ([({"order": "drain", "to": to}, 0)], 6.0)
        assert it.keeper.signals == []


@pytest.mark.usefixtures("virtual_time", "descriptors_closed")
async def test_drain_ends_when_the_worker_has_exited() -> None:
    async with control(drain_timeout=3) as it:
        loop = asyncio.get_running_loop()
        loop.call_later(2, it.worker.record_exit, Exit.from_returncode(0))
        await it.worker.drain(None)
        assert loop.time() == 2.0


@pytest.mark.loop(run=run_in_virtual_time)
async def test_program_with_a_port_is_signalled_once_to_leave() -> None:
    keeper = Keeper()
    serves: dict[str, Any] = {"bind": "127.0.0.1:8080", "stop_signal": "SIGQUIT", "drain_timeout": 3}
    found = worker(keeper, command=["serve"], **serves)
    await found.stop_accepting(None)
    await found.stop_accepting(None)
    assert (keeper.signals, found.left.done()) == ([signal.SIGQUIT], True)
    await found.drain(None)
    assert (keeper.signals, asyncio.get_running_loop().time()) == ([signal.SIGQUIT], 3.0)


@pytest.mark.usefixtures("virtual_time", "descriptors_closed")
async def test_worker_that_has_not_answered_yet_is_drained_by_a_signal_too_within_the_stop_timeout() -> None:
    async with control(handover_group="http", drain_timeout=30, stop_timeout=2) as it:
        await it.worker.stop_accepting("http")
        assert it.orders() == [({"order": "drain", "to": "pair"}, 0)]
        assert (it.keeper.signals, asyncio.get_running_loop().time()) == ([signal.SIGTERM], 2.0)
        await it.worker.drain("http")
        assert asyncio.get_running_loop().time() == 4.0, "one that reads no orders is left to the stop"


@pytest.mark.parametrize("is_ready", [True, False])
async def test_worker_that_has_not_answered_yet_is_stopped_by_a_signal_too(
    it: Controlled, is_ready: bool
) -> None:
    if is_ready:
        it.worker.mark_ready()
    asyncio.get_running_loop().call_later(4, it.worker.record_exit, Exit.from_returncode(0))
    assert await it.worker.stop(5, None) == Exit.from_returncode(0)
    assert it.orders() == [({"order": "stop", "to": "none"}, 0)]
    assert it.keeper.signals == ([] if is_ready else [signal.SIGTERM])


@pytest.mark.parametrize("survives", [True, False])
async def test_worker_that_does_not_stop_in_time_is_killed_with_its_session(
    it: Controlled, survives: bool
) -> None:
    loop = asyncio.get_running_loop()
    it.worker.mark_ready()
    if not survives:
        loop.call_later(6, it.worker.record_exit, Exit.from_signal(9))
        assert await it.worker.stop(5, None) == Exit.from_signal(9)
    else:
        with pytest.raises(TimeoutError):
            await it.worker.stop(5, None)
        assert loop.time() == 5 + KILL_SECONDS
    assert it.keeper.signals == [signal.SIGKILL]


async def test_worker_that_exits_settles_everything_and_its_last_words_count(it: Controlled) -> None:
    found = it.worker
    wire.send(it.end, {"event": "failed", "message": "no such table"})
    found.record_exit(Exit.from_returncode(3))
    found.record_exit(Exit.from_returncode(4))
    futures = (found.reported, found.begun, found.imported)
    assert all(future.done() for future in futures)
    assert found.exited.result() == Exit.from_returncode(3)
    failure = found.answered.exception()
    assert isinstance(failure, WorkerFailed)
    assert failure.message == Exit.from_returncode(3).message_before_ready("no such table")
    assert (failure.hint, failure.exit) == ("poolctl logs web", Exit.from_returncode(3))
    found.on_violation("sent nonsense")
    await found.stop_accepting(None)
    assert it.keeper.killed == []
    assert found.control is not None
    assert found.control.sock.fileno() == -1
    with pytest.raises(ConnectionRefusedError, match="it has exited"):
        await connect_for_probe(found, "http", False, [], RunnerWorkers(), exact=False)


async def test_worker_that_breaks_the_protocol_is_killed_once(it: Controlled) -> None:
    it.worker.on_violation("sent nonsense")
    it.worker.on_violation("sent more")
    it.worker.record_exit(Exit.from_signal(signal.SIGKILL))
    assert it.worker.exited.result().message == "killed by SIGKILL: it sent nonsense"
    assert it.keeper.killed == [it.worker.process]


@pytest.mark.parametrize("status", [0, 3])
@pytest.mark.loop(run=run_in_virtual_time)
async def test_job_is_never_ready_and_a_failed_one_says_why(status: int) -> None:
    found = worker(command=["migrate"], job=True)
    asyncio.get_running_loop().call_later(5, found.record_exit, Exit.from_returncode(status))
    with pytest.raises(WorkerFailed) as raised:
        await wait_until_ready(found, [], RunnerWorkers())
    assert asyncio.get_running_loop().time() == 5
    before = "" if status else " before it was ready"
    assert raised.value.message == f"exited with status {status}{before}"
    assert (raised.value.hint, raised.value.exit) == ("poolctl logs web", Exit.from_returncode(status))


async def test_probe_gets_a_connection_of_its_own_to_the_worker(it: Controlled) -> None:
    with await connect_for_probe(it.worker, "echo", True, [], RunnerWorkers(), exact=False) as ours:
        received = wire.receive(it.end)
        assert received is not None
        message, (fd,) = received
        assert message == {"order": "conn", "kind": "echo", "plain": True}
        with socket.socket(fileno=fd) as theirs:
            theirs.send(b"?")
            assert ours.recv(10) == b"?"


async def test_worker_that_reads_no_orders_is_not_sent_more_connections(it: Controlled) -> None:
    assert it.worker.control is not None
    while not it.worker.control.waits:
        it.worker.order("in")
    with pytest.raises(BlockingIOError, match="it has not read earlier commands"):
        await connect_for_probe(it.worker, "echo", True, [], RunnerWorkers(), exact=False)


async def test_standing_order_is_sent_once_the_worker_begins_and_only_with_open_descriptors(
    it: Controlled,
) -> None:
    found = it.worker
    with contextlib.closing(Descriptor(os.memfd_create("web's"))) as table:
        found.give_standing_order("routes", [table], key="old")
        found.give_standing_order("routes", [table], key="secret")
        assert it.orders() == []
        found.order_to_begin()
        assert it.orders() == [({"order": "go"}, 0), ({"order": "routes", "key": "secret"}, 1)]
        found.give_standing_order("routes")
        assert it.orders() == [({"order": "routes"}, 0)]
    found.give_standing_order("routes", [table], key="secret")
    assert it.orders() == []


async def test_facts_for_another_supervisor_are_complete() -> None:
    keys: dict[str, Any] = {"bind": "127.0.0.1:8080", "command": ["serve"], "stop_signal": "SIGINT"}
    found = worker(start=5, handover_group="http", **keys)
    found.mark_ready(1.5)
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
    hook = worker(hook="before_start", **keys)
    changed = {"hook": "before_start", "start": None, "ready_at": None, "protocol": None}
    assert hook.meta() == {**expected, **changed}
