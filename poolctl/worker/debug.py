"""Serves a server in the terminal for debugging, on the main thread of the process, without a fork.

So `breakpoint()` works and reads from the terminal, Ctrl-C is an interrupt, and a profiler or a debugger that starts
with the interpreter sees only the application. This worker has no supervisor: it is not restarted, and hands no
connections over.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from typing import NoReturn

import uvicorn

from .foreground import close, receive
from .load_app import LoadFailed, exit_status, explain, load_app, set_app_environment
from .process_setup import Spec
from .serving.pool_server import PoolServer, StartupFailed, load_config
from .serving.uvicorn_parts import drainable

_FAILED = 1
_INTERRUPTED = 130


def run() -> NoReturn:
    """Serve as specified until Ctrl-C or SIGTERM."""
    spec, listeners, tls_fds, _ = receive("worker", "debug")
    try:
        status = _live(spec, listeners, tls_fds)
    finally:
        close(listeners)
    sys.exit(status)


def _stop_here() -> None:
    # pdb's own handler would turn Ctrl-C into a prompt inside the event loop instead of the end.
    import pdb

    pdb.Pdb(nosigint=True).set_trace(sys._getframe().f_back)


def _live(spec: Spec, listeners: list[socket.socket], tls_fds: list[int]) -> int:
    try:
        set_app_environment(spec)
        if "PYTHONBREAKPOINT" not in os.environ:
            sys.breakpointhook = _stop_here
        settings = {**spec["uvicorn"], "limit_max_requests": None}
        config = uvicorn.Config(load_app(spec), **drainable(settings))
        requests = spec["requests"] and {"log": None, "answer": spec["requests"]["answer"]}
        load_config(config, requests, spec["tls"], tls_fds)
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve(spec, config, listeners))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except SystemExit as leaving:
        return exit_status(leaving.code)
    except LoadFailed as error:
        print(explain(error), file=sys.stderr, end="")
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
