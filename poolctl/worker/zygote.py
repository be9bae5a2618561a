"""The base zygote: a process that has imported the server and forks workers, each with its listeners.

It is single-threaded and runs no event loop, because a lock held by another thread at the fork would stay locked.
Workers are forked twice, so that the keeper, the nearest subreaper above, is the parent of every one of them.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import time
from typing import NoReturn

from ..keeper import wire
from ..platform import name_process
from .child import become
from .life import live
from .preload import preload, settle
from .rehearse import rehearse

REQUESTS_FD = 3
_MIDDLE_SECONDS = 0.02
_CLOSE_BEHIND_MILLISECONDS = 4


def serve_requests() -> None:
    """Fork a worker for each request until the requests' socket ends."""
    name_process("poolctl-zygote")
    requests = socket.socket(fileno=REQUESTS_FD)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nothing that an import makes is garbage: looking for it is a tenth of the time.
    gc.disable()
    preload()
    gc.enable()
    rehearse()
    settle()
    # Whoever asked for a zygote may be gone before it is up: nobody is left to be told.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        wire.send(requests, {"event": "up"})
        _serve(requests)


def _serve(requests: socket.socket) -> None:
    while (received := wire.receive(requests)) is not None:
        message, fds = received
        if message.get("op") == "ping":
            wire.send(requests, {"event": "up"})
            continue
        try:
            middle = os.fork()
        except OSError as error:
            wire.send(requests, {"id": message["id"], "error": f"cannot fork: {error.strerror}"})
        else:
            if middle == 0:
                _fork_workers(requests, message, fds)
            os.waitpid(middle, 0)
        _close(fds)


def _fork_workers(requests: socket.socket, message: wire.Message, fds: list[int]) -> NoReturn:
    """Fork a worker for the request and for those that follow close behind it, then end: orphans are the keeper's.

    One such process for each worker would be a fifth of the cost of a start. It does not live long: nobody can be told
    of a worker's death, or end it by its pid, while this process is its parent.
    """
    ends = time.monotonic() + _MIDDLE_SECONDS
    more = select.poll()
    more.register(requests, select.POLLIN)
    try:
        while True:
            if message.get("op") == "ping":
                wire.send(requests, {"event": "up"})
            else:
                _fork_worker(requests, message["id"], fds)
                _close(fds)
            if time.monotonic() >= ends or not more.poll(_CLOSE_BEHIND_MILLISECONDS):
                break
            received = wire.receive(requests)
            if received is None:
                break
            message, fds = received
    finally:
        os._exit(0)


def _fork_worker(requests: socket.socket, request_id: int, fds: list[int]) -> None:
    group = os.getpgrp()
    try:
        worker = os.fork()
        if worker == 0:
            requests.close()
            _lead_session(group)
            become(fds, live)
        with contextlib.suppress(PermissionError, ProcessLookupError):
            # At once, and not when it is its turn: what becomes of the zygote's group is no longer its concern.
            os.setpgid(worker, worker)
        wire.send(requests, {"id": request_id, "pid": worker})
    except OSError as error:
        wire.send(requests, {"id": request_id, "error": f"cannot fork: {error.strerror}"})


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _lead_session(group: int) -> None:
    """Lead a session. A process that leads a group already, as this one may, returns to `group` first (setsid(2))."""
    for _ in range(2):
        try:
            os.setsid()
            return
        except PermissionError:
            with contextlib.suppress(PermissionError):
                os.setpgid(0, group)
