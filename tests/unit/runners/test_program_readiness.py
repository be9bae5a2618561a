"""Placeholders of commands, and how one learns that a program answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.runners.local.program_readiness import NotifySocket, first_connection
from poolctl.runners.worker_spec import argument_vector, environment


def server(*command: str, bind: str = "127.0.0.1:8123", **keys: Any) -> ServerConfig:
    return ServerConfig(name="web", bind=bind, command=list(command), **keys)


@pytest.mark.parametrize(
    ("bind", "word", "filled"),
    [
        ("127.0.0.1:8123", "{host}:{port}", "127.0.0.1:8123"), ("[::1]:8123", "{host}", "::1"),
        ("127.0.0.1:8123", "{bind}/{name}", "127.0.0.1:8123/web"), ("127.0.0.1:8123", "--fd={fd}", "--fd=3"),
        ("127.0.0.1:8123", "{unknown}", "{unknown}"), ("127.0.0.1:8123", "{{port}}", "{8123}"),
        ("unix:/tmp/a.sock", "[{fd}]", "[3]"),
    ],
)  # fmt: skip
def test_placeholders_are_filled_in_and_other_braces_stay(bind: str, word: str, filled: str) -> None:
    assert argument_vector(server("prog", word, bind=bind)) == ["prog", filled]


def test_placeholders_of_the_address_are_filled_in_in_the_environment_too(tmp_path: Path) -> None:
    (tmp_path / "its.env").write_text("FROM_FILE={port}\n")
    env = {"URL": "http://{host}:{port}", "AT": "{bind}", "FORMAT": "{name} {message}"}
    found = environment(server("prog", env=env, env_file=str(tmp_path / "its.env")))
    assert found == {
        "FROM_FILE": "{port}", "URL": "http://127.0.0.1:8123", "AT": "127.0.0.1:8123", "FORMAT": "{name} {message}",
        "HOST": "127.0.0.1", "PORT": "8123",
    }  # fmt: skip
    app = ServerConfig(name="web", bind=":1", app="m:app", env={"AT": "{port}"}, env_file=[])
    assert environment(app) == {"AT": "{port}"}


@pytest.fixture
def short_path() -> Any:
    with tempfile.TemporaryDirectory(prefix="pc-", dir="/tmp") as directory:
        yield Path(directory)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_program_has_answered_when_it_has_accepted_and_not_before(kind: str, short_path: Path) -> None:
    async def scenario() -> None:
        with socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX) as listener:
            listener.bind(("127.0.0.1", 0) if kind == "tcp" else str(short_path / "a.sock"))
            listener.listen()
            where = listener.getsockname()
            bind = f"127.0.0.1:{where[1]}" if kind == "tcp" else f"unix:{where}"
            waiting = asyncio.ensure_future(first_connection(server("prog", bind=bind), [listener]))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            accepted, _ = listener.accept()
            with accepted, contextlib.ExitStack() as others:
                # The program is busy with the first one, and its queue is never empty.
                for _ in range(3):
                    others.enter_context(socket.socket(listener.family)).connect(where)
                await asyncio.wait_for(waiting, 60)
                assert accepted.recv(1) == b"", "it is not kept waiting by ours"

    asyncio.run(scenario())


def test_a_full_queue_of_a_unix_listener_is_no_answer(short_path: Path) -> None:
    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as others:
            listener.bind(str(short_path / "a.sock"))
            listener.listen(0)
            listener.settimeout(60)
            others.enter_context(socket.socket(socket.AF_UNIX)).connect(listener.getsockname())
            there = server("prog", bind=f"unix:{listener.getsockname()}")
            waiting = asyncio.ensure_future(first_connection(there, [listener]))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            for _ in range(2):
                others.enter_context((await asyncio.to_thread(listener.accept))[0])
            await asyncio.wait_for(waiting, 60)

    asyncio.run(scenario())


def test_a_program_that_binds_by_itself_has_answered_when_it_listens(free_port: Any) -> None:
    async def scenario() -> None:
        port = free_port()
        there = server("prog", "{port}", bind=f"127.0.0.1:{port}")
        waiting = asyncio.ensure_future(first_connection(there, []))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        with socket.create_server(("127.0.0.1", port)):
            await asyncio.wait_for(waiting, 60)

    asyncio.run(scenario())


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

    path = asyncio.run(asyncio.wait_for(scenario(), 5))
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
    async def scenario() -> None:
        heard: list[int] = []
        notify = NotifySocket.open(os.geteuid())

        def flood() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.connect(notify.path)
                while True:
                    sock.send(b"READY=1")

        pid = in_a_child(os.geteuid(), flood)
        try:
            notify.start(lambda: heard.append(1))
            await asyncio.sleep(0.35)
        finally:
            os.kill(pid, signal.SIGKILL)
            await ended(pid)
        assert 0 < len(heard) <= 110
        notify.close()

    asyncio.run(scenario())
