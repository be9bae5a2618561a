"""Processes and desired state that outlive keeper and supervisor are found in the pool's directory."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from poolctl.keeper import pool_files, rendezvous, wire
from poolctl.platform import peer_credentials
from tests.descriptors import open_descriptors


def listening(directory: Path, kind: str = pool_files.WORKER) -> tuple[socket.socket, str]:
    sock, path = rendezvous.bind(str(directory), kind)
    sock.listen()
    return sock, path


def test_listening_socket_is_found_and_one_that_is_only_bound_is_not(tmp_path: Path) -> None:
    bound, path = rendezvous.bind(str(tmp_path), pool_files.WORKER)
    with bound:
        assert os.path.dirname(path) == str(tmp_path)
        assert pool_files.find(str(tmp_path), pool_files.WORKER) == []
        assert rendezvous.connect(path) is None
        bound.listen()
        assert pool_files.find(str(tmp_path), pool_files.WORKER) == [path]
        assert pool_files.find(str(tmp_path), pool_files.LOGGER) == []
        client = rendezvous.connect(path)
        assert client is not None
        with client:
            assert peer_credentials(client)[:2] == (os.getpid(), os.geteuid())
    assert pool_files.find(str(tmp_path), pool_files.WORKER) == []
    assert rendezvous.connect(path) is None


def test_directory_that_has_vanished_is_made_again_for_its_owner_alone(tmp_path: Path) -> None:
    sock, path = rendezvous.bind(str(tmp_path / "gone"), pool_files.WORKER)
    sock.close()
    assert (tmp_path / "gone").stat().st_mode & 0o777 == 0o700
    pool_files.forget(path)
    assert list((tmp_path / "gone").iterdir()) == []


def test_sweep_removes_only_sockets_that_no_process_has_open(tmp_path: Path) -> None:
    (tmp_path / "wanted.json").write_text("{}")
    stale, _ = rendezvous.bind(str(tmp_path), pool_files.WORKER)
    stale.close()
    bound, waiting = rendezvous.bind(str(tmp_path), pool_files.WORKER)
    sock, path = listening(tmp_path)
    with sock, bound:
        pool_files.sweep(str(tmp_path))
        assert sorted(map(str, tmp_path.iterdir())) == sorted([path, waiting, str(tmp_path / "wanted.json")])


def test_listener_that_has_connections_is_still_found(tmp_path: Path) -> None:
    sock, path = listening(tmp_path)
    with sock:
        client = rendezvous.connect(path)
        ours = rendezvous.accept(sock, {os.geteuid()})
        assert client is not None
        assert ours is not None
        with client, ours:
            assert pool_files.find(str(tmp_path), pool_files.WORKER) == [path]


def test_sockets_are_asked_at_once_and_silent_ones_cost_one_deadline(tmp_path: Path) -> None:
    silent = [listening(tmp_path)[0] for _ in range(20)]
    speaking = [listening(tmp_path)[0] for _ in range(3)]
    rude, _ = listening(tmp_path)
    before = open_descriptors()
    connections = []
    for number, sock in enumerate((*speaking, rude)):
        # They speak as soon as somebody has connected; here, in the connection that is made first.
        client = rendezvous.connect(sock.getsockname())
        assert client is not None
        connections.append(client)
        ours = rendezvous.accept(sock, {os.geteuid()})
        assert ours is not None
        ours.send(b"{" if sock is rude else b'{"n":%d}' % number)
        connections.append(ours)
    began = time.monotonic()
    asked = rendezvous.ask(str(tmp_path), pool_files.WORKER, 1.0)
    assert time.monotonic() - began < 20 * 1.0
    assert [answer for _, answer in asked] == [None] * 24
    connections += [sock for sock, _ in asked]
    assert [rendezvous.receive(client) for client in connections[:8:2]] == [
        ({"n": 0}, []),
        ({"n": 1}, []),
        ({"n": 2}, []),
        None,
    ]
    for each in connections:
        each.close()
    assert open_descriptors() == before
    for sock in (*silent, *speaking, rude):
        sock.close()


def test_other_users_are_turned_away(tmp_path: Path) -> None:
    listener, path = listening(tmp_path)
    with listener:
        client = rendezvous.connect(path)
        assert client is not None
        with client:
            assert rendezvous.accept(listener, {os.geteuid() + 1}) is None
            assert rendezvous.receive(client) is None
        assert rendezvous.accept(listener, {os.geteuid()}) is None, "nobody is waiting"


def test_message_that_is_none_or_too_large_is_no_answer_and_leaves_no_descriptor(tmp_path: Path) -> None:
    ours, theirs = wire.pair()
    before = open_descriptors()
    with ours, theirs:
        for packet in (b"garbage", b"[]", b'{"x":"' + b"y" * 20_000 + b'"}'):
            socket.send_fds(theirs, [packet], [0] * 50)
            assert rendezvous.receive(ours) is None
        socket.send_fds(theirs, [b"{}"], [0] * 200)
        assert rendezvous.receive(ours) is None
        assert open_descriptors() == before


def test_last_desired_state_is_read_until_it_is_removed(tmp_path: Path) -> None:
    assert pool_files.read_desired(str(tmp_path)) == {}
    pool_files.write_desired(str(tmp_path), b'{"servers": {}}')
    pool_files.write_desired(str(tmp_path), b'{"servers": {"web": {"count": 2}}}')
    assert pool_files.read_desired(str(tmp_path)) == {"servers": {"web": {"count": 2}}}
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    pool_files.remove_desired(str(tmp_path))
    pool_files.remove_desired(str(tmp_path))
    assert pool_files.read_desired(str(tmp_path)) == {}
    assert list(tmp_path.iterdir()) == []


def test_desired_state_is_empty_after_a_boot(tmp_path: Path) -> None:
    pool_files.write_desired(str(tmp_path), b'{"servers": {}}')
    (path,) = tmp_path.iterdir()
    written = json.loads(path.read_text())
    boot, first = written["life"]
    for another in (["0-0", first], [boot, first + 1]):
        path.write_text(json.dumps({**written, "life": another}))
        assert pool_files.read_desired(str(tmp_path)) == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"life": 1', '{"life": null, "left": {}}', "\xff"])
def test_unreadable_desired_state_is_empty(tmp_path: Path, text: str) -> None:
    pool_files.write_desired(str(tmp_path), b"{}")
    (path,) = tmp_path.iterdir()
    path.write_bytes(text.encode("latin-1"))
    assert pool_files.read_desired(str(tmp_path)) == {}
