"""Workers without keeper and supervisor, as a new supervisor takes them over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from poolctl.config import ServerConfig
from poolctl.keeper import pool_files, rendezvous, wire
from poolctl.platform import group_members, process_start
from poolctl.runners.embedded_runner import ProcessRunner
from poolctl.runners.helper_process import Helpers
from poolctl.runners.local import takeover
from poolctl.runners.local.forking import RunnerContext
from poolctl.runners.local.local_runner import LocalRunner
from poolctl.runners.local.local_worker import LocalWorker
from poolctl.runners.local.takeover import (
    LocalOrphan,
    OrphanedPipes,
    WorkerAdoption,
    _OrphanTriage,
    wait_briefly_for_reports,
)
from poolctl.runners.process_link import Malformed
from poolctl.runners.worker_spec import worker_digest
from poolctl.worker import tally
from tests.deadline import wait_until
from tests.processes import is_alive
from tests.unit.runners.real_runner import fetch, kept, placed, served, with_runner
from tests.virtual_loop import VirtualLoop

STATEMENT = {
    "event": "orphan", "pid": 7, "server": "web", "key": "tcp:web", "output": "web.1", "generation": 3, "index": 2,
    "listeners": 1, "likeness": 99, "leaving": True, "deaf": True, "ready_at": 1.5,
    "protocol": "tls 2",
}  # fmt: skip
CHECKED = {key: value for key, value in STATEMENT.items() if key not in ("event", "pid")}


class RecordingKeeper:
    """Records the names and entries that are put into its store, and the processes that it is to watch."""

    def __init__(self) -> None:
        self.entries: dict[str, wire.Message] = {}
        self.descriptors: dict[str, int] = {}
        self.puts: list[str] = []
        self.watched: list[tuple[int, int]] = []
        self.listed = 0

    def send(self, message: wire.Message, fds: Any = ()) -> None:
        assert message["op"] == "put"
        self.puts.append(message["name"])
        self.entries[message["name"]] = message["meta"]
        self.descriptors[message["name"]] = len(fds)

    async def call(self, message: wire.Message) -> tuple[wire.Message, list[int]]:
        if message["op"] == "watch":
            self.watched.append((message["pid"], message["start"]))
        else:
            self.listed += message["op"] == "list"
        return {}, []


class NewPipes:
    """Gives each worker that needs an output pipe a key of its own."""

    def new_key(self, server: ServerConfig) -> str:
        return f"{server.name}.new"

    def registration_message(self, key: str, server: ServerConfig, pid: int = 0) -> wire.Message:
        return {"t": "add", "id": key, "name": server.name, "pid": pid}


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as started:
        yield started
        started.kill()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def server_at(listener: socket.socket, **keys: Any) -> ServerConfig:
    keys = {"name": "web", "app": "app:app", "bind": f"127.0.0.1:{listener.getsockname()[1]}"} | keys
    return ServerConfig(**keys)


def orphan_of(process: subprocess.Popen[bytes], **said: Any) -> LocalOrphan:
    start = process_start(process.pid)
    assert start is not None
    said = {"server": "web", "command": True, "generation": 3, "index": 2, "output": "web.1"} | said
    return LocalOrphan(process.pid, os.geteuid(), start, {"ready_at": 1.5, "leaving": False} | said)


@contextlib.contextmanager
def worker_of(
    process: subprocess.Popen[bytes], server: ServerConfig, listener: socket.socket, **said: Any
) -> Iterator[tuple[LocalOrphan, socket.socket]]:
    """An orphan that speaks the protocol, and its end of the socket."""
    said = {"key": server.key, "deaf": False, "protocol": "plain", "likeness": worker_digest(server)} | said
    orphan = orphan_of(process, **said)
    orphan.sock, theirs = wire.pair()
    orphan.listeners = [os.dup(listener.fileno())]
    with theirs:
        yield orphan, theirs
        orphan.close()


def order_of(sock: socket.socket) -> tuple[str, int]:
    """The next order that the worker gets, and the number of its descriptors."""
    received = wire.receive(sock)
    assert received is not None
    for fd in received[1]:
        os.close(fd)
    return received[0]["order"], len(received[1])


def intake_of(
    *servers: ServerConfig, pipes: OrphanedPipes | None = None
) -> tuple[_OrphanTriage, RecordingKeeper]:
    keeper: Any = RecordingKeeper()
    output: Any = NewPipes()
    return _OrphanTriage(
        "", keeper, output, {each.name: each for each in servers}, pipes or OrphanedPipes()
    ), keeper


def test_worker_that_claims_anothers_output_leaves_it_to_its_owner() -> None:
    good, bad = (ServerConfig(app="app:app", bind="127.0.0.1:9001", name=name) for name in ("good", "bad"))
    unused: Any = None
    intake = _OrphanTriage("", unused, unused, {}, OrphanedPipes({"of good": ({"name": "good"}, -1)}))
    assert not intake._claim_pipe("of good", bad)
    assert intake._claim_pipe("of good", good)
    assert not intake._claim_pipe("of good", good), "another worker of the server writes to it"


def test_a_valid_statement_is_kept_as_it_is() -> None:
    assert takeover._checked_statement({**STATEMENT, "another": 1}, 7) == CHECKED
    least = {
        **STATEMENT, "generation": 1, "index": 0, "listeners": 0, "likeness": 0, "ready_at": None,
        "protocol": "plain",
    }  # fmt: skip
    assert takeover._checked_statement(least, 7) == {key: least[key] for key in CHECKED}
    assert takeover._checked_statement({**STATEMENT, "ready_at": 0.0}, 7) == {
        **CHECKED, "ready_at": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"event": "ready"}, "a message that is not its status"),
        ({"pid": 8}, "a message that is not its status"),
        ({"ready_at": 1}, "an invalid time"),
        ({"ready_at": -0.5}, "an invalid time"),
        ({"ready_at": time.monotonic() + 9e9}, "an invalid time"),
        ({"protocol": "http"}, "an unknown protocol"),
        ({"protocol": None}, "an unknown protocol"),
        ({"server": 5}, "'server'"),
        ({"key": 5}, "'key'"),
        ({"output": 5}, "'output'"),
        ({"generation": 0}, "'generation'"),
        ({"generation": 1_000_000_001}, "'generation'"),
        ({"index": -1}, "'index'"),
        ({"index": 1_000_000_001}, "'index'"),
        ({"listeners": -1}, "'listeners'"),
        ({"listeners": 1_000_000_001}, "'listeners'"),
        ({"likeness": -1}, "'likeness'"),
        ({"likeness": (1 << 32) + 1}, "'likeness'"),
        ({"leaving": 1}, "'leaving'"),
        ({"deaf": 1}, "'deaf'"),
    ],
)
def test_a_statement_with_an_invalid_value_is_refused_by_its_name(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(Malformed) as refused:
        takeover._checked_statement(STATEMENT | change, 7)
    assert fault in str(refused.value)


def test_descriptors_are_listeners_then_the_pair_then_the_page(
    listener: socket.socket, tmp_path: Path
) -> None:
    page = tally.create_tally_page()
    ours, theirs = wire.pair()
    with ours, theirs, socket.socket(socket.AF_UNIX) as quiet, socket.socket(socket.AF_UNIX) as named:
        named.bind(str(tmp_path / "sock"))
        named.listen()
        pair = [ours.fileno(), theirs.fileno()]
        listeners = [listener.fileno(), named.fileno()]
        assert takeover._split_descriptors([*listeners, *pair, page], 2) == (listeners, pair, [page])
        assert takeover._split_descriptors([*pair, page], 0) == ([], pair, [page])
        for fds, count in (
            ([*listeners, *pair, page], 1),
            ([*listeners, *pair, page], 3),
            ([listeners[0], *pair], 1),
            ([quiet.fileno(), *pair, page], 1),
            ([pair[0], *pair, page], 1),
            ([listeners[0], pair[0], quiet.fileno(), page], 1),
            ([listeners[0], pair[0], listeners[1], page], 1),
            ([listeners[0], *pair, pair[0]], 1),
            ([page, *pair, page], 1),
        ):
            with pytest.raises(Malformed, match="descriptors that a worker does not have"):
                takeover._split_descriptors(fds, count)
    os.close(page)


def test_address_of_a_listener_is_compared_by_port_or_path(listener: socket.socket, tmp_path: Path) -> None:
    server = server_at(listener)
    assert takeover._listens_at_address_of(listener.fileno(), server)
    other = server_at(listener, bind="127.0.0.1:1")
    assert not takeover._listens_at_address_of(listener.fileno(), other)
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as named:
        named.bind(path)
        named.listen()
        assert takeover._listens_at_address_of(named.fileno(), server_at(listener, bind=f"unix:{path}"))
        assert not takeover._listens_at_address_of(named.fileno(), server_at(listener, bind=f"unix:{path}2"))
        assert not takeover._listens_at_address_of(named.fileno(), server)
    assert takeover._listens_at_address_of(listener.fileno(), server_at(listener, bind="fd:web"))


def test_process_belongs_to_the_server_with_its_user_key_and_address(
    process: subprocess.Popen[bytes], listener: socket.socket
) -> None:
    server, other = server_at(listener), server_at(listener, bind="127.0.0.1:1")
    orphan = orphan_of(process)
    assert takeover._may_belong_to(orphan, server)
    orphan.said["key"] = other.key
    assert takeover._may_belong_to(orphan, other)
    assert not takeover._may_belong_to(orphan, server)
    orphan.listeners = [listener.fileno()]
    assert not takeover._may_belong_to(orphan, other)
    orphan.said["key"] = server.key
    assert takeover._may_belong_to(orphan, server)
    orphan.uid += 1
    assert not takeover._may_belong_to(orphan, server)


def test_orphan_without_a_socket_is_signalled_and_one_with_a_socket_is_asked(
    process: subprocess.Popen[bytes],
) -> None:
    orphan = orphan_of(process, stop_signal=int(signal.SIGINT))
    assert not orphan.send_order({"order": "stop"})
    orphan.sock, theirs = wire.pair()
    orphan.ask_to_end()
    assert order_of(theirs) == ("stop", 0)
    assert not orphan.await_end(0)
    theirs.close()
    assert not orphan.send_order({"order": "stop"}), "its end is closed"
    orphan.ask_to_end()
    assert process.wait() == -signal.SIGINT
    assert orphan.await_end(5)
    orphan.close()
    assert orphan.sock.fileno() < 0


def test_orphan_is_stopped_by_sigterm_unless_it_has_another_stop_signal(
    process: subprocess.Popen[bytes],
) -> None:
    orphan_of(process, stop_signal=None).ask_to_end()
    assert process.wait() == -signal.SIGTERM


def test_killing_an_orphan_ends_its_process_group() -> None:
    script = ["sh", "-c", "sleep 600 & echo $!; wait"]
    with subprocess.Popen(script, start_new_session=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        orphan_of(process).kill()
        assert process.wait(10) == -signal.SIGKILL
        wait_until(lambda: not is_alive(child))


def test_process_group_of_an_orphaned_program_is_asked_to_end_and_waited_for() -> None:
    script = ["sh", "-c", "(trap '' TERM; echo; exec sleep 600) & wait"]
    with subprocess.Popen(script, start_new_session=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        orphan = orphan_of(process)
        (child,) = group_members(process.pid)
        orphan.ask_to_end()
        assert process.wait(10) == -signal.SIGTERM
        assert not orphan.await_end(0.1), "its child ignores the signal"
        assert is_alive(child)
        orphan.kill()
        assert orphan.await_end(10)
        assert not is_alive(child)


def test_closing_an_orphan_closes_all_its_descriptors(process: subprocess.Popen[bytes]) -> None:
    orphan = orphan_of(process)
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]
    orphan.listeners, orphan.pair, orphan.tally = fds[:1], fds[1:3], fds[3:]
    orphan.close()
    assert orphan.listeners == orphan.pair == orphan.tally == []
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_program_is_known_by_the_loggers_message_and_its_start(process: subprocess.Popen[bytes]) -> None:
    start = process_start(process.pid)
    assert start is not None
    message = {
        "pid": process.pid, "start": start, "name": "web", "command": True, "generation": 2, "index": 1,
        "stop_signal": 2,
    }  # fmt: skip
    (found,) = takeover._orphans_without_socket(OrphanedPipes({"web.1": (message, -1)}), set())
    assert (found.pid, found.uid, found.start, found.sock) == (process.pid, os.geteuid(), start, None)
    assert found.said == {
        "server": "web", "command": True, "output": "web.1", "ready_at": start / os.sysconf("SC_CLK_TCK"),
        "leaving": False, "generation": 2, "index": 1, "stop_signal": 2, "hook": None,
    }  # fmt: skip
    hook = OrphanedPipes({"web.1": ({**message, "hook": "before_start"}, -1)})
    assert takeover._orphans_without_socket(hook, set())[0].said["ready_at"] is None
    assert takeover._orphans_without_socket(OrphanedPipes({"web.1": (message, -1)}), {process.pid}) == []
    for another in ({**message, "start": start + 1}, {**message, "start": None}):
        assert takeover._orphans_without_socket(OrphanedPipes({"web.1": (another, -1)}), set()) == []


def test_a_hook_and_a_process_of_no_server_are_ended(listener: socket.socket) -> None:
    for said, number in (({"hook": "before_start"}, signal.SIGKILL), ({"server": "gone"}, signal.SIGTERM)):
        with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
            intake, keeper = intake_of(server_at(listener))
            asyncio.run(intake.store_or_stop(orphan_of(process, **said)))
            assert process.wait(10) == -number
            assert (intake.found, keeper.puts) == ({}, [])


def test_process_of_another_key_is_stopped(process: subprocess.Popen[bytes], listener: socket.socket) -> None:
    intake, _ = intake_of(server_at(listener))
    asyncio.run(intake.store_or_stop(orphan_of(process, key="another")))
    assert process.wait(10) == -signal.SIGTERM


def test_busy_worker_without_a_socket_is_left_alone(
    process: subprocess.Popen[bytes], listener: socket.socket
) -> None:
    intake, keeper = intake_of(server_at(listener))
    asyncio.run(intake.store_or_stop(orphan_of(process, command=None)))
    assert (process.poll(), intake.found, keeper.puts) == (None, {}, [])


def test_faulty_process_of_a_servers_user_is_killed_and_a_silent_one_or_a_strangers_is_not(
    process: subprocess.Popen[bytes], listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    intake, _ = intake_of(server_at(listener))
    orphan = orphan_of(process)
    orphan.fault = f"sent {takeover._SILENCE}"
    asyncio.run(intake.store_or_stop(orphan))
    assert process.poll() is None
    orphan.fault, orphan.uid = "sent an invalid time", os.geteuid() + 1
    asyncio.run(intake.store_or_stop(orphan))
    assert process.poll() is None
    assert "it is killed" not in caplog.text
    orphan.uid = os.geteuid()
    asyncio.run(intake.store_or_stop(orphan))
    assert process.wait(10) == -signal.SIGKILL
    assert "sent an invalid time: it is killed" in caplog.text


def test_worker_is_adopted_with_its_listener_pair_and_page(
    process: subprocess.Popen[bytes], listener: socket.socket
) -> None:
    server = server_at(listener)
    pipes = OrphanedPipes({"web.1": ({"name": "web"}, -1)})
    intake, keeper = intake_of(server, pipes=pipes)
    with worker_of(process, server, listener) as (orphan, theirs):
        orphan.pair, orphan.tally = (
            [os.dup(theirs.fileno()), os.dup(theirs.fileno())],
            [os.dup(theirs.fileno())],
        )
        asyncio.run(intake.store_or_stop(orphan))
        assert order_of(theirs) == ("adopt", 1)
        assert keeper.descriptors == {
            f"listener:{server.key}": 1, f"adoption:{server.key}": 2, "worker:web.3.2": 2,
        }  # fmt: skip
        assert keeper.entries["worker:web.3.2"] == {
            "server": "web", "generation": 3, "index": 2, "ready_at": 1.5, "output": "web.1", "protocol": "plain",
            "pid": process.pid, "start": orphan.start, "notify": None, "place": None,
        }  # fmt: skip
        assert keeper.entries[f"adoption:{server.key}"] == {"server": "web", "protocol": "plain"}
        assert keeper.watched == [(process.pid, orphan.start)]
    assert intake.found == {"web": False}


@pytest.mark.parametrize("deaf", [True, False])
def test_worker_whose_output_is_lost_gets_another_pipe(
    process: subprocess.Popen[bytes], listener: socket.socket, deaf: bool
) -> None:
    server = server_at(listener)
    known = OrphanedPipes({"web.1": ({"name": "web"}, -1)} if deaf else {})
    intake, keeper = intake_of(server, pipes=known)
    with worker_of(process, server, listener, deaf=deaf) as (orphan, theirs):
        asyncio.run(intake.store_or_stop(orphan))
        assert order_of(theirs) == ("adopt", 2)
        assert keeper.entries["worker:web.3.2"]["output"] == "web.new"
        message, read = known.streams["web.new"]
        assert message == {
            "t": "add",
            "id": "web.new",
            "name": "web",
            "pid": process.pid,
            "start": orphan.start,
        }
        assert not os.get_blocking(read)
        assert os.read(read, 1) == b"", "only the worker has the other end"
        os.close(read)


def test_second_worker_with_the_same_place_is_drained(
    process: subprocess.Popen[bytes], listener: socket.socket
) -> None:
    server = server_at(listener)
    intake, keeper = intake_of(server, pipes=OrphanedPipes({"web.1": ({"name": "web"}, -1)}))
    intake.done.add("worker:web.3.2")
    with worker_of(process, server, listener) as (orphan, theirs):
        asyncio.run(intake.store_or_stop(orphan))
        assert order_of(theirs) == ("drain", 0)
    assert (intake.found, keeper.puts, keeper.watched) == ({}, [], [])


def test_server_differs_if_any_of_its_workers_does(
    process: subprocess.Popen[bytes], listener: socket.socket
) -> None:
    server = server_at(listener)
    digest = worker_digest(server)
    assert digest is not None
    intake, keeper = intake_of(server, pipes=OrphanedPipes({f"{n}": ({"name": "web"}, -1) for n in range(3)}))
    expected = [False, True, True]
    for index, likeness in enumerate([digest, digest ^ 1, digest]):
        with worker_of(process, server, listener, index=index, output=f"{index}", likeness=likeness) as (
            orphan,
            _,
        ):
            asyncio.run(intake.store_or_stop(orphan))
        assert intake.found == {"web": expected[index]}
    assert keeper.puts.count(f"listener:{server.key}") == 1, "one for all its workers"
    assert [name for name in keeper.puts if name.startswith("worker:")] == [
        f"worker:web.3.{n}" for n in range(3)
    ]


def test_job_and_program_that_binds_itself_are_adopted_without_a_listener(
    process: subprocess.Popen[bytes],
) -> None:
    job = ServerConfig(name="web", job=True, command=["true"])
    runs = ServerConfig(name="web", command=["true"])
    for server, ready_at in ((job, None), (runs, 1.5)):
        intake, keeper = intake_of(server)
        asyncio.run(intake.store_or_stop(orphan_of(process, protocol="forged")))
        assert keeper.puts == ["worker:web.3.2"]
        meta = keeper.entries["worker:web.3.2"]
        assert (meta["ready_at"], meta["protocol"]) == (ready_at, None)
        assert intake.found == {"web": False}


def test_program_keeps_its_listener_if_it_still_has_it(listener: socket.socket) -> None:
    code = f"import os; os.dup2({listener.fileno()}, 3); os.execvp('sleep', ['sleep', '600'])"
    for server, adopted in (
        (server_at(listener, app=None, command=["x", "{fd}"]), True),
        (server_at(listener, app=None, command=["x", "{fd}"], bind="127.0.0.1:1"), False),
    ):
        with subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[listener.fileno()], start_new_session=True
        ) as process:
            try:
                comm = Path(f"/proc/{process.pid}/comm")
                wait_until(lambda comm=comm: comm.read_text() == "sleep\n")
                intake, keeper = intake_of(server)
                asyncio.run(intake.store_or_stop(orphan_of(process)))
                assert bool(intake.found) == adopted
                assert keeper.puts == ([f"listener:{server.key}", "worker:web.3.2"] if adopted else [])
            finally:
                process.kill()


def test_pool_without_orphans_asks_the_keeper_nothing(tmp_path: Path) -> None:
    unused: Any = None
    assert asyncio.run(takeover.rescue_orphans_and_check_outdated(unused, unused, str(tmp_path), {})) == {}


def test_pipes_of_a_logger_are_taken_and_late_only_with_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "_ANSWER_SECONDS", 60.0)
    stored = ["output:web.1", "logger-underway"]
    for late, spool, puts in ((False, [0, 1], stored), (False, [], stored[:1]), (True, [0, 1], [])):
        keeper: Any = RecordingKeeper()
        output: Any = NewPipes()
        told = asyncio.run(_take_in_from_logger(str(tmp_path), keeper, output, spool, late=late))
        answer = {"t": "taken", "spool": "logger-underway" in puts} if puts else None
        assert (keeper.puts, keeper.listed, told) == (puts, bool(puts), answer)


async def _take_in_from_logger(
    directory: str, keeper: Any, output: Any, spool: list[int], *, late: bool
) -> wire.Message | None:
    """The answer to a logger with one pipe, of a process that has ended, and these files of a spool."""
    sock, place = rendezvous.bind_new_socket(directory, pool_files.LOGGER)
    sock.listen()
    read, write = os.pipe()

    def log() -> wire.Message | None:
        sock.settimeout(10)
        with sock, sock.accept()[0] as asker:
            asker.settimeout(10)
            message = {"t": "add", "id": "web.1", "name": "web", "pid": 1, "generation": 1, "index": 0}
            wire.send(asker, message, [read])
            wire.send(asker, {"t": "over"}, spool)
            received = wire.receive(asker, wait=True)
            return None if received is None else received[0]

    logger = asyncio.create_task(asyncio.to_thread(log))
    try:
        assert (
            await takeover.rescue_orphans_and_check_outdated(keeper, output, directory, {}, late=late) == {}
        )
        return await logger
    finally:
        os.close(read)
        os.close(write)
        pool_files.unlink_quietly(place)


def test_sockets_of_systemd_are_known_by_their_numbers_and_names() -> None:
    class Keeper:
        async def call(self, message: wire.Message) -> tuple[wire.Message, list[int]]:
            return {"meta": ["web", "", "web"]}, [11, 12, 13]

    found = asyncio.run(takeover.systemd_sockets(cast(Any, Keeper())))
    assert found == {"3": [11], "4": [12], "5": [13], "web": [11, 13]}


@pytest.mark.slow
def test_successor_adopts_workers_hooks_and_listeners_and_ends_what_belongs_to_no_server(
    tmp_path: Path,
) -> None:
    async def work(runner: ProcessRunner) -> None:
        server = served(hooks={"before_start": ["sleep", "600"]})
        gone, silent = served(name="gone"), served(name="silent")
        placement = await placed(runner, server, 3, 1)
        hook = await runner.begin_hook(server, "before_start")
        other = await placed(runner, gone)
        await runner.open(silent)
        for worker in runner._workers.values():
            if worker.control is not None:
                worker.control.close()  # its messages are the successor's
        logs = tmp_path / "logs"
        logs.mkdir()
        site = RunnerContext(
            keeper=runner.keeper,
            keeper_pid=runner.children.keeper_pid,
            helpers=Helpers(runner.keeper, str(tmp_path)),
            open_files=(1024, 4096),
            directory=str(tmp_path),
            logs_directory=str(logs),
            environments={},
        )
        successor = LocalRunner(site)
        try:
            adopted = await successor.adopt_workers_and_end_others({"web": server, "silent": silent})
            (found,) = adopted.workers
            assert (found.placement.id, found.placement.pid) == ("web.3.1", placement.pid)
            assert (found.placement.generation, found.placement.index) == (3, 1)
            assert (found.server, found.leaving) == (server, False)
            assert found.ready_at is not None
            assert {name: (kind, each.pid) for name, (kind, each) in adopted.hooks.items()} == {
                "web": ("before_start", hook.pid)
            }
            assert adopted.endpoints == {
                server.key: (server.bind,), silent.key: (silent.bind,),
            }  # fmt: skip
            assert (await runner.wait_for_exit(other)).signal in (None, signal.SIGTERM)
            assert not [name for name in await kept(runner) if "gone" in name and "output" not in name]
            with pytest.raises(ConnectionRefusedError):
                await fetch(gone)
            await successor.wait_until_ready(found.placement)
            assert await fetch(server, "/pid") == str(placement.pid)
            (worker,) = [each for each in (await kept(runner)).items() if each[0] == "worker:web.3.1"]
            assert worker[1]["ready_at"] == found.ready_at
            pids = {each.pid for each in runner.zygotes.processes}
            assert {each.pid for each in successor.zygotes.processes} == pids
        finally:
            await _leave(successor)

    with_runner(work)


async def _leave(successor: LocalRunner) -> None:
    """Close what a successor has adopted; the processes are ended by the runner, to which their exits are reported."""
    successor._next_check.cancel()
    for worker in successor._workers.values():
        for each in (worker.control, worker.tally):
            if each is not None:
                each.close()
    await successor._close_parts()


@pytest.mark.slow
def test_worker_whose_server_was_changed_is_adopted_at_its_own_address() -> None:
    async def work(runner: ProcessRunner) -> None:
        before = served()
        after = served(tags=["new"])
        await placed(runner, before)
        found: list[LocalWorker] = []
        adoption = WorkerAdoption(runner.keeper, runner.children, runner, {"web": after}, {})
        reply, fds = await runner.keeper.call({"op": "get", "name": "worker:web.1.0"})
        adoption.adopt_or_stop(found.append, "web.1.0", reply["meta"], fds)
        (worker,) = found
        assert (worker.server.key, worker.server.tags) == (before.key, ("new",))
        assert adoption.found == found
        _, owners = runner.keeper.entries["worker:web.1.0"]  # for the keeper's successor
        assert owners[-1] is worker.tally
        assert worker.control is not None
        worker.control.close()
        assert worker.tally is not None
        worker.tally.close()

    with_runner(work)


class Reporting:
    """A worker of which only its reports are awaited."""

    def __init__(self, *, control: bool = True) -> None:
        loop = asyncio.get_running_loop()
        self.control = object() if control else None
        self.exited: asyncio.Future[None] = loop.create_future()
        self.answered: asyncio.Future[None] = loop.create_future()
        self.reported: asyncio.Future[None] = loop.create_future()


def test_reports_are_awaited_briefly_and_those_of_programs_that_have_exited_not_at_all() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        exited, ready, first, second = (
            Reporting(),
            Reporting(control=False),
            Reporting(),
            Reporting(control=False),
        )
        exited.exited.set_result(None)
        ready.answered.set_result(None)
        await wait_briefly_for_reports([])
        await wait_briefly_for_reports(cast(Any, [exited, ready]))
        assert loop.time() == 0
        loop.call_later(0.05, first.reported.set_result, None)
        loop.call_later(0.1, second.answered.set_result, None)
        await wait_briefly_for_reports(cast(Any, [exited, ready, first, second]))
        assert loop.time() == pytest.approx(0.1)
        await wait_briefly_for_reports(cast(Any, [Reporting(), first]))
        assert loop.time() == pytest.approx(0.3)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())
