"""Fixtures for every test: free ports, a deadline instead of a sleep, an HTTP client, and one real pool."""

from __future__ import annotations

import errno
import http.client
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# Below the kernel's ephemeral ports, so that no outgoing connection takes one between choice and use, and
# below poolctl's own default port_range.
PORTS = range(11_000, 19_000)
COMMAND_TIMEOUT_SECONDS = 50.0

_claims: list[socket.socket] = []


def _is_free(port: int) -> bool:
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError as error:
            if family == socket.AF_INET or error.errno == errno.EADDRINUSE:  # else: no IPv6 here
                return False
    return True


def claim_port() -> int:
    """A TCP port that is free now and that no other test process on this machine is given meanwhile.

    The claim is an abstract Unix socket of that number: exclusive between processes and users of one network
    namespace, as ports are, and gone with the process that holds it.
    """
    for _ in range(1000):
        port = random.choice(PORTS)
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0poolctl-test-port-{port}")
        except OSError:
            claim.close()
            continue
        if _is_free(port):
            _claims.append(claim)
            return port
        claim.close()
    raise AssertionError("no free port found")


def wait_until(condition: Callable[[], Any], *, timeout_seconds: float = 10.0, what: str = "") -> Any:
    """The first true value of `condition()`; fails the test when there is none within the deadline."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_seconds} s: {what or condition}")
        time.sleep(0.01)


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


def get(
    where: int | str, path: str = "/", *, headers: dict[str, str] | None = None, timeout_seconds: float = 5.0
) -> Reply:
    """One GET on a connection of its own.

    `where` is a port of 127.0.0.1, "HOST:PORT", "https://HOST:PORT" (any certificate) or "unix:/path". Raises
    OSError as sockets do, so that a refused connection can be told from a slow one.
    """
    text = f"127.0.0.1:{where}" if isinstance(where, int) else where
    connection: http.client.HTTPConnection
    if text.startswith("unix:"):
        connection = http.client.HTTPConnection("localhost", timeout=timeout_seconds)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(timeout_seconds)
        try:
            connection.sock.connect(text.removeprefix("unix:"))
        except OSError:
            connection.sock.close()
            raise
    elif text.startswith("https://"):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            text.removeprefix("https://").rstrip("/"), timeout=timeout_seconds, context=context
        )
    else:
        connection = http.client.HTTPConnection(
            text.removeprefix("http://").rstrip("/"), timeout=timeout_seconds
        )
    try:
        connection.request("GET", path, headers={"Connection": "close", **(headers or {})})
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


class Done(NamedTuple):
    """What one command did."""

    args: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """stdout as the one JSON document that it must be."""
        try:
            return json.loads(self.stdout)
        except ValueError as error:
            raise AssertionError(f"stdout is not one JSON document ({error}): {self}") from None

    def __str__(self) -> str:
        command = f"poolctl {' '.join(self.args)}"
        return f"{command} → {self.code}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"

    __repr__ = __str__


HELLO_APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"hello from " + str(scope["server"][1]).encode()})
"""


def command_line() -> list[str]:
    """How the installed command is called: the console script of this interpreter, or the module."""
    script = Path(sys.executable).with_name("poolctl")
    return [str(script)] if script.exists() else [sys.executable, "-m", "poolctl"]


class RealPool:
    """A directory with a pool's files, and the installed command run in it as a user would."""

    def __init__(self, directory: Path, runtime: Path) -> None:
        self.directory = directory
        self.runtime = runtime
        self.env = {
            k: v for k, v in os.environ.items() if not k.startswith(("POOLCTL_", "PYTEST_", "LISTEN_"))
        }
        for name in ("VIRTUAL_ENV", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHONPATH", "NOTIFY_SOCKET"):
            self.env.pop(name, None)
        self.env |= {
            "POOLCTL_RUNTIME_DIR": str(runtime),
            "HOME": str(runtime),
            "LC_ALL": "C.UTF-8",
            "TERM": "dumb",
        }
        self._children: list[subprocess.Popen[str]] = []

    def write(self, name: str, text: str) -> Path:
        """The path of the file, written with common indentation removed and parent directories made."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))
        return path

    def write_hello(self, *names: str, extra: str = "") -> dict[str, int]:
        """Ports by name of a pool.toml with one small app each; `extra` goes into every server's table."""
        self.write("hello.py", HELLO_APP)
        ports = {name: claim_port() for name in names or ("web",)}
        self.write(
            "pool.toml",
            "\n".join(
                f'[[server]]\nname = "{name}"\nbind = "127.0.0.1:{port}"\napp = "hello:app"\n{extra}\n'
                for name, port in ports.items()
            ),
        )
        return ports

    def run(
        self, *args: str, stdin: str = "", timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
        env: dict[str, str] | None = None, cwd: Path | None = None,
    ) -> Done:  # fmt: skip
        """What `poolctl ARGS` did, as one finished process. Fails the test when it hangs."""
        process = self.spawn(*args, env=env, cwd=cwd)
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"poolctl {' '.join(args)} hung for {timeout_seconds} s") from None
        finally:
            self._children.remove(process)
        return Done(args, process.returncode, stdout, stderr)

    def ok(self, *args: str, **options: Any) -> Done:
        """Like `run`, for a command that must end with 0."""
        done = self.run(*args, **options)
        assert done.code == 0, str(done)
        return done

    def spawn(
        self, *args: str, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        """The running command with all three streams as pipes; ended with the fixture at the latest."""
        process = subprocess.Popen(
            [*command_line(), *args], cwd=cwd or self.directory, env=self.env | (env or {}), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._children.append(process)
        return process

    def items(self, *args: str) -> dict[str, dict[str, Any]]:
        """The items of `list -o json`, by name."""
        return {item["name"]: item for item in self.ok("list", "-o", "json", *args).json["items"]}

    def processes(self) -> dict[int, str]:
        """Command lines by pid of every live process that belongs to this pool.

        Known by its runtime directory, which is in the environment (or the arguments) of all of them.
        """
        mark = os.fsencode(self.runtime)
        found = {}
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                cmdline = Path(entry.path, "cmdline").read_bytes()
                if mark in cmdline or mark in Path(entry.path, "environ").read_bytes():
                    found[int(entry.name)] = cmdline.replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
        return found

    def end(self) -> dict[int, str]:
        """Stops the pool; returns what was still alive afterwards and had to be killed."""
        for child in self._children:
            child.kill()
            child.communicate()
        self._children.clear()
        if not self.processes():
            return {}
        self.run("stop", timeout_seconds=30)
        deadline = time.monotonic() + 5
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.01)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        return left


@pytest.fixture
def free_port() -> Callable[[], int]:
    return claim_port


@pytest.fixture
def http_get() -> Callable[..., Reply]:
    return get


@pytest.fixture
def until() -> Callable[..., Any]:
    """`until(condition, timeout_seconds=10)`: waits for a condition with a deadline."""
    return wait_until


@pytest.fixture
def real_pool(tmp_path: Path) -> Iterator[RealPool]:
    """A pool directory of its own; at the end the pool is stopped and nothing of it may be left."""
    runtime = Path(tempfile.mkdtemp(prefix="pc-", dir="/tmp"))  # short: Unix socket paths hold 108 bytes
    pool = RealPool(tmp_path, runtime)
    try:
        yield pool
        left = pool.end()
    finally:
        pool.end()
        shutil.rmtree(runtime, ignore_errors=True)
    assert not left, f"processes of the pool were left: {left}"
