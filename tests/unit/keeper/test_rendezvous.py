"""Processes that outlive keeper and supervisor are found, and asked, by their sockets."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from poolctl.keeper import pool_files, rendezvous, wire
from tests.descriptors import open_descriptors


def listening(directory: Path, kind: str = pool_files.WORKER) -> tuple[socket.socket, str]:
    sock, path = rendezvous.bind_new_socket(str(directory), kind)
    sock.listen()
    return sock, path


def test_directory_that_has_vanished_is_made_again_for_its_owner_alone(tmp_path: Path) -> None:
    gone = tmp_path / "root" / "gone"
    sock, path = rendezvous.bind_new_socket(str(gone), pool_files.WORKER)
    sock.close()
    assert [each.stat().st_mode & 0o777 for each in (gone, gone.parent)] == [0o700, 0o700]
    pool_files.unlink_quietly(path)
    assert list(gone.iterdir()) == []


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
    asked = rendezvous.connect_to_all(str(tmp_path), pool_files.WORKER, 1.0)
    assert time.monotonic() - began < 20 * 1.0
    assert [answer for _, answer in asked] == [None] * 24
    connections += [sock for sock, _ in asked]
    assert [rendezvous.receive_or_none(client) for client in connections[:8:2]] == [
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


def test_answer_of_each_process_is_received_and_an_invalid_one_is_empty(tmp_path: Path) -> None:
    def speak(listener: socket.socket, data: bytes) -> None:
        listener.setblocking(True)
        with listener, listener.accept()[0] as connection:
            connection.send(data)

    said = {b'{"n":1}': ({"n": 1}, []), b'{"n":2}': ({"n": 2}, []), b"{": ({}, [])}
    listeners = [listening(tmp_path) for _ in said]
    with ThreadPoolExecutor() as threads:
        for (listener, _), data in zip(listeners, said, strict=True):
            threads.submit(speak, listener, data)
        asked = rendezvous.connect_to_all(str(tmp_path), pool_files.WORKER, 60.0)
    expected = {path: answer for (_, path), answer in zip(listeners, said.values(), strict=True)}
    assert {sock.getpeername(): answer for sock, answer in asked} == expected
    for sock, _ in asked:
        sock.close()


def test_other_users_are_turned_away(tmp_path: Path) -> None:
    listener, path = listening(tmp_path)
    with listener:
        client = rendezvous.connect(path)
        assert client is not None
        with client:
            assert rendezvous.accept(listener, {os.geteuid() + 1}) is None
            assert rendezvous.receive_or_none(client) is None
        assert rendezvous.accept(listener, {os.geteuid()}) is None, "nobody is waiting"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its group")
def test_user_is_not_mistaken_for_the_group_or_the_process(tmp_path: Path) -> None:
    listener, path = listening(tmp_path)
    with listener, ExitStack() as stack:
        before = os.getegid()
        os.setegid(54321)
        try:
            for uid, admitted in ((54321, False), (os.getpid(), False), (0, True)):
                client = rendezvous.connect(path)
                assert client is not None
                stack.enter_context(client)
                accepted = rendezvous.accept(listener, {uid})
                assert (accepted is not None) is admitted
                if accepted is not None:
                    stack.enter_context(accepted)
                    assert not accepted.getblocking()
        finally:
            os.setegid(before)


def test_message_that_is_none_or_too_large_is_no_answer_and_leaves_no_descriptor(tmp_path: Path) -> None:
    ours, theirs = wire.pair()
    before = open_descriptors()
    with ours, theirs:
        for packet in (b"garbage", b"[]", b'{"x":"' + b"y" * 20_000 + b'"}'):
            socket.send_fds(theirs, [packet], [0] * 50)
            assert rendezvous.receive_or_none(ours) is None
        socket.send_fds(theirs, [b"{}"], [0] * 200)
        assert rendezvous.receive_or_none(ours) is None
        assert open_descriptors() == before


def test_answer_may_have_16_kib_and_64_descriptors_and_no_more(tmp_path: Path) -> None:
    ours, theirs = wire.pair()
    room = 16 * 1024 - len(b'{"x":""}')
    before = open_descriptors()
    with ours, theirs:
        socket.send_fds(theirs, [b'{"x":"' + b"y" * room + b'"}'], [0] * 64)
        received = rendezvous.receive_or_none(ours)
        assert received is not None
        message, fds = received
        assert message == {"x": "y" * room}
        assert len(fds) == 64
        for fd in fds:
            os.close(fd)
        for size, count in ((room + 1, 0), (0, 65)):
            socket.send_fds(theirs, [b'{"x":"' + b"y" * size + b'"}'], [0] * count)
            assert rendezvous.receive_or_none(ours) is None
    assert len(open_descriptors()) == len(before) - 2
