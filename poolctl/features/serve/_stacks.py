"""Answers `poolctl stacks` in a thread of its own, even while the application is imported or the loop is blocked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading

from poolctl.platform import peer_credentials
from poolctl.worker.foreground import close_and_unlink
from poolctl.worker.process_setup import Spec
from poolctl.worker.tally import STACK_BYTES, describe_stacks

THREAD = "poolctl stacks"
_TIMEOUT_SECONDS = 5.0  # for a client to read the answer
_RETRY_SECONDS = 1.0
_ROOT_UID = 0


class StacksSocket:
    """Sends each client a line of JSON about this process, and then the stacks of its threads and tasks.

    Only this process's user and root are answered.
    """

    def __init__(self, listener: socket.socket, spec: Spec) -> None:
        """Prepare to answer clients. Call in the main thread: each answer begins with the calling thread's stack."""
        self.loop: asyncio.AbstractEventLoop | None = None  # the application's, once it runs
        self._listener = listener
        self._spec = spec
        self._main_thread = threading.get_ident()
        self._closed = threading.Event()

    def begin(self) -> None:
        """Answer clients such as `poolctl stacks` from now on, in a thread that ends with the process."""
        self._listener.setblocking(True)
        threading.Thread(target=self._serve, name=THREAD, daemon=True).start()

    def close(self) -> None:
        """Stop answering, and remove the socket's path."""
        self._closed.set()
        close_and_unlink([self._listener])

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed; or there are too many open files
                self._closed.wait(_RETRY_SECONDS)
                continue
            with connection, contextlib.suppress(OSError):
                if peer_credentials(connection)[1] in (_ROOT_UID, os.geteuid()):
                    connection.settimeout(_TIMEOUT_SECONDS)
                    connection.sendall(self._answer())

    def _answer(self) -> bytes:
        spec = self._spec
        directories = [spec["app_dir"], spec["cwd"]]
        head = {"name": spec["server"], "pid": os.getpid(), "directories": directories, "thread": THREAD}
        text = "\n".join(describe_stacks(None, self._main_thread, self.loop)).encode(
            errors="backslashreplace"
        )
        return json.dumps(head).encode() + b"\n" + text[:STACK_BYTES]
