"""When a program is ready: it listens, or has accepted a connection that another worker did not."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl.listeners.sock_diag import accept_queue
from poolctl.platform import process_start
from poolctl.runners.local.local_worker import LocalWorker, RunnerWorkers
from poolctl.runners.local.program_ports import connect, wait_until_listening
from poolctl.runners.local.readiness import connect_for_probe, wait_until_ready
from poolctl.runners.runner_protocol import Exit, WorkerFailed
from tests.deadline import until
from tests.sandbox import NO_NETLINK, READLINK, run_without
from tests.unit.runners.test_local_worker import Keeper, server, worker
from tests.virtual_loop import run_in_virtual_time


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


def among(*workers: LocalWorker) -> RunnerWorkers:
    """The workers of a runner that has these."""
    found = RunnerWorkers()
    for each in workers:
        found.add(each)
    return found


async def one_in_queue(listener: socket.socket) -> None:
    """Wait until a connection is in the accept queue."""
    await until(lambda: accept_queue(listener) != 0)


@contextlib.contextmanager
def accepting_process(listener: socket.socket, count: int = 1_000_000) -> Iterator[int]:
    """Another process that accepts `count` connections from the listener, then stops; yields its pid."""
    pid = os.fork()
    if pid == 0:
        kept = [listener.accept() for _ in range(count)]
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(len(kept))
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


async def accepts_no_more(pid: int) -> None:
    """Wait until the accepting process has accepted all its connections."""
    await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WSTOPPED)


@contextlib.contextmanager
def zombie() -> Iterator[None]:
    """A process of this process's, which leads a session, has exited, and was not waited for."""
    if (pid := os.fork()) == 0:
        os.setsid()
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        yield
    finally:
        os.waitpid(pid, 0)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_program_has_answered_when_it_has_accepted_and_not_before(
    kind: str, short_path: Path
) -> None:
    with listening(kind, short_path) as listener:
        program = program_at(listener)
        waiting = asyncio.ensure_future(wait_until_ready(program, [listener], among(program)))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        accepted, _ = listener.accept()
        with accepted, contextlib.ExitStack() as others:
            # The program is busy with the first one, and its queue is never empty.
            for _ in range(3):
                others.enter_context(socket.socket(listener.family)).connect(listener.getsockname())
            await asyncio.wait_for(waiting, 60)
            assert accepted.recv(1) == b"", "it is not kept waiting by ours"


async def test_a_full_queue_of_a_unix_listener_is_no_answer(short_path: Path) -> None:
    with listening("unix", short_path, 0) as listener, contextlib.ExitStack() as others:
        listener.settimeout(60)
        others.enter_context(socket.socket(socket.AF_UNIX)).connect(listener.getsockname())
        program = program_at(listener)
        waiting = asyncio.ensure_future(wait_until_ready(program, [listener], among(program)))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        for _ in range(2):
            others.enter_context((await asyncio.to_thread(listener.accept))[0])
        await asyncio.wait_for(waiting, 60)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("generation", [1, 2], ids=["older", "of the same age"])
async def test_a_program_is_not_ready_because_another_worker_accepts(
    kind: str, generation: int, short_path: Path
) -> None:
    with listening(kind, short_path) as listener:
        program = program_at(listener, generation=2)
        with accepting_process(listener, 3) as pid:
            other = program_at(listener, pid, generation=generation)
            workers = among(program, other)
            waiting = asyncio.ensure_future(wait_until_ready(program, [listener], workers))
            await accepts_no_more(pid)
            await one_in_queue(listener)
            assert not waiting.done()
            with listener.accept()[0]:
                await asyncio.wait_for(waiting, 60)


async def test_a_program_is_ready_when_it_has_accepted_a_client_while_probes_wait(
    short_path: Path,
) -> None:
    with listening("tcp", short_path) as listener, contextlib.ExitStack() as clients:
        for _ in range(5):
            clients.enter_context(socket.create_connection(listener.getsockname()))
        program = program_at(listener)
        waiting = asyncio.ensure_future(wait_until_ready(program, [listener], among(program)))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        with listener.accept()[0]:
            await asyncio.wait_for(waiting, 60)


def test_connection_that_an_unknown_process_accepts_counts_only_without_an_older_worker(
    short_path: Path,
) -> None:
    async def work(listener: socket.socket, stranger: int, leader: int) -> None:
        begun = process_start(stranger) or 0
        for start, older, is_ready in ((begun, 0, True), (begun + 1, 0, False), (begun, 1, False)):
            program = program_at(listener, leader, generation=2, start=start)
            workers = among(program, *[program_at(listener, 1, generation=1)] * older)
            waiting = asyncio.ensure_future(wait_until_ready(program, [listener], workers))
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
async def test_connection_that_is_closed_at_once_counts_only_without_an_older_worker(
    kind: str, short_path: Path
) -> None:
    with listening(kind, short_path) as listener:
        program, keeper = program_at(listener, generation=2), Keeper()
        waiting = asyncio.ensure_future(wait_until_ready(program, [listener], among(program)))
        await one_in_queue(listener)
        listener.accept()[0].close()
        await asyncio.wait_for(waiting, 60)

        older, program = program, program_at(listener, keeper=keeper, generation=3)
        waiting = asyncio.ensure_future(wait_until_ready(program, [listener], among(older, program)))
        for _ in range(3):
            await one_in_queue(listener)
            listener.accept()[0].close()
        await asyncio.sleep(0.1)
        assert (waiting.done(), keeper.killed) == (False, [])
        await one_in_queue(listener)
        with listener.accept()[0]:
            await asyncio.wait_for(waiting, 60)


async def test_program_that_is_given_only_connections_with_data_is_ready_when_it_accepts(
    short_path: Path,
) -> None:
    with listening("tcp", short_path) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
        program = program_at(listener)
        waiting = asyncio.ensure_future(wait_until_ready(program, [listener], among(program)))
        listener.settimeout(60)
        accepting = asyncio.ensure_future(asyncio.to_thread(listener.accept))
        with (await accepting)[0]:
            await asyncio.wait_for(waiting, 60)
        assert program.answered.done()


@pytest.mark.parametrize("hidden_by", ["kernel", "deferred accept", "rights"])
@pytest.mark.parametrize(
    ("exit_", "message"),
    [
        (Exit.from_signal(signal.SIGKILL), "the system does not show which process accepts"),
        (Exit.from_returncode(1), "^exited with status 1 before it was ready$"),
    ],
    ids=["killed", "had ended by itself"],
)
def test_program_whose_connections_cannot_be_attributed_is_killed_while_an_older_worker_runs(
    short_path: Path, hidden_by: str, exit_: Exit, message: str
) -> None:
    async def scenario() -> None:
        with listening("tcp", short_path) as listener:
            if hidden_by == "deferred accept":
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
            listener.settimeout(60)
            older = program_at(listener)
            waiting = asyncio.ensure_future(wait_until_ready(older, [listener], among(older)))
            (await asyncio.to_thread(listener.accept))[0].close()
            await asyncio.wait_for(waiting, 60)

            keeper = Keeper()
            program = program_at(listener, keeper=keeper, generation=2)
            workers = among(older, program)
            with accepting_process(listener), zombie():
                waiting = asyncio.ensure_future(wait_until_ready(program, [listener], workers))
                await until(lambda: keeper.killed)
                program.record_exit(exit_)
                with pytest.raises(WorkerFailed, match=message):
                    await waiting

                notified = program_at(listener, generation=3)
                workers.add(notified)
                notified.mark_ready()
                (await connect_for_probe(notified, "http", True, [listener], workers, exact=True)).close()

    refused = {"kernel": NO_NETLINK, "rights": {READLINK: errno.EACCES}}.get(hidden_by, {})
    run_without(refused, lambda: asyncio.run(scenario()))


async def test_own_connection_is_one_that_the_worker_has_accepted(short_path: Path) -> None:
    with listening("tcp", short_path) as listener, accepting_process(listener, 3) as pid:
        older = program_at(listener, pid, generation=1)
        program = program_at(listener, generation=2)
        probing = connect_for_probe(program, "http", True, [listener], among(older, program), exact=True)
        connecting = asyncio.ensure_future(probing)
        await accepts_no_more(pid)
        await one_in_queue(listener)
        accepted, address = listener.accept()
        with accepted, await asyncio.wait_for(connecting, 60) as probe:
            assert probe.getsockname() == address
            probe.send(b"GET")
            assert accepted.recv(3) == b"GET"


async def test_a_program_that_binds_by_itself_has_answered_when_it_listens(free_port: Any) -> None:
    port = free_port()
    there = server("prog", "{port}", bind=f"127.0.0.1:{port}")
    waiting = asyncio.ensure_future(wait_until_listening(there))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    with socket.create_server(("127.0.0.1", port)):
        await asyncio.wait_for(waiting, 60)


@pytest.mark.loop(run=run_in_virtual_time)
async def test_program_is_looked_for_after_pauses_that_grow_to_a_fifth_of_a_second(short_path: Path) -> None:
    path = str(short_path / "program.sock")

    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as listener:

        def listen() -> None:
            listener.bind(path)
            listener.listen()

        loop.call_later(1.0, listen)
        await wait_until_listening(server("prog", bind=f"unix:{path}"))
    pauses = [0.01 * 1.5**number for number in range(8)]
    assert loop.time() == pytest.approx(sum(pauses) + 3 * 0.2)


@pytest.mark.loop(run=run_in_virtual_time)
async def test_program_with_a_port_that_ends_before_it_listens_has_not_started(short_path: Path) -> None:
    found = worker(command=["serve"], bind=f"unix:{short_path}/program.sock")
    asyncio.get_running_loop().call_later(5, found.record_exit, Exit.from_returncode(3))
    with pytest.raises(WorkerFailed, match="exited with status 3 before it was ready"):
        await wait_until_ready(found, [], among(found))
    assert asyncio.get_running_loop().time() == 5


async def test_program_is_reached_through_its_listener_or_at_its_address(
    short_path: Path, descriptors_closed: None
) -> None:
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
            probe = await connect(config, target)
            with probe:
                accepted, address = listener.accept()
                accepted.close()
                if listener is tcp:
                    assert probe.getsockname() == address
        for listeners in ([], [tcp]):
            program = worker(command=["serve"], bind=f"127.0.0.1:{port}")
            probing = connect_for_probe(program, "http", False, listeners, among(program), exact=False)
            with await probing, tcp.accept()[0]:
                pass
        tcp.close()
        with pytest.raises(ConnectionRefusedError):
            await connect(server("x", bind=f"127.0.0.1:{port}"), None)
