"""Orphans are found by sockets in their pool's directory, all are asked at once, and none is trusted."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from poolctl.keeper import rendezvous, wire
from poolctl.platform import peer_credentials


def listening(directory: Path, kind: str = rendezvous.WORKER) -> tuple[socket.socket, str]:
    sock, path = rendezvous.bind(str(directory), kind)
    sock.listen()
    return sock, path


def test_what_listens_is_found_and_what_is_bound_only_is_not(tmp_path: Path) -> None:
    bound, path = rendezvous.bind(str(tmp_path), rendezvous.WORKER)
    with bound:
        assert os.path.dirname(path) == str(tmp_path)
        assert rendezvous.find(str(tmp_path), rendezvous.WORKER) == []
        assert rendezvous.connect(path) is None
        bound.listen()
        assert rendezvous.find(str(tmp_path), rendezvous.WORKER) == [path]
        assert rendezvous.find(str(tmp_path), rendezvous.LOGGER) == []
        client = rendezvous.connect(path)
        assert client is not None
        with client:
            assert peer_credentials(client)[:2] == (os.getpid(), os.geteuid())
    assert rendezvous.find(str(tmp_path), rendezvous.WORKER) == []
    assert rendezvous.connect(path) is None


def test_directory_that_has_vanished_is_made_again_for_its_owner_alone(tmp_path: Path) -> None:
    sock, path = rendezvous.bind(str(tmp_path / "gone"), rendezvous.WORKER)
    sock.close()
    assert (tmp_path / "gone").stat().st_mode & 0o777 == 0o700
    rendezvous.forget(path)
    assert list((tmp_path / "gone").iterdir()) == []


def test_sweep_removes_only_sockets_that_no_process_has_open(tmp_path: Path) -> None:
    (tmp_path / "wanted.json").write_text("{}")
    stale, _ = rendezvous.bind(str(tmp_path), rendezvous.WORKER)
    stale.close()
    bound, waiting = rendezvous.bind(str(tmp_path), rendezvous.WORKER)
    sock, path = listening(tmp_path)
    with sock, bound:
        rendezvous.sweep(str(tmp_path))
        assert sorted(map(str, tmp_path.iterdir())) == sorted([path, waiting, str(tmp_path / "wanted.json")])


def test_listener_that_has_connections_is_still_found(tmp_path: Path) -> None:
    sock, path = listening(tmp_path)
    with sock:
        client = rendezvous.connect(path)
        ours = rendezvous.accept(sock, {os.geteuid()})
        assert client is not None
        assert ours is not None
        with client, ours:
            assert rendezvous.find(str(tmp_path), rendezvous.WORKER) == [path]


def test_all_are_asked_at_once_and_those_that_say_nothing_cost_one_deadline(tmp_path: Path) -> None:
    silent = [listening(tmp_path)[0] for _ in range(20)]
    speaking = [listening(tmp_path)[0] for _ in range(3)]
    rude, _ = listening(tmp_path)
    before = set(os.listdir("/proc/self/fd"))
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
    asked = rendezvous.ask(str(tmp_path), rendezvous.WORKER, 0.2)
    assert time.monotonic() - began < 20 * 0.2
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
    assert set(os.listdir("/proc/self/fd")) == before
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
    before = len(os.listdir("/proc/self/fd"))
    with ours, theirs:
        for packet in (b"garbage", b"[]", b'{"x":"' + b"y" * 20_000 + b'"}'):
            socket.send_fds(theirs, [packet], [0] * 50)
            assert rendezvous.receive(ours) is None
        socket.send_fds(theirs, [b"{}"], [0] * 200)
        assert rendezvous.receive(ours) is None
        assert len(os.listdir("/proc/self/fd")) == before
