"""`run` after the reader of its output has gone: `run | tee run.log` and Ctrl-C, `run | head -1` and SIGTERM."""

from __future__ import annotations

import fcntl
import http.client
import os
import signal
import subprocess
import sys
import termios
import threading

import pytest

from tests.deadline import wait_until
from tests.real_pool import RealPool

# Prints without end; a request and the lifespan's shutdown take until a file is there.
APP = """
import asyncio, os

async def there(name):
    open(f"{name}.begun", "w").close()
    while not os.path.exists(name):
        await asyncio.sleep(0.01)

async def chatter():
    while True:
        print("tick" * 50, flush=True)
        await asyncio.sleep(0.01)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        task = asyncio.ensure_future(chatter())
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await there("shutdown")
        await send({"type": "lifespan.shutdown.complete"})
        open("completed", "w").close()
        return
    await there("answer")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"done"})
"""


PIPE_BYTES = 4096


class Running:
    """A `run` in the middle of a request, with a pipe as its output."""

    def __init__(self, pool: RealPool, *, stderr_too: bool = False) -> None:
        port = pool.write_hello("web", extra='drain_timeout = "60s"\nstop_timeout = "60s"')["web"]
        pool.write("hello.py", APP)
        self.directory = pool.directory
        read, write = os.pipe()
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.errors = pool.directory / "errors"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*pool.command(), "run"], cwd=pool.directory, env=pool.env, stdin=subprocess.DEVNULL,
                stdout=write, stderr=write if stderr_too else errors,
            )  # fmt: skip
        os.close(write)
        self._reader = read
        while b"tick" not in os.read(read, 65536):
            continue
        self.answers: list[bytes] = []
        self._client = threading.Thread(target=self._ask, args=(port,))
        self._client.start()
        wait_until((self.directory / "answer.begun").exists)

    def _ask(self, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=100)
        try:
            connection.request("GET", "/")
            self.answers.append(connection.getresponse().read())
        except (OSError, http.client.HTTPException) as cut:
            self.answers.append(repr(cut).encode())
        finally:
            connection.close()

    @property
    def unread(self) -> int:
        """How many bytes wait for the reader."""
        return int.from_bytes(fcntl.ioctl(self._reader, termios.FIONREAD, bytes(4)), sys.byteorder)

    def leave(self) -> None:
        """Read no more."""
        os.close(self._reader)

    def let(self, name: str) -> None:
        """Let the request, or the shutdown of the application, go on."""
        (self.directory / name).touch()

    def end(self) -> int:
        """The exit code."""
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self._client.join(60)


@pytest.mark.heavy_variants
@pytest.mark.parametrize(
    ("number", "leaves_first", "code", "stderr_too"),
    [
        (signal.SIGTERM, True, 0, True),
        (signal.SIGINT, False, 130, False),
        pytest.param(None, True, 141, False, marks=pytest.mark.heavy),
        pytest.param(signal.SIGINT, True, 130, False, marks=pytest.mark.heavy),
        pytest.param(signal.SIGINT, False, 130, True, marks=pytest.mark.heavy),
    ],
)
def test_a_stop_without_a_reader_completes_requests_and_the_shutdown(
    real_pool: RealPool, number: signal.Signals | None, leaves_first: bool, code: int, stderr_too: bool
) -> None:
    running = Running(real_pool, stderr_too=stderr_too)
    if leaves_first:
        running.leave()
        wait_until(lambda: real_pool.items()["web"]["state"] != "running")
    if number is not None:
        running.process.send_signal(number)
        if not leaves_first:
            running.leave()
        wait_until(lambda: real_pool.items()["web"]["state"] != "running")
    running.let("answer")
    wait_until((running.directory / "shutdown.begun").exists)
    running.let("shutdown")
    assert running.end() == code
    assert running.answers == [b"done"]
    assert (running.directory / "completed").exists()
    assert "killing" not in running.errors.read_text()
    assert "Traceback" not in running.errors.read_text()


def test_second_signal_kills_remaining_processes_without_a_reader_too(real_pool: RealPool) -> None:
    running = Running(real_pool)
    running.leave()
    wait_until(lambda: real_pool.items()["web"]["state"] != "running")
    for number in (signal.SIGINT, signal.SIGTERM):
        running.process.send_signal(number)
        assert real_pool.items(), "each is handled before the next one"
    running.end()
    assert running.answers != [b"done"]
    assert "killing the remaining processes" in running.errors.read_text()


@pytest.mark.heavy_variants
@pytest.mark.parametrize("kills", [False, True])
def test_run_ends_although_the_reader_of_its_output_and_errors_takes_nothing(
    real_pool: RealPool, kills: bool
) -> None:
    running = Running(real_pool, stderr_too=True)
    log = next(real_pool.runtime.glob("*/state/logs/web.log"))

    def blocked() -> bool:
        unread, size = running.unread, log.stat().st_size
        wait_until(lambda: log.stat().st_size > size + 1000)
        return running.unread == unread

    wait_until(blocked)
    running.process.send_signal(signal.SIGTERM)
    if kills:
        wait_until(lambda: real_pool.items()["web"]["state"] != "running")
        running.process.send_signal(signal.SIGTERM)
    else:
        running.let("answer")
        running.let("shutdown")
    assert running.end() == 0
    assert (running.answers == [b"done"]) != kills
    running.leave()
