"""The socket by which a program says that it is ready: who is heard, and how much at once."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable

import pytest

from poolctl.runners.local.program_readiness import NotifySocket

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
