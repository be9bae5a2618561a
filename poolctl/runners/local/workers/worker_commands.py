"""The commands to a worker, other than to stop: by its control socket, or by a signal from the keeper."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket

from poolctl.config import ServerConfig
from poolctl.platform import sealed_file

from ...link import Link, LinkLost
from ...protocol import Exit
from ...spec import tls_settings
from .local_worker import LocalWorker

_TRIES = 20
_AGAIN_SECONDS = 0.005
# Longer than it takes to detect that the keeper does not answer, and to replace it.
_KEEPER_SECONDS = 15.0


def rotate(worker: LocalWorker, in_rotation: bool) -> None:
    """Take the worker out of rotation (its clients reconnect elsewhere) or put it back; no effect on a command."""
    if worker.control is not None:
        worker.control.send({"order": "in" if in_rotation else "out"})


def attend(worker: LocalWorker, accepting: bool) -> None:
    """Tell the worker to accept connections, or not to; no effect on a command."""
    worker.resting = ""
    if worker.control is not None:
        worker.control.send({"order": "work" if accepting else "rest"})


def connect(worker: LocalWorker, kind: str, plain: bool) -> socket.socket:
    """Our end of a connection that the worker, which is not a command, is to answer. Raises OSError."""
    assert worker.control is not None
    if worker.control.waits:
        raise BlockingIOError(errno.EAGAIN, "it has not read earlier commands")
    ours, theirs = socket.socketpair()
    with theirs:
        worker.control.send({"order": "conn", "kind": kind, "plain": plain}, [theirs.fileno()])
    return ours


def part(worker: LocalWorker, order: str, receivers: str | None) -> None:
    """Tell the worker to drain or to stop; `receivers` is the protocol of those that take from the pair, None for none.

    They get its connections if the protocol is the same. No effect on a command.
    """
    if worker.control is not None:
        same = receivers is not None and receivers == worker.protocol
        worker.control.send({"order": order, "to": "pair" if same else "nobody"})


def idle_after(worker: LocalWorker, seconds: float) -> None:
    """Tell the worker after how long without traffic it is idle, 0 is never; no effect on a command."""
    worker.idle = False
    if worker.control is not None:
        worker.control.send({"order": "idle", "seconds": seconds})


def renew_tls(worker: LocalWorker, server: ServerConfig, contents: list[bytes]) -> None:
    """Send the worker the certificate, the key and the client CAs that were read for its server."""
    if worker.control is None:
        return
    with contextlib.ExitStack() as ours:
        fds = [sealed_file("poolctl", content) for content in contents]
        for fd in fds:
            ours.callback(os.close, fd)
        worker.renewing = True
        worker.control.send({"order": "tls", "tls": tls_settings(server)}, fds)


async def signal(
    keeper: Link,
    pid: int | None,
    start: int | None,
    exited: asyncio.Future[Exit],
    number: int,
    *,
    group: bool = False,
) -> None:
    """Send a signal to a process of that start time, or to its session; nothing once it has `exited`.

    The keeper sends it: only the parent can be sure that the pid is still that process's. It becomes the parent a
    moment after the fork.
    """
    order = {"op": "signal", "pid": pid, "start": start, "signal": number, "group": group}
    with contextlib.suppress(LinkLost, TimeoutError):
        for _ in range(_TRIES):
            async with asyncio.timeout(_KEEPER_SECONDS):
                reply, _ = await keeper.call(order)
            if reply["sent"] or exited.done():
                return
            await asyncio.sleep(_AGAIN_SECONDS)
