"""Runs one server in this process, without supervisor, for `poolctl run --debug`; partly used by `poolctl serve`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterable
from typing import NamedTuple, NoReturn

import uvicorn

from . import imports, process_setup
from .imports import LoadFailed
from .process_setup import Spec
from .serving.pool_server import PoolServer, StartupFailed, load_config
from .serving.uvicorn_parts import settings_for

_APPLIED = "applied"
_FAILED = 1
_INTERRUPTED = 130


class InheritedSpec(NamedTuple):
    """A server's specification and inherited descriptors: listeners, TLS files and, in `more`, further sockets."""

    spec: Spec
    listeners: list[socket.socket]
    tls_fds: list[int]
    more: list[socket.socket]


def read_and_apply_spec(part: str, *role: str, light: bool = False) -> InheritedSpec:
    """Read a server's specification, and apply its limits, user, environment and directory to this process.

    Returns the specification and the inherited descriptors; the first argument of the process is their number. Imports
    the modules that workers need, except if `light` is true and no user is configured. The modules are imported before
    the process becomes the server's user, who may be unable to read them.

    If the environment requires a new interpreter, this process is replaced by one that runs the poolctl package `part`
    with `role` as first arguments. Exits with the reason if this machine cannot support the specification.
    """
    count, *applied = sys.argv[1:]
    spec = process_setup.read_spec_after_exec(1 + int(count))
    if light and spec["user"] is None:
        imports.configure_logging_and_garbage_collection()
    else:
        imports.import_libraries_and_set_up()
    if not applied:
        try:
            process_setup.apply_spec(spec)
        except process_setup.SetupFailed as failure:
            sys.exit(str(failure))
        if process_setup.needs_exec(spec):
            process_setup.start_interpreter_again(spec, 1 + int(count), part, *role, count, _APPLIED)
    listeners = process_setup.SPEC_FD + 1
    tls = listeners + spec["listeners"]
    more = tls + spec["tls_files"]
    end = listeners + int(count)
    return InheritedSpec(
        spec,
        [socket.socket(fileno=fd) for fd in range(listeners, tls)],
        list(range(tls, more)),
        [socket.socket(fileno=fd) for fd in range(more, end)],
    )


def close_and_unlink(listeners: Iterable[socket.socket]) -> None:
    """Close the listeners, and remove the paths of Unix sockets. May be called more than once."""
    for listener in listeners:
        if listener.fileno() < 0:
            continue
        path = listener.getsockname() if listener.family == socket.AF_UNIX else ""
        listener.close()
        if path:
            with contextlib.suppress(OSError):
                os.unlink(path)


def serve_for_debugging() -> NoReturn:
    """Serve one server for debugging, on the main thread, until Ctrl-C or SIGTERM; then exit.

    `breakpoint()` reads from the terminal, Ctrl-C raises KeyboardInterrupt, and a profiler or debugger that starts with
    the interpreter sees only the application. The server is not restarted, and hands over no connections.
    """
    spec, listeners, tls_fds, _ = read_and_apply_spec("worker", "debug")
    try:
        status = _load_and_run_server(spec, listeners, tls_fds)
    finally:
        close_and_unlink(listeners)
    sys.exit(status)


def _break_into_debugger() -> None:
    # With pdb's own handler Ctrl-C would open a prompt inside the event loop instead of ending the process.
    import pdb

    pdb.Pdb(nosigint=True).set_trace(sys._getframe().f_back)


def _load_and_run_server(spec: Spec, listeners: list[socket.socket], tls_fds: list[int]) -> int:
    try:
        imports.set_argv_and_path(spec)
        if "PYTHONBREAKPOINT" not in os.environ:
            sys.breakpointhook = _break_into_debugger
        settings = {**spec["uvicorn"], "limit_max_requests": None}
        app = imports.load_app(spec)
        config = uvicorn.Config(app, **settings_for(app, settings))
        requests = spec["requests"] and {"log": None, "answer": spec["requests"]["answer"]}
        load_config(config, requests, spec["tls"], tls_fds)
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve(spec, config, listeners))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except SystemExit as leaving:
        return imports.exit_status(leaving.code)
    except LoadFailed as error:
        print(imports.explain(error), file=sys.stderr, end="")
        return _FAILED
    except StartupFailed:
        return _FAILED  # uvicorn has logged the reason
    return 0


async def _serve(spec: Spec, config: uvicorn.Config, listeners: list[socket.socket]) -> None:
    server = PoolServer(
        config,
        state=spec["state"],
        drain_seconds=spec["drain_seconds"],
        stop_seconds=spec["stop_seconds"],
        **spec["limits"],
    )
    # SIGINT is left to asyncio's runner, which cancels this, even while a debugger waits for a line.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    await server.run(listeners, lambda: None)
