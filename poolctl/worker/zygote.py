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
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn

from ..keeper import wire
from ..platform import close_all, name_process
from . import imports, process_setup
from .process_setup import SPEC_FD, Spec
from .serving.pool_server import STARTUP_FAILURE
from .worker_process import become_worker

REQUESTS_FD = 3
_APP_REQUESTS_FD = SPEC_FD + 1
_EXIT_FUNCTIONS_SECONDS = 1
_FORKER_SECONDS = 0.05
_NEXT_REQUEST_MILLISECONDS = 4

# By a request's operation: the function that the fork runs with the request's descriptors.
Roles = Mapping[str, Callable[[list[int]], NoReturn]]


def run_base_zygote() -> None:
    """Run the base zygote: fork a worker or app zygote for each request until the socket's other end is closed."""
    name_process("poolctl-zygote")
    requests = socket.socket(fileno=REQUESTS_FD)
    # Done here, not in every worker: Python's default handlers are meant for programs of one process.
    process_setup.reset_signals()
    process_setup.clear_systemd_variables()
    imports.import_libraries_and_set_up()
    imports.hide_poolctl_from_applications()
    # The supervisor may have exited before this zygote is up.
    with requests, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        wire.send(requests, {"event": "up"}, wait=True)
        serve_forks(requests, {"worker": become_worker, "app": become_app_zygote})


def become_app_zygote(fds: list[int]) -> NoReturn:
    """Become an app zygote in this newly forked process. `fds`: specification, request socket, output."""
    process_setup.run_and_exit(lambda: _set_up_and_serve(fds))


def _set_up_and_serve(fds: list[int]) -> int:
    spec_fd, requests, output = fds
    spec = process_setup.read_spec(spec_fd)
    name_process("poolctl-app")
    process_setup.reset_signals()
    process_setup.wait_start_or_exit(requests)
    process_setup.move_descriptors_and_close_others([spec_fd, requests], output)
    process_setup.apply_spec(spec)
    if process_setup.needs_exec(spec):
        process_setup.start_interpreter_again(spec, 2, "worker", "app")
    return _import_and_serve_forks(spec)


def run_after_exec() -> NoReturn:
    """Run the app zygote in this interpreter, which was started for the server's environment (see `needs_exec`)."""
    spec = process_setup.read_spec_after_exec(2)
    name_process("poolctl-app")
    imports.import_libraries_and_set_up()
    imports.hide_poolctl_from_applications()
    process_setup.run_and_exit(lambda: _import_and_serve_forks(spec))


def _import_and_serve_forks(spec: Spec) -> int:
    """Import the application, report the result, and fork workers on request; returns the exit status."""
    requests = socket.socket(fileno=_APP_REQUESTS_FD)
    os.close(SPEC_FD)
    imports.set_argv_and_path(spec)
    before = ProcessSnapshot.of_this_process()
    try:
        imports.warm_up(imports.import_app(spec))
    except SystemExit as leaving:
        return _run_exit_functions(imports.exit_status(leaving.code))
    except imports.LoadFailed as error:
        process_setup.print_message(imports.explain(error), end="")
        message = str(error)[: imports.MAX_CHARACTERS]
        _send(requests, {"event": "failed", "message": message, "missing": error.missing})
        return _run_exit_functions(STARTUP_FAILURE)
    if leftovers := before.describe_leftovers_after_wait():
        return _report_preload_unusable(requests, leftovers, before.has_new_native_threads())
    gc.collect()
    gc.freeze()  # forks share these objects, and never scan them for garbage
    # From now on only workers print, into their own pipes; end of file on this pipe shows that all output was read.
    process_setup.flush_output()
    process_setup.fill_standard_descriptors()
    process_setup.discard_output()
    if _send(requests, {"event": "up"}):
        serve_forks(requests, {"worker": lambda fds: become_worker(fds, preloaded=True)})
    # The application's exit functions run only in its workers.
    return 0


def _report_preload_unusable(requests: socket.socket, leftovers: str, has_native_threads: bool) -> int:
    problem = f"its import {leftovers}, which no fork can share: each worker imports it instead"
    if has_native_threads:
        # OpenMP's variable; OpenBLAS, MKL and BLIS follow it too.
        problem += ' (env = { OMP_NUM_THREADS = "1" } prevents threads of numerical libraries)'
    process_setup.print_message(f"preload = true has no effect: {problem}")
    _run_exit_functions(0)
    _send(requests, {"event": "unusable", "problem": problem[: imports.MAX_CHARACTERS]})
    return 0


def _run_exit_functions(status: int) -> int:
    """Flush the output and run the atexit functions, within a time limit; returns `status`."""
    process_setup.flush_output()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_EXIT_FUNCTIONS_SECONDS)
    atexit._run_exitfuncs()
    signal.alarm(0)
    return status


def _send(requests: socket.socket, message: wire.Message) -> bool:
    with contextlib.suppress(OSError):
        wire.send(requests, message, wait=True)
        return True
    return False


def serve_forks(requests: socket.socket, roles: Roles) -> None:
    """Fork a process for each request until the socket's other end is closed; `roles` maps operations to functions."""
    while _wait_for_request(requests):
        try:
            forker = os.fork()
        except OSError as error:
            _refuse_next(requests, error)
            continue
        if forker == 0:
            _forker_main(requests, roles)
        # An application may have its children reaped by the kernel.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(forker, 0)


def _wait_for_request(requests: socket.socket) -> bool:
    """Wait for a request, and leave it in the socket; returns False if the other end is closed."""
    try:
        return bool(requests.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def _refuse_next(requests: socket.socket, error: OSError) -> None:
    received = wire.receive(requests, wait=True)
    if received is not None:
        message, fds = received
        close_all(fds)
        if "id" in message:
            wire.send(requests, {"id": message["id"], "error": f"cannot fork: {error.strerror}"}, wait=True)


def _forker_main(requests: socket.socket, roles: Roles) -> NoReturn:
    """Fork a process for a request, and for each request that follows closely, then exit.

    `roles` maps the operation that a request names to the function to run in its process.
    """
    # The keeper becomes the parent of the forked processes, and can reap and signal them, only when this process exits.
    # Requests that follow closely are still served here, because a forker for each makes starts a fifth slower.
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    deadline = time.monotonic() + _FORKER_SECONDS
    try:
        while (received := wire.receive(requests, wait=True)) is not None:
            message, fds = received
            operation = str(message.get("op"))
            if operation in roles:
                _fork_one(requests, message, fds, roles[operation])
            elif operation == "ping":
                wire.send(requests, {"event": "up"}, wait=True)
            close_all(fds)
            if time.monotonic() >= deadline or not poll.poll(_NEXT_REQUEST_MILLISECONDS):
                break
    finally:
        os._exit(0)


def _fork_one(
    requests: socket.socket, message: wire.Message, fds: list[int], run: Callable[[list[int]], NoReturn]
) -> None:
    group = os.getpgrp()
    try:
        child = os.fork()
        if child == 0:
            os.close(requests.detach())
            _lead_session(group)
            run(fds)
        with contextlib.suppress(PermissionError, ProcessLookupError):
            # In the parent: until the child runs, a signal to the zygote's group would reach the child.
            os.setpgid(child, child)
        wire.send(requests, {"id": message["id"], "pid": child}, wait=True)
    except OSError as error:
        wire.send(requests, {"id": message["id"], "error": f"cannot fork: {error.strerror}"}, wait=True)


def _lead_session(group: int) -> None:
    """Become a session leader. First join the process group `group`: the leader of a group cannot call setsid(2).

    Trying setsid(2) first would cost memory: an exception, even if it is caught, makes shared pages private.
    """
    for _ in range(2):
        try:
            os.setpgid(0, group)
            os.setsid()
            return
        except PermissionError:
            continue


# A thread that was joined, or a child that exited, may still exist for a moment.
_ENDING_SECONDS = 0.2
_PAUSE_SECONDS = 0.005
_MAX_NAMED = 3

# Names of threads that their library does not need after a fork. jemalloc holds its locks during a fork
# (pthread_atfork(3)), so the child is safe (pyarrow, pandas, scikit-learn: none of 300 forks hung).
_IGNORED_THREADS = frozenset({"jemalloc_bg_thd"})


class ProcessSnapshot(NamedTuple):
    """The threads and children of this process by id, and its descriptors with their targets."""

    threads: frozenset[int]
    children: frozenset[int]
    descriptors: dict[int, str]

    @classmethod
    def of_this_process(cls) -> ProcessSnapshot:
        """The current threads, children and descriptors of this process."""
        threads = frozenset(map(int, os.listdir("/proc/self/task")))
        kept = frozenset(thread for thread in threads if native_thread_name(thread) not in _IGNORED_THREADS)
        return cls(kept, frozenset(_children(threads)), _descriptors())

    def describe_leftovers_after_wait(self) -> str:
        """Describe the threads, child processes and descriptors created since this snapshot; "" if there are none.

        Waits a moment for threads and child processes that are about to end. If there are new native threads, forks
        once, because some libraries stop their threads before a fork.
        """
        if self.has_new_native_threads():
            _trigger_fork_handlers()
        deadline = time.monotonic() + _ENDING_SECONDS
        while leftovers := self._describe_new_resources(ProcessSnapshot.of_this_process()):
            if time.monotonic() >= deadline:
                break
            time.sleep(_PAUSE_SECONDS)
        return leftovers

    def has_new_native_threads(self) -> bool:
        """Whether there are threads that were started since this snapshot, and not by Python."""
        python = {thread.native_id for thread in threading.enumerate()}
        return bool(ProcessSnapshot.of_this_process().threads - self.threads - python)

    def _describe_new_resources(self, now: ProcessSnapshot) -> str:
        # Several threads of one library count as one.
        words = list(
            dict.fromkeys(
                f"started {_describe_thread(thread)}" for thread in sorted(now.threads - self.threads)
            )
        )
        words += [f"started the process {child}" for child in sorted(now.children - self.children)]
        new = {fd: target for fd, target in now.descriptors.items() if self.descriptors.get(fd) != target}
        code = _files_with_code() if new else set()
        words += [
            f"opened {_describe_descriptor(fd, target)}"
            for fd, target in sorted(new.items())
            if target not in code
        ]
        more = len(words) - _MAX_NAMED
        return ", ".join(words[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _children(threads: frozenset[int]) -> list[int]:
    children: list[int] = []
    for thread in threads:
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children") as file:
            children += map(int, file.read().split())
    return children


def _descriptors() -> dict[int, str]:
    targets = {}
    for name in os.listdir("/proc/self/fd"):
        # The descriptor of the listing itself is closed by now.
        with contextlib.suppress(OSError):
            targets[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return targets


def _files_with_code() -> set[str]:
    """The files whose code this process has mapped.

    libffi keeps its own file open, to map it again for callbacks of ctypes or cffi. Forks may share that descriptor,
    from which nothing is read.
    """
    with open("/proc/self/maps") as file:
        mappings = [line.rstrip("\n").split(maxsplit=5) for line in file]
    return {mapping[5] for mapping in mappings if mapping[1].startswith("r-x") and len(mapping) == 6}


def _trigger_fork_handlers() -> None:
    """Fork once, so that libraries which stop their native threads before a fork do so now.

    For example OpenBLAS, which numpy loads, starts threads when it is loaded, and stops them before each fork
    (pthread_atfork(3)). A forked process starts new threads when it computes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork with threads
        child = os.fork()
        if child == 0:
            os._exit(0)
    with contextlib.suppress(ChildProcessError):  # an application may have its children reaped by the kernel
        os.waitpid(child, 0)


def _describe_descriptor(fd: int, target: str) -> str:
    if target.startswith("socket:"):
        return _describe_socket(fd)
    if target == "anon_inode:[eventpoll]":
        return "an event loop"
    if target.startswith("pipe:"):
        return "a pipe"
    return target.removeprefix("anon_inode:")


def _describe_socket(fd: int) -> str:
    with contextlib.suppress(OSError):
        sock = socket.socket(fileno=os.dup(fd))
        with sock, contextlib.suppress(OSError):
            peer = sock.getpeername()
            if isinstance(peer, tuple):
                return f"a connection to {peer[0]}:{peer[1]}"
            return f"a connection to {peer!r}" if peer else "a connection"
    return "a socket"


def _describe_thread(thread: int) -> str:
    """A description of a thread, such as `the thread 'ticker'`."""
    for candidate in threading.enumerate():
        if candidate.native_id == thread:
            return f"the thread {candidate.name!r}"
    name = native_thread_name(thread)
    return f"a thread {name!r}" if name and name != native_thread_name(os.getpid()) else "a thread"


def native_thread_name(thread: int) -> str:
    """The kernel's name (`comm`) for the thread of this process with this id; "" if the thread has ended.

    By default a thread has the name of its process.
    """
    with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/comm", errors="replace") as file:
        return file.read().strip()
    return ""
