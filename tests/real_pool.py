"""A real pool in a directory of its own, used through the installed command."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from poolctl.control.client import Client
from poolctl.errors import ControlError
from poolctl.exit_codes import INVALID_CONFIGURATION, NO_SUPERVISOR
from tests.deadline import wait_until
from tests.other_user import python_for_others
from tests.ports import claim_port
from tests.processes import command_line, is_alive
from tests.programs import skip_if_haproxy_is_missed
from tests.warm_command import warm_command

TREE = Path(__file__).resolve().parent.parent
COMMAND_TIMEOUT_SECONDS = 100.0

# These only ask a supervisor, and tests ask often. They run without coverage, whose own start takes five times as long
# as they do; tests/unit/cli measures the same code within its own process.
ASKING = frozenset(
    {
        "disable", "drain", "enable", "events", "list", "metrics", "reload", "remove", "restart", "scale", "show",
        "status", "stop", "undrain", "wait",
    }
)  # fmt: skip


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

# Answers with the variable WHO of its environment.
WHO_APP = """
import os

async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": os.environ["WHO"].encode()})
"""


class RealPool:
    """A directory with a pool's files, and the installed command run in it as a user would."""

    def __init__(self, directory: Path, runtime: Path) -> None:
        self.directory = directory
        self.runtime = runtime
        self.python = sys.executable  # the interpreter that runs poolctl
        self.warm = (
            True  # whether commands are forked from one that has imported them (tests/warm_command.py)
        )
        self.ports: dict[str, int] = {}  # ports by server, from the last call of write_hello
        self.env = {
            k: v for k, v in os.environ.items() if not k.startswith(("POOLCTL_", "PYTEST_", "LISTEN_"))
        }
        for name in (
            "VIRTUAL_ENV",
            "NO_COLOR",
            "FORCE_COLOR",
            "COLUMNS",
            "NOTIFY_SOCKET",
            "PYTHONUNBUFFERED",
        ):
            self.env.pop(name, None)
        if self.env.get("PYTHONPATH") != str(TREE):  # tests of a copied tree set it (tests/conftest.py)
            self.env.pop("PYTHONPATH", None)
        self.env |= {
            "POOLCTL_RUNTIME_DIR": str(runtime),
            "HOME": str(runtime),
            "LC_ALL": "C.UTF-8",
            "TERM": "dumb",
        }
        self._children: list[subprocess.Popen[str]] = []
        self._processes: dict[int, str] = {}  # those of the last look

    def open_to_all(self) -> None:
        """Uses a directory and an interpreter that every user can reach; skips the test where there is none.

        To be called before anything is written. pytest's own directory is closed to others, and closed again by
        each pytest that begins meanwhile.
        """
        self.python = python_for_others()
        if self.python != sys.executable:
            self.env.pop("COVERAGE_PROCESS_CONFIG", None)  # written for another version of Python
        self.directory = Path(tempfile.mkdtemp(prefix="pc-"))
        self.directory.chmod(0o755)

    def write(self, name: str, text: str) -> Path:
        """The path of the file, written with common indentation removed and parent directories made."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))
        return path

    def replace(self, old: str, new: str, count: int = -1, *, file: str = "pool.toml") -> None:
        """Put a text in the place of another one, which the file must have; everywhere, or `count` times."""
        text = (self.directory / file).read_text()
        assert old in text, text
        (self.directory / file).write_text(text.replace(old, new, count))

    def append(self, text: str, *, file: str = "pool.toml") -> None:
        with (self.directory / file).open("a") as opened:
            opened.write(text)

    def write_hello(self, *names: str, extra: str = "") -> dict[str, int]:
        """Ports by name of a pool.toml with one small app each; `extra` goes into every server's table."""
        self.write("hello.py", HELLO_APP)
        self.ports = ports = {name: claim_port() for name in names or ("web",)}
        self.write(
            "pool.toml",
            "\n".join(
                f'[[server]]\nname = "{name}"\nbind = "127.0.0.1:{port}"\napp = "hello:app"\n{extra}\n'
                for name, port in ports.items()
            ),
        )
        return ports

    def command(self) -> list[str]:
        """How the installed command is called: the console script of the interpreter, or the module."""
        script = Path(self.python).with_name("poolctl")
        return [str(script)] if script.exists() else [self.python, "-m", "poolctl"]

    def run(
        self, *args: str, stdin: str = "", timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
        env: dict[str, str] | None = None, cwd: Path | None = None,
    ) -> Done:  # fmt: skip
        """What `poolctl ARGS` did, as one finished process. Fails the test when it hangs."""
        measured = "COVERAGE_PROCESS_CONFIG" in self.env
        if self.warm and env is None and self.python == sys.executable and not measured:
            try:
                said = warm_command().run(args, stdin, cwd or self.directory, self.env, timeout_seconds)
            except TimeoutError:
                raise AssertionError(f"poolctl {' '.join(args)} hung for {timeout_seconds} s") from None
            if said is not None:
                return self.explained(Done(args, *said))
        process = self.spawn(*args, env=env, cwd=cwd)
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"poolctl {' '.join(args)} hung for {timeout_seconds} s") from None
        finally:
            self._children.remove(process)
        return self.explained(Done(args, process.returncode, stdout, stderr))

    def explained(self, done: Done) -> Done:
        """What a command did; if the supervisor did not answer it, with what its threads do and what its log says.

        Skips the test if the command needs HAProxy, and there is none.
        """
        if done.code == INVALID_CONFIGURATION:
            skip_if_haproxy_is_missed(done.stdout + done.stderr)
        if not ("has not answered" in done.stderr or "the supervisor ended" in done.stderr):
            return done
        lines = []
        for path in self.runtime.glob("*/info.json"):
            for thread in Path(f"/proc/{json.loads(path.read_text())['supervisor_pid']}/task").glob("*"):
                for name in ("wchan", "syscall", "stat"):
                    with contextlib.suppress(OSError):
                        lines.append(f"{thread / name}: {(thread / name).read_text()}")
            with contextlib.suppress(OSError):
                lines.append((path.parent / "supervisor.log").read_text())
        return done._replace(stderr="\n".join([done.stderr, *lines]))

    def ok(self, *args: str, **options: Any) -> Done:
        """Like `run`, for a command that must end with 0."""
        done = self.run(*args, **options)
        assert done.code == 0, str(done)
        return done

    def start_or_reload(self) -> None:
        """Starts the servers of the files, in place of those that a test before has left running in this pool."""
        done = self.run("reload")
        if done.code == NO_SUPERVISOR:
            done = self.run("start")
        assert done.code == 0, str(done)

    def spawn(
        self, *args: str, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        """The running command with all three streams as pipes; ended with the fixture at the latest."""
        variables = self.env | (env or {})
        if ASKING.intersection(args):
            variables.pop("COVERAGE_PROCESS_CONFIG", None)
        process = subprocess.Popen(
            [*self.command(), *args], cwd=cwd or self.directory, env=variables, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._children.append(process)
        return process

    def items(self, *args: str) -> dict[str, dict[str, Any]]:
        """The items of `list -o json`, by name; without a process for it while the supervisor answers."""
        found = None if args else self.listed()
        if found is None:
            found = self.ok("list", "-o", "json", *args).json["items"]
        return {item["name"]: item for item in found}

    def is_ready(self) -> bool:
        """Whether a supervisor runs each server of this directory, and all are ready. No process is needed for it."""
        items = self.listed()
        return bool(items) and all(item["ready"] for item in items or ())

    def listed(self) -> list[dict[str, Any]] | None:
        """What the only supervisor of this directory answers to `list`."""
        sockets = [
            path for path in self.runtime.glob("*/control.sock") if not path.parent.name.startswith("@")
        ]
        if len(sockets) != 1:
            return None
        try:
            items: list[dict[str, Any]] | None = Client(str(sockets[0])).call("list").get("items")
        except ControlError:
            return None
        return items

    def info(self) -> dict[str, Any]:
        """What the supervisor wrote down about itself: its pid, the keeper's, the files."""
        (path,) = [path for path in self.runtime.glob("*/info.json") if not path.parent.name.startswith("@")]
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def replace_supervisor(self) -> int:
        """Kill the supervisor; returns the pid of the next one, which has adopted everything by then."""
        killed = self.info()["supervisor_pid"]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: self.info()["supervisor_pid"] != killed, what="another supervisor")
        return int(self.info()["supervisor_pid"])

    def processes(self) -> dict[int, str]:
        """Command lines by pid of every live process that belongs to this pool.

        Known by its runtime directory, which is in the environment (or the arguments) of all of them. One that is
        ending shows neither, but still has its sockets and locks: it counts if it was here before.
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
        for pid in self._processes.keys() - found.keys():
            if is_alive(pid) and not command_line(pid):
                found[pid] = self._processes[pid]
        self._processes = found
        return {**found}

    def end(self) -> dict[int, str]:
        """Stops the pool; returns what was still alive afterwards and had to be killed."""
        for child in self._children:
            child.kill()
            child.communicate()
        self._children.clear()
        if not self.processes():
            return {}
        self.warm = True  # from now on commands may be forked
        for info in self.runtime.glob("*/info.json"):
            files = [option for file in json.loads(info.read_text())["files"] for option in ("-c", file)]
            self.run(*files, "stop")
        deadline = time.monotonic() + 30
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.01)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        return left


@contextlib.contextmanager
def pool_in(directory: Path) -> Iterator[RealPool]:
    """A pool in this directory; at the end the pool is stopped and nothing of it may be left."""
    runtime = Path(tempfile.mkdtemp(prefix="pc-"))  # short: Unix socket paths hold 108 bytes
    pool = RealPool(directory, runtime)
    try:
        yield pool
        left = pool.end()
    finally:
        pool.end()
        shutil.rmtree(runtime, ignore_errors=True)
        if pool.directory != directory:
            shutil.rmtree(pool.directory, ignore_errors=True)
    assert not left, f"processes of the pool were left: {left}"
