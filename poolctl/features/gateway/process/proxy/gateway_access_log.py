"""The access log of proxied requests: lines in the workers' format, in the gateway's own file.

The event loop never waits for the disk: a thread writes the collected lines. During a slow write a bounded number of
bytes is buffered; further lines are dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor

from poolctl.http.messages import RequestHead, phrase_of
from poolctl.logs.log_file import LogFile
from poolctl.logs.log_line import stamp

CLIENT_LEFT = 499  # nginx's status for a client that closed the connection
# The same values as the defaults of a server's log.
_MAX_SIZE_BYTES, _KEEP = 10 * 1024 * 1024, 5
_GATHER_SECONDS = 0.1
MOST_WAITING_BYTES = 1024 * 1024
# IDs from clients are logged, and sent on.
_is_printable_id = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}").fullmatch
_id_lines = re.compile(rb"\r\n(?i:x-request-id):[^\r\n]*+")
_ID_BYTES = 16


class GatewayAccessLog:
    """Writes a line for each request to the file at `path`, which is rotated. Must be created on the running loop."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = LogFile(path, max_size_bytes=_MAX_SIZE_BYTES, keep=_KEEP)
        self._loop = asyncio.get_running_loop()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="access-log")
        with contextlib.suppress(RuntimeError):
            self._writer.submit(int)  # creates its thread, which the machine may refuse later
        self._lines: list[bytes] = []
        self.waiting_bytes = 0  # bytes of these lines, and of the lines that are being written
        self._left_out = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writing = False

    def add_or_drop(self, line: str) -> None:
        """Write this line, prefixed with the time. Never blocks."""
        data = f"{stamp(time.time())} {line}\n".encode()
        if self.waiting_bytes + len(data) > MOST_WAITING_BYTES:
            self._left_out += 1
            return
        self._lines.append(data)
        self.waiting_bytes += len(data)
        if self._timer is None and not self._writing:
            self._timer = self._loop.call_later(_GATHER_SECONDS, self._start_write)

    def reopen(self) -> asyncio.Future[None]:
        """Close the file, so that later lines reopen its path; the returned future is done when it is closed."""
        return self._loop.run_in_executor(self._writer, self._file.close_for_reopen)

    def close(self) -> None:
        """Write the buffered lines in the background; the process does not exit before they are written."""
        if self._timer is not None:
            self._timer.cancel()
        self._writer.submit(self._append_counting_lost, self._take())
        self._writer.shutdown(wait=False)

    def _start_write(self) -> None:
        self._timer = None
        done = self._loop.run_in_executor(self._writer, self._append_counting_lost, self._take())
        self._writing = True
        done.add_done_callback(self._finish_write)

    def _take(self) -> bytes:
        if self._left_out:
            lines = "1 line was" if self._left_out == 1 else f"{self._left_out:,} lines were"
            text = f"WARNING:  {lines} left out: the file could not be written, or not fast enough"
            self._lines.append(f"{stamp(time.time())} {text}\n".encode())
            self._left_out = 0
        block = b"".join(self._lines)
        self._lines.clear()
        return block

    def _append_counting_lost(self, block: bytes) -> int:
        """Write these lines to the file, in a thread. Return the number of lines lost because the disk is full."""
        return block.count(b"\n", self._file.append_and_count_written(block))

    def _finish_write(self, done: asyncio.Future[int]) -> None:
        self._writing = False
        self.waiting_bytes = sum(map(len, self._lines))
        if not done.cancelled() and done.exception() is None:
            self._left_out += done.result()
        if self._lines:
            self._timer = self._loop.call_later(_GATHER_SECONDS, self._start_write)


class AccessLogEntry:
    """The log line of a request that begins now. `request_id` is its X-Request-ID, or a new ID.

    `client` is the client's address.
    """

    def __init__(self, log: GatewayAccessLog, request: RequestHead, client: str) -> None:
        self._log, self._request, self._client = log, request, client
        given = request.values(b"x-request-id")
        self._given = len(given) == 1 and _is_printable_id(given[0]) is not None
        self.request_id = given[0].decode() if self._given else os.urandom(_ID_BYTES).hex()

    def head_with_id(self, head: bytes) -> bytes:
        """The head for the backend, with the ID in X-Request-ID."""
        if self._given:
            return head
        return b"%bX-Request-ID: %b\r\n\r\n" % (_id_lines.sub(b"", head[:-2]), self.request_id.encode())

    def write(self, status: int, seconds: float) -> None:
        """Write the line at the end of the request, with this status and the request's duration."""
        request = self._request
        version = "1.1" if request.http_1_1 else "1.0"
        line = f'"{request.method.decode()} {request.target.decode("latin-1")} HTTP/{version}"'
        phrase = phrase_of(status)
        outcome = f"{status} {phrase}" if phrase else f"{status}"
        self._log.add_or_drop(
            f"INFO:     {self._client or '-'} - {line} {outcome} {1000 * seconds:.1f}ms {self.request_id}"
        )
