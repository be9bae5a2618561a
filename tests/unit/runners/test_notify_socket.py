"""Programs report that they are ready on a socket that only their user and root can use."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from collections.abc import Callable

import pytest

from poolctl.runners.local.notify_socket import NotifySocket
from tests.serving import turns
from tests.unit.runners.test_local_worker import ended
from tests.virtual_loop import run_in_virtual_time

NOBODY, SOMEBODY = 65534, 54321


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


def say(path: str, message: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(message, path)


@root_only
async def test_ready_is_accepted_only_from_the_programs_user_and_root() -> None:
    heard: list[int] = []
    notify = NotifySocket.open(NOBODY)
    notify.start(lambda: heard.append(1))
    for uid, count in ((SOMEBODY, 0), (NOBODY, 1), (0, 2)):
        await ended(in_a_child(uid, lambda: say(notify.path, b"STATUS=up\nREADY=1")))
        await asyncio.sleep(0.01)
        assert len(heard) == count, uid
    notify.close()


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
        count = 0
        while not count or len(heard) > count:
            count = len(heard)
            assert select.select([notify], [], [], 60)[0], "there are more"
            await turns()
        assert 0 < count <= 100
        await asyncio.sleep(0.35)
        assert len(heard) == count
        notify.close()

    pid = in_a_child(os.geteuid(), flood)
    try:
        run_in_virtual_time(scenario())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


async def test_notification_socket_can_be_reached_by_every_user_and_goes_away(
    descriptors_closed: None,
) -> None:
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
