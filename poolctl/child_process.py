"""A child process that answers requests over a socket, its standard input; started on demand, ended when idle.

It is killed when its object is freed, and when this process exits. Callers apply their own timeouts. Standard library
only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle
    from collections.abc import Awaitable, Callable, Sequence
    from typing import TypeVar

    T = TypeVar("T")

_CHUNK_BYTES = 1 << 20
_EXIT_SECONDS = 5.0


class ChildEnded(Exception):
    """The process has ended, or has closed its end of the socket.

    `ChildOnDemand.ask` sets `status` to the process's exit status, or to the negative number of the signal that killed
    it; None means that the process has not ended.
    """

    def __init__(self, process: HelperProcess) -> None:
        super().__init__(f"process {process.pid} has ended")
        self.process = process
        self.status: int | None = None


class HelperProcess:
    """A child process, started by the constructor, that answers requests of the running event loop over a socket.

    `end` kills the child, except when called in a fork of this process. The child's output begins at the position
    `output_start` of the file `output`.
    """

    def __init__(self, argv: Sequence[str], output: str = "") -> None:
        """Execute a program. Raises OSError.

        Its output is appended to the file `output`. Without a file, its standard output is discarded, and its standard
        error is this process's.
        """
        self.output = output
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(open(output, "ab", opener=_open_private)) if output else None
            self.output_start = log.tell() if log else 0
            self._link, theirs = socket.socketpair()
            stack.callback(theirs.close)
            try:
                self._process = subprocess.Popen(
                    argv,
                    stdin=theirs.fileno(),
                    stdout=log or subprocess.DEVNULL,
                    stderr=log,
                    process_group=0,  # Ctrl-C of a terminal must not reach it
                )
            except BaseException:
                self._link.close()
                raise
        self._link.setblocking(False)
        self._received = bytearray()
        self.pid = self._process.pid
        from .daemon_threads import run_in_daemon_thread  # not at the top: first the process is started

        # Kills the process even if `end` was not called, because the caller's loop may be gone.
        self.end = weakref.finalize(
            self, _kill_process_if_owner, self._link, self._process, os.getpid(), run_in_daemon_thread
        )
        self.has_answered = False

    async def send(self, data: bytes) -> None:
        """Send all of the data. Raises ChildEnded."""
        try:
            await _running_loop().sock_sendall(self._link, data)
        except OSError as error:
            raise ChildEnded(self) from error

    async def read_line_truncated(self, most_bytes: int) -> bytes:
        """The next line without its line break; the first `most_bytes` of a longer line. Raises ChildEnded."""
        while (end := self._received.find(b"\n", 0, most_bytes)) < 0 and len(self._received) < most_bytes:
            await self._receive_chunk()
        found = self._consume(end if end >= 0 else most_bytes)
        del self._received[: end >= 0]
        return found

    async def read_exactly(self, size: int) -> bytes:
        """The next `size` bytes. Raises ChildEnded."""
        while len(self._received) < size:
            await self._receive_chunk()
        return self._consume(size)

    @property
    def has_ended(self) -> bool:
        """Whether the process has exited or was killed."""
        return self._process.poll() is not None

    async def wait_briefly_for_exit(self) -> int | None:
        """Wait up to five seconds for the exit; returns the exit status, or None if the process still runs."""
        import asyncio

        try:
            return await asyncio.to_thread(self._process.wait, _EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    async def _receive_chunk(self) -> None:
        try:
            data = await _running_loop().sock_recv(self._link, _CHUNK_BYTES)
        except OSError as error:
            raise ChildEnded(self) from error
        if not data:
            raise ChildEnded(self)
        self._received += data

    def _consume(self, size: int) -> bytes:
        found = bytes(self._received[:size])
        del self._received[:size]
        return found


class ChildOnDemand:
    """A child process that handles one request at a time: created by `start` when needed, ended when idle.

    `process` is the running child, or None. The constructor accepts a child that already runs.
    """

    def __init__(
        self, start: Callable[[], HelperProcess], idle_seconds: float, process: HelperProcess | None = None
    ) -> None:
        import asyncio

        self.process = process
        self._start = start
        self._idle_seconds = idle_seconds
        self._turn = asyncio.Lock()
        self._idle: TimerHandle | None = None

    async def ask(self, exchange: Callable[[HelperProcess], Awaitable[T]]) -> T:
        """Call `exchange` with the child, started if necessary, once earlier requests are done; returns its result.

        If `exchange` raises or is cancelled, the child is ended. Raises ChildEnded with the exit status, and the
        exceptions of `start`.
        """
        async with self._turn:
            if self._idle is not None:
                self._idle.cancel()
            if self.process is not None and self.process.has_answered and self.process.has_ended:
                self.close()  # killed while it was idle
            process = self.process = self.process or self._start()
            try:
                found = await exchange(process)
            except BaseException as error:
                # Its next answer would be taken for the answer to a later request.
                if isinstance(error, ChildEnded):
                    error.status = await process.wait_briefly_for_exit()
                self.close()
                raise
            process.has_answered = True
            self._idle = _running_loop().call_later(self._idle_seconds, self.close)
            return found

    def close(self) -> None:
        """End the process, if it runs."""
        if self._idle is not None:
            self._idle.cancel()
        process, self.process = self.process, None
        if process is not None:
            process.end()


def _running_loop() -> AbstractEventLoop:
    import asyncio  # not at the top: a supervisor starts its first child before it loads asyncio

    return asyncio.get_running_loop()


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _kill_process_if_owner(
    link: socket.socket,
    process: subprocess.Popen[bytes],
    owner_pid: int,
    run_in_thread: Callable[[Callable[[], object]], None],
) -> None:
    if os.getpid() != owner_pid:
        process.returncode = 0  # so that Popen gives no ResourceWarning: the process belongs to the parent
        return
    link.close()
    process.kill()
    with contextlib.suppress(RuntimeError):  # this process is exiting, or the machine refuses a thread
        # Waited for in a thread, because the process may be blocked in the kernel by an unresponsive file system.
        run_in_thread(process.wait)
