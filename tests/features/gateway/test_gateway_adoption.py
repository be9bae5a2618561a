"""Looking for a gateway that outlived keeper and supervisor: which one is adopted, and what becomes of others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolctl.features.gateway.supervision import gateway_adoption
from poolctl.features.gateway.supervision.gateway_adoption import GatewaySearch
from poolctl.json_form import to_json
from poolctl.keeper import fd_store, pool_files, rendezvous
from poolctl.keeper.reap import await_exit
from poolctl.platform import process_start
from poolctl.runners.local import find_orphans, has_orphans
from poolctl.runners.process_link import Link
from tests.features.gateway.test_gateway_server import Stage, orphans, patient, run
from tests.unit.runners.test_process_link import StoringPeer

__all__ = ["patient"]

# Listens as an orphan does, and never answers.
SILENT = """
import signal, sys
from poolctl.keeper import pool_files, fd_store, rendezvous
if len(sys.argv) > 2:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
sock, _ = rendezvous.bind_new_socket(sys.argv[1], pool_files.GATEWAY)
sock.listen()
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def silent(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    more = ["ignores SIGTERM"] if getattr(request, "param", False) else []
    process = subprocess.Popen(
        [sys.executable, "-c", SILENT, str(tmp_path), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


@contextlib.contextmanager
def search_of(directory: Path) -> Iterator[GatewaySearch]:
    """A search that needs no keeper."""
    keeper, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = Link(keeper)
    with other:
        yield GatewaySearch(link, str(directory))
    link.close()


def stop(pid: int) -> None:
    """Stop this child; returns once it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)


def test_search_without_an_orphan_finds_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        with search_of(tmp_path) as search:
            assert (await search.find_orphan_and_drain_others(), search.silent) == (None, False)

    run(work())


def test_orphan_that_does_not_answer_is_continued_then_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: subprocess.Popen[str]
) -> None:
    monkeypatch.setattr(gateway_adoption, "_ANSWER_SECONDS", 0.01)
    start = process_start(silent.pid)
    assert start is not None

    async def work() -> None:
        with search_of(tmp_path) as search:
            stop(silent.pid)
            assert (await search.find_orphan_and_drain_others(), search.silent) == (None, True)
            await asyncio.to_thread(os.waitid, os.P_PID, silent.pid, os.WCONTINUED)
            monkeypatch.setattr(gateway_adoption, "SILENT_SECONDS", 0.0)
            assert (await search.find_orphan_and_drain_others(), search.silent) == (None, True)
            assert await_exit(silent.pid, start, 30)
            assert (await search.find_orphan_and_drain_others(), search.silent) == (None, False)

    run(work())


def test_second_orphan_drains_and_ends(tmp_path: Path) -> None:
    async def work() -> None:
        stages = [Stage(tmp_path), Stage(tmp_path)]
        for stage in stages:
            await stage.start()
            stage.process.link.close()
        while len(pool_files.find_listeners(str(tmp_path), pool_files.GATEWAY)) < len(stages):
            await asyncio.sleep(0.001)
        for each in await orphans(tmp_path):
            each.close()
        with search_of(tmp_path) as search:
            chosen = await search.find_orphan_and_drain_others()
            assert chosen is not None
            done, _ = await asyncio.wait(
                [stage.over for stage in stages], return_when=asyncio.FIRST_COMPLETED
            )
            (ended,) = [stage for stage in stages if stage.over in done]
            (left,) = [stage for stage in stages if stage.over not in done]
            assert await left.get() == b"HTTP/1.1 200 OK | ok"
            left.supervise(chosen.sock.dup())
            chosen.close()
            await left.close()
            await ended.close()

    run(work())


def test_orphan_is_kept_with_all_that_it_holds_and_the_process_that_it_was_to_replace_drains(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        before, orphan = Stage(tmp_path), Stage(tmp_path)
        for stage in (before, orphan):
            await stage.start()
        peer = StoringPeer()
        link = before.process.link.sock.dup()
        peer.kept.send({"op": "put", "name": fd_store.GATEWAY_LINK, "meta": {}}, [link])
        # A supervisor that is killed before it has given the keeper the link to the new process.
        for stage in (before, orphan):
            stage.process.link.close()
        for each in await orphans(tmp_path):
            each.close()
        search = GatewaySearch(peer.kept, str(tmp_path))
        found = await search.find_orphan_and_drain_others()
        assert found is not None
        await search.hand_over_to_keeper(found)
        await before.over
        key = f"{fd_store.GATEWAY_LISTENER}{orphan.binding.key}"
        listener, pair, gateway = (
            peer.store.get(each) or (None, []) for each in (key, fd_store.GATEWAY_PAIR, fd_store.GATEWAY_LINK)
        )
        assert (listener[0], len(listener[1]), len(pair[1])) == (to_json(orphan.binding), 1, 2)
        assert gateway[0]["pid"] == os.getpid()
        orphan.supervise(socket.socket(fileno=os.dup(gateway[1][0])))
        link.close()
        for stage in (before, orphan):
            await stage.close()
        peer.keeper.reaper.close()
        peer.close()

    run(work())


def test_orphaned_gateway_is_an_orphan_but_no_worker(tmp_path: Path) -> None:
    sock, path = rendezvous.bind_new_socket(str(tmp_path), pool_files.GATEWAY)
    with sock:
        assert has_orphans(str(tmp_path)) is False, "it does not listen yet"
        sock.listen()
        assert has_orphans(str(tmp_path)) is True
        assert find_orphans(str(tmp_path)) == []
    pool_files.unlink_quietly(path)


def test_process_of_another_user_is_no_orphan_and_its_connection_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_adoption, "_ANSWER_SECONDS", 0.01)
    sock, path = rendezvous.bind_new_socket(str(tmp_path), pool_files.GATEWAY)
    with sock:
        sock.listen()
        (found,) = gateway_adoption.find(str(tmp_path))
        assert (found.pid, found.start, found.mark) == (os.getpid(), process_start(os.getpid()), "")
        found.close()
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert gateway_adoption.find(str(tmp_path)) == []
        for _ in range(2):
            connection, _ = sock.accept()
            with connection:
                connection.settimeout(60)
                while connection.recv(4096):
                    pass
    pool_files.unlink_quietly(path)


@pytest.mark.parametrize(
    ("silent", "stopped", "ends"),
    [(False, False, True), (False, True, True), (True, True, False)],
    indirect=["silent"],
)
def test_orphan_is_ended_and_killed_if_it_does_not_exit_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: subprocess.Popen[str], stopped: bool, ends: bool
) -> None:
    start = process_start(silent.pid)
    assert start is not None
    if stopped:
        stop(silent.pid)
    find = gateway_adoption.find
    monkeypatch.setattr(gateway_adoption, "_ANSWER_SECONDS", 0.01)
    found = find(str(tmp_path))
    monkeypatch.setattr(gateway_adoption, "_ANSWER_SECONDS", 30.0)
    monkeypatch.setattr(gateway_adoption, "find", lambda directory: found)
    ended = gateway_adoption.end_all(str(tmp_path), 30.0 if ends else 0.01)
    assert ended == [(silent.pid, ends)]
    assert await_exit(silent.pid, start, 30)
    assert found[0].sock.fileno() == -1
