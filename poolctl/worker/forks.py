"""Forks on request: the loop of a zygote once it has imported everything that its children share.

It is single-threaded and runs no event loop, because a lock held by another thread at the fork would stay locked.
Children are forked twice, so that the keeper, the nearest subreaper above, is the parent of every one of them.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

from ..keeper import wire

_FORKER_SECONDS = 0.05
_CLOSE_BEHIND_MILLISECONDS = 4

# The function that a fork runs, by the operation of the request; it gets the descriptors that came with it.
Roles = Mapping[str, Callable[[list[int]], NoReturn]]


def serve_forks(requests: socket.socket, roles: Roles) -> None:
    """Fork for each request until the requests' socket ends.

    A forker is forked before there is a request and waits for it: by then half the cost of a fork has been paid.
    """
    failed = False
    while not _has_ended(requests):
        try:
            forker = os.fork()
        except OSError as error:
            if failed:
                _refuse_next(requests, error)
            failed = not failed
            _wait_for_request(requests)
            continue
        if forker == 0:
            _fork_some(requests, roles)
        # An application may have its children reaped by the kernel.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(forker, 0)


def _has_ended(requests: socket.socket) -> bool:
    try:
        return not requests.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _wait_for_request(requests: socket.socket) -> None:
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    poll.poll()


def _refuse_next(requests: socket.socket, error: OSError) -> None:
    received = wire.receive(requests, wait=True)
    if received is not None:
        message, fds = received
        _close(fds)
        if "id" in message:
            wire.send(requests, {"id": message["id"], "error": f"cannot fork: {error.strerror}"}, wait=True)


def _fork_some(requests: socket.socket, roles: Roles) -> NoReturn:
    """Fork for the next request and for those that follow closely, then exit: the keeper becomes the parent.

    One such process for each worker would be a fifth of the cost of a start. It exits soon after the first fork: the
    keeper cannot wait for a worker, or signal it by its pid, while this process is its parent.
    """
    more = select.poll()
    more.register(requests, select.POLLIN)
    ends = None
    try:
        while (received := wire.receive(requests, wait=True)) is not None:
            ends = ends or time.monotonic() + _FORKER_SECONDS
            message, fds = received
            if _is_fork(requests, message, roles):
                _fork_one(requests, message, fds, roles)
            _close(fds)
            if time.monotonic() >= ends or not more.poll(_CLOSE_BEHIND_MILLISECONDS):
                break
    finally:
        os._exit(0)


def _is_fork(requests: socket.socket, message: wire.Message, roles: Roles) -> bool:
    if message.get("op") == "ping":
        wire.send(requests, {"event": "up"}, wait=True)
    return message.get("op") in roles


def _fork_one(requests: socket.socket, message: wire.Message, fds: list[int], roles: Roles) -> None:
    group = os.getpgrp()
    try:
        child = os.fork()
        if child == 0:
            os.close(requests.detach())
            _lead_session(group)
            roles[message["op"]](fds)
        with contextlib.suppress(PermissionError, ProcessLookupError):
            # Immediately, not when the child is scheduled: a signal to the zygote's group must not reach it.
            os.setpgid(child, child)
        wire.send(requests, {"id": message["id"], "pid": child}, wait=True)
    except OSError as error:
        wire.send(requests, {"id": message["id"], "error": f"cannot fork: {error.strerror}"}, wait=True)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _lead_session(group: int) -> None:
    """Become the leader of a session. A process that already leads a group returns to `group` first (setsid(2)).

    It returns to it in any case: an error, even a caught one, makes a few more pages private.
    """
    for _ in range(2):
        try:
            os.setpgid(0, group)
            os.setsid()
            return
        except PermissionError:
            continue
