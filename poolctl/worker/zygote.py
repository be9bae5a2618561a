"""Zygotes: processes that import the modules of workers, and fork workers on request.

The base zygote has imported uvicorn. An app zygote has also switched to a server's user and environment, and imported
its application. An import may have effects that do not survive a fork: threads, processes, open connections. In that
case the app zygote reports them and exits, and each worker imports the application itself.

A zygote is single-threaded and runs no event loop, because a lock held by another thread at the fork would stay locked.
Children are forked twice, so that the keeper, the nearest subreaper above, is the parent of all of them.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

from ..keeper import wire
from ..platform import name_process
from .fork_safety import ProcessSnapshot, ThreadOrigins
from .imports import (
    MOST_CHARACTERS,
    LoadFailed,
    exit_status,
    explain,
    import_app,
    module_of,
    preload,
    prepare_for_forks,
    set_app_environment,
    warm_up,
)
from .process_setup import (
    SPEC_FD,
    Spec,
    apply_spec,
    clear_pool_variables,
    discard_output,
    needs_exec,
    place,
    read_spec,
    read_spec_after_exec,
    reset_signals,
    run_and_exit,
    start_interpreter_again,
    wait_for_go,
)
from .serving.pool_server import STARTUP_FAILURE
from .worker_process import become_worker

REQUESTS_FD = 3
_APP_REQUESTS_FD = SPEC_FD + 1
_EXIT_FUNCTIONS_SECONDS = 1
_FORKER_SECONDS = 0.05
_CLOSE_BEHIND_MILLISECONDS = 4

# The function that a fork runs, by the operation of the request; it gets the descriptors that came with it.
Roles = Mapping[str, Callable[[list[int]], NoReturn]]


def serve_requests() -> None:
    """Fork a worker for each request until the other end of the socket is closed."""
    name_process("poolctl-zygote")
    requests = socket.socket(fileno=REQUESTS_FD)
    # Here instead of in every worker: Python's signal handlers are meant for programs of one process.
    reset_signals()
    clear_pool_variables()
    preload()
    prepare_for_forks()
    # The supervisor may have exited before this zygote is up.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        wire.send(requests, {"event": "up"}, wait=True)
        serve_forks(requests, {"worker": become_worker, "app": become_app_zygote})


def become_app_zygote(fds: list[int]) -> NoReturn:
    """Turn this new fork into the app zygote whose specification, socket and output are in `fds`."""
    run_and_exit(lambda: _set_up(fds))


def _set_up(fds: list[int]) -> int:
    spec_fd, requests, output = fds
    spec = read_spec(spec_fd)
    name_process("poolctl-app")
    reset_signals()
    wait_for_go(requests)
    place([spec_fd, requests], output)
    apply_spec(spec)
    if needs_exec(spec):
        start_interpreter_again(spec, 2, "worker", "app")
    return _run(spec)


def resume() -> NoReturn:
    """Run the app zygote after the exec that its environment required."""
    spec = read_spec_after_exec(2)
    name_process("poolctl-app")
    preload()
    prepare_for_forks()
    run_and_exit(lambda: _run(spec))


def _run(spec: Spec) -> int:
    requests = socket.socket(fileno=_APP_REQUESTS_FD)
    os.close(SPEC_FD)
    set_app_environment(spec)
    before, origins = ProcessSnapshot.of_this_process(), ThreadOrigins(module_of(spec))
    try:
        with origins:
            warm_up(import_app(spec))
    except SystemExit as leaving:
        return _leave(exit_status(leaving.code))
    except LoadFailed as error:
        print(explain(error), file=sys.stderr, end="")
        _send(requests, {"event": "failed", "message": str(error)[:MOST_CHARACTERS]})
        return _leave(STARTUP_FAILURE)
    if found := before.left_since(origins):
        return _report_unusable(requests, found, before.fix())
    gc.collect()
    gc.freeze()  # forks share these objects, and never scan them for garbage
    _close_output()
    if _send(requests, {"event": "up"}):
        serve_forks(requests, {"worker": lambda fds: become_worker(fds, preloaded=True)})
    # The application's exit functions are left to its workers.
    return 0


def _report_unusable(requests: socket.socket, found: str, fix: str) -> int:
    problem = f"its import {found}, which no fork can share: each worker imports it instead"
    problem += f" ({fix})" if fix else ""
    print(f"preload = true has no effect: {problem}", file=sys.stderr)
    _leave(0)
    _send(requests, {"event": "unusable", "problem": problem[:MOST_CHARACTERS]})
    return 0


def _leave(status: int) -> int:
    """Exit as a program does that only imported the application."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_EXIT_FUNCTIONS_SECONDS)
    atexit._run_exitfuncs()
    signal.alarm(0)
    return status


def _close_output() -> None:
    # From here only workers print, to pipes of their own; the end of this pipe shows that all output was read.
    sys.stdout.flush()
    sys.stderr.flush()
    discard_output()


def _send(requests: socket.socket, message: wire.Message) -> bool:
    with contextlib.suppress(OSError):
        wire.send(requests, message, wait=True)
        return True
    return False


def serve_forks(requests: socket.socket, roles: Roles) -> None:
    """Fork for each request until the other end of the socket is closed.

    A forker is forked in advance and waits for a request, so that half the cost of a fork has been paid when it
    arrives.
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
        _close_all(fds)
        if "id" in message:
            wire.send(requests, {"id": message["id"], "error": f"cannot fork: {error.strerror}"}, wait=True)


def _fork_some(requests: socket.socket, roles: Roles) -> NoReturn:
    """Fork for the next request and for requests that follow closely, then exit.

    The keeper becomes the parent. One such process for each worker would be a fifth of the cost of a start. It exits
    soon after the first fork: the keeper cannot wait for a worker, or signal it by its pid, while this process is its
    parent.
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
            _close_all(fds)
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


def _close_all(fds: list[int]) -> None:
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
