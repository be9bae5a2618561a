"""Zygotes: processes that have imported what workers need, and fork them on request.

The base zygote has imported uvicorn. An app zygote has also switched to a server's user and environment, and imported
its application. An import may do what does not survive a fork: start threads or processes, open connections. Then the
app zygote reports that and exits, and each worker imports the application itself.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import socket
import sys
from typing import NoReturn

from ..keeper import wire
from ..platform import name_process
from .fork_safety import ProcessSnapshot, ThreadOrigins
from .forks import serve_forks
from .kept_fds import close_others, occupy_others
from .load_app import MOST_CHARACTERS, LoadFailed, explain, import_app, module_of
from .prefork_run import prefork_run, prefork_run_again
from .preload import collecting_rarely, freeze, preload, prepare_for_forks, warm_up
from .process_setup import (
    SPEC_FD,
    Spec,
    apply_spec,
    become_worker,
    clear_pool_variables,
    exit_status,
    needs_exec,
    place,
    read_spec,
    read_spec_after_exec,
    reset_signals,
    run_and_exit,
    set_app_environment,
    start_interpreter_again,
    wait_for_go,
)
from .serving.pool_server import STARTUP_FAILURE
from .worker_process import run_worker

REQUESTS_FD = 3
_APP_REQUESTS_FD = SPEC_FD + 1
_EXIT_FUNCTIONS_SECONDS = 1


def serve_requests() -> None:
    """Fork a worker for each request until the requests' socket ends."""
    name_process("poolctl-zygote")
    requests = socket.socket(fileno=REQUESTS_FD)
    # Here instead of in every worker: Python's signal handlers are meant for programs of one process.
    reset_signals()
    clear_pool_variables()
    # Imports create no garbage, and collecting would take a tenth of the time.
    gc.disable()
    preload()
    # Frozen, the imports are not scanned when the prefork run's garbage is collected: that took 8 ms.
    gc.freeze()
    gc.enable()
    prefork_run()
    prepare_for_forks()
    # The supervisor may have exited before this zygote is up.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        wire.send(requests, {"event": "up"}, wait=True)
        serve_forks(
            requests, {"worker": lambda fds: become_worker(fds, run_worker), "app": become_app_zygote}
        )


def become_app_zygote(fds: list[int]) -> NoReturn:
    """Turn this fresh fork into the app zygote that `fds` describe: its specification, requests' socket, output."""
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
        start_interpreter_again(spec, 2, "app")
    return _run(spec)


def resume() -> NoReturn:
    """Run the app zygote after the exec that its environment required."""
    spec = read_spec_after_exec(2)
    name_process("poolctl-app")
    preload()
    prefork_run()
    prepare_for_forks()
    run_and_exit(lambda: _run(spec))


def _run(spec: Spec) -> int:
    requests = socket.socket(fileno=_APP_REQUESTS_FD)
    os.close(SPEC_FD)
    close_others()
    occupy_others()
    set_app_environment(spec)
    before, origins = ProcessSnapshot.of_this_process(), ThreadOrigins(module_of(spec))
    with collecting_rarely():
        try:
            with origins:
                warm_up(import_app(spec))
        except SystemExit as leaving:
            return _leave(exit_status(leaving.code))
        except LoadFailed as error:
            print(explain(error), file=sys.stderr, end="")
            _send(requests, {"event": "failed", "message": str(error)[:MOST_CHARACTERS]})
            return _leave(STARTUP_FAILURE)
        found = before.left_since(origins)
        if not found:
            gc.freeze()  # so that only the garbage of the prefork run is collected
            prefork_run_again()
            found = before.left_since(origins)
        if found:
            return _report_unusable(requests, found, before.fix())
        freeze()
    _close_output()
    if _send(requests, {"event": "up"}):
        serve_forks(requests, {"worker": lambda fds: become_worker(fds, run_worker, preloaded=True)})
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
    """End like a program that has imported the application and does nothing else."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_EXIT_FUNCTIONS_SECONDS)
    atexit._run_exitfuncs()
    signal.alarm(0)
    return status


def _close_output() -> None:
    # From now on only workers print, to pipes of their own; the end of this one shows that all was read.
    sys.stdout.flush()
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)


def _send(requests: socket.socket, message: wire.Message) -> bool:
    with contextlib.suppress(OSError):
        wire.send(requests, message, wait=True)
        return True
    return False
