"""The base zygote: a process that has imported the server and forks workers, each with its listeners."""

from __future__ import annotations

import contextlib
import gc
import socket

from ..keeper import wire
from ..platform import name_process
from .app_zygote import become_app_zygote
from .child import become, forget_what_the_pool_was_told, reset_signals
from .life import live
from .preloading.forks import serve_forks
from .preloading.prefork_run import prefork_run
from .preloading.preload import preload, settle

REQUESTS_FD = 3


def serve_requests() -> None:
    """Fork a worker for each request until the requests' socket ends."""
    name_process("poolctl-zygote")
    requests = socket.socket(fileno=REQUESTS_FD)
    # Here, and not in every worker: what Python does with signals at its start is for programs of one process.
    reset_signals()
    forget_what_the_pool_was_told()
    # Nothing that an import makes is garbage: looking for it is a tenth of the time.
    gc.disable()
    preload()
    # The prefork run's garbage is collected without looking through the imports: that took 8 ms.
    gc.freeze()
    gc.enable()
    prefork_run()
    settle()
    # Whoever asked for a zygote may be gone before it is up: nobody is left to be told.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        wire.send(requests, {"event": "up"}, wait=True)
        serve_forks(requests, {"worker": lambda fds: become(fds, live), "app": become_app_zygote})
