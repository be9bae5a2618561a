"""A process in the foreground receives its inputs, and serves for debugging until it is interrupted."""

from __future__ import annotations

import marshal
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.runners.worker_spec import memory_files, tls_contents, worker_spec
from poolctl.worker import foreground
from poolctl.worker.process_setup import SPEC_FD
from tests import serving
from tests.certificates import certificate
from tests.http_get import get

APP = """
import os, sys
print("imported", os.environ.get("A"), os.getcwd(), flush=True)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (kind := (await receive())["type"]) != "lifespan.shutdown":
            await send({"type": f"{kind}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})
"""
# Moves the descriptors to their places, as the process that starts this one does.
START = """
import os, sys
import poolctl.worker.foreground as foreground
fds = {fds}
for place, fd in enumerate([os.dup(fd) for fd in fds], {first}):
    os.dup2(fd, place)
sys.argv = ["bootstrap.py", str(len(fds) - 1)]
{act}
"""
RECEIVE = """
given = foreground.read_and_apply_spec("worker", "debug", light={light})
print(given.spec["server"], [each.getsockname() for each in given.listeners], given.tls_fds, len(given.more))
print("starlette.routing" in sys.modules, os.environ.get("A"), os.getcwd())
"""


class Foreground:
    """A process in the foreground, with its listener."""

    def __init__(
        self,
        directory: Path,
        act: str,
        app: str = "served:app",
        listening: int | str = 0,
        more: tuple[int, ...] = (),
        **keys: Any,
    ) -> None:
        (directory / "served.py").write_text(APP)
        self.listener = serving.listener(listening)
        keys = {"cwd": "/", "env": {"A": "1"}} | keys
        config = ServerConfig(name="web", bind="127.0.0.1:8080", app=app, app_dir=str(directory), **keys)
        contents = tls_contents(config)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        spec = worker_spec(
            config, interpreter=sys.executable, listeners=1, tls_files=len(contents), open_files=limits
        )
        with memory_files([marshal.dumps(spec, 2), *contents]) as (spec_fd, *tls_fds):
            fds = [spec_fd, self.listener.fileno(), *tls_fds, *more]
            program = START.format(fds=fds, first=SPEC_FD, act=act)
            self.process = subprocess.Popen(
                [sys.executable, "-c", program],
                pass_fds=fds,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def until(self, text: str) -> None:
        """Read its output up to a line with this text."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                return
        raise AssertionError(f"it has ended without {text!r}")

    def end(self) -> tuple[int, str]:
        """Its exit status, and the rest of its output."""
        text, _ = self.process.communicate(timeout=60)
        return self.process.returncode, text

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.listener.close()


Run = Callable[..., Foreground]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with ExitStack() as stack:

        def start(*arguments: Any, **keys: Any) -> Foreground:
            made = Foreground(tmp_path, *arguments, **keys)
            stack.callback(made.close)
            return made

        yield start


# The inputs.


@pytest.mark.slow
@pytest.mark.parametrize("light", [False, True])
def test_inputs_are_listeners_files_and_further_sockets_and_the_specification_is_applied(
    run: Run, tmp_path: Path, light: bool
) -> None:
    cert, key = certificate(tmp_path)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = run(
            RECEIVE.format(light=light),
            more=(ours.fileno(), theirs.fileno()),
            tls={"cert": str(cert), "key": str(key)},
        )
    status, text = process.end()
    listener = [("127.0.0.1", process.port)]
    assert text.splitlines() == [
        f"web {listener} [{SPEC_FD + 2}, {SPEC_FD + 3}] 2",
        f"{not light} 1 /",
    ]
    assert status == 0


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_modules_are_imported_before_the_process_becomes_another_user(run: Run) -> None:
    process = run(RECEIVE.format(light=True), user="nobody")
    assert process.end()[1].splitlines()[1] == "True 1 /"


@pytest.mark.slow
def test_interpreter_is_started_again_once_for_variables_that_it_reads_at_its_start(
    run: Run, tmp_path: Path
) -> None:
    process = run("foreground.serve_for_debugging()", env={"A": "2", "PYTHONSAFEPATH": "1"})
    process.until("imported 2 /")
    process.until("Application startup complete")
    assert get(process.port, "/x").text == "/x"
    process.process.send_signal(signal.SIGTERM)
    assert process.end()[0] == 0


def test_closing_listeners_removes_the_paths_of_unix_sockets_and_may_be_repeated() -> None:
    with tempfile.TemporaryDirectory() as directory:
        paths = [f"{directory}/one", f"{directory}/two"]
        listeners = [serving.listener(), *map(serving.listener, paths)]
        os.unlink(paths[0])
        foreground.close_and_unlink(listeners)
        assert [each.fileno() for each in listeners] == [-1] * 3
        assert os.listdir(directory) == []
        Path(paths[1]).touch()  # of another process
        foreground.close_and_unlink(listeners)
        assert os.listdir(directory) == ["two"]


# The debug session.


@pytest.mark.slow
def test_server_with_a_certificate_serves_tls(run: Run, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    process = run("foreground.serve_for_debugging()", tls={"cert": str(cert), "key": str(key)})
    process.until("Application startup complete")
    assert get(f"https://127.0.0.1:{process.port}", "/x").text == "/x"


@pytest.mark.slow
def test_debugged_server_does_not_end_after_its_maximum_of_requests(run: Run) -> None:
    process = run("foreground.serve_for_debugging()", http={"max_requests": 1})
    process.until("Application startup complete")
    for _ in range(3):
        assert get(process.port, "/x").text == "/x"
    process.process.send_signal(signal.SIGTERM)
    assert process.end()[0] == 0
