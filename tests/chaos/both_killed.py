"""`python -m tests.chaos.both_killed --times 20`: keeper and supervisor are killed at once, and nothing is left over.

Each time a pool runs with an application, one whose event loop is blocked, one that sleeps, gunicorn, a `proxied`
program with two processes, a program that ignores its stop signal, one without an address, the dashboard and HAProxy;
a client downloads from the application, and one through HAProxy. Now and then gunicorn's master is killed too, the
logger or the zygote is frozen, or the downloads do not end by themselves. Then `start` or `stop`. Invariants:

- The application's address refuses connections at once, and its downloads that end within `drain_timeout` are complete.
- After `start` every server answers; of the earlier processes only those remain that finish a download, and they end.
- After `stop` all addresses refuse connections, and no process is left.
- `status` says that processes are left over. The command names each program and each hung worker among them, and what
  had to be killed, and nothing else.
- A process of a stranger that has the pid or the session of one of the programs lives on (needs root).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from tests import downloads
from tests.deadline import wait_until
from tests.http_get import get, refused
from tests.integration.processes.test_both_killed import kill_both
from tests.ports import claim_port
from tests.processes import is_alive
from tests.real_pool import Done

from .room import SETTLED_SECONDS, Room, options_of
from .stage import Fault

DRAIN_SECONDS = 20.0
COMMAND_SECONDS = 200.0
WSGI = """
def app(environ, start):
    start("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""
FILE = """
[gateway]
bind = "127.0.0.1:{gateway}"
drain_timeout = {drain}
[dashboard]
bind = "127.0.0.1:{page}"
[defaults]
drain_timeout = {drain}
stop_timeout = "2s"
[[server]]
name = "web"
app = "downloads:app"
bind = "127.0.0.1:{web}"
[[server]]
name = "hung"
app = "downloads:app"
bind = "127.0.0.1:{hung}"
[[server]]
name = "sleepy"
app = "downloads:app"
bind = "127.0.0.1:{sleepy}"
scale = {{ min = 0, idle = "500ms" }}
[[server]]
name = "gunicorn"
command = ["{python}", "-m", "gunicorn", "-w", "2", "wsgi:app"]
bind = "127.0.0.1:{gunicorn}"
[[server]]
name = "pair"
command = ["{python}", "-m", "uvicorn", "downloads:app", "--log-level", "critical", "--port", "{{port}}"]
socket = "proxied"
bind = "127.0.0.1:{pair}"
workers = 2
[[server]]
name = "stubborn"
command = ["{python}", "stubborn.py"]
ready_line = "ready"
[[server]]
name = "queue"
command = ["sleep", "600"]
[[route]]
path = "/"
to = "web"
"""
# What does not end by itself; the logger ends with the last process whose output it has.
PROGRAMS = {"hung", "gunicorn", "pair", "stubborn", "queue", "the gateway"}
KILLED = {"hung", "stubborn"}
LEFT = re.compile(r"(\d+) process(?:es)? of a killed pool (?:were|was) left over: ([^;\n]*)")


class BothKilled(Room):
    """The pool, and what is done to it."""

    def __init__(self, seed: int, say: Callable[[str], None]) -> None:
        super().__init__(seed, say)
        names = ("gateway", "page", "web", "hung", "sleepy", "gunicorn", "pair")
        self.ports = {name: claim_port() for name in names}
        for name, text in {"downloads": downloads.APP, "wsgi": WSGI, "stubborn": STUBBORN}.items():
            (self.directory / f"{name}.py").write_text(textwrap.dedent(text))
        text = FILE.format(**self.ports, python=sys.executable, drain=DRAIN_SECONDS)
        (self.directory / "pool.toml").write_text(text)

    def close(self) -> None:
        self._let_downloads_end()
        super().close()

    def run(self, times: int) -> None:
        """Raises Fault, AssertionError."""
        for number in range(times):
            command = ("start", "stop")[number % 2]
            ends = self.chance.random() < 0.75
            stranger = self.chance.choice(("", "pid", "session")) if os.geteuid() == 0 else ""
            frozen = self.chance.choice(("", "logger", "zygote", "web", "forwarder"))
            kills_master = self.chance.random() < 0.5
            story = f"{command}, downloads {'end' if ends else 'do not end'}"
            story += f", {frozen} frozen" * bool(frozen) + ", gunicorn's master killed" * kills_master
            story += f", a stranger with the {stranger} of a program" * bool(stranger)
            began = time.monotonic()
            self.say(f"{number + 1}: {story}")
            self._time(command, ends=ends, frozen=frozen, kills_master=kills_master, stranger=stranger)
            self.say(f"{number + 1}: as it should be, after {time.monotonic() - began:.1f} s")
        self.ok("stop", timeout_seconds=COMMAND_SECONDS)
        self._check_nothing_is_left()

    def _time(self, command: str, *, ends: bool, frozen: str, kills_master: bool, stranger: str) -> None:
        self._start_and_settle()
        running = [downloads.Download(self.ports[name]) for name in ("web", "gateway")]
        with self._blocked() as hung:
            items = self.pool.items()
            if frozen:
                os.kill(self.chance.choice(self.pids_of(frozen)), signal.SIGSTOP)
            earlier = self.pool.processes().keys()
            kill_both(self.pool, wait_until, self.chance.choice(("keeper", "supervisor")))
            killed = time.monotonic()
            if kills_master:
                os.kill(items["gunicorn"]["pids"][0], signal.SIGKILL)
            wait_until(
                lambda: refused(self.ports["web"]), what="the application's address refuses connections"
            )
            with self._stranger(items["queue"]["pids"][0], stranger) as pid:
                status = self.pool.run("status")
                if status.code != 3 or LEFT.search(status.stdout) is None:
                    raise Fault(f"`status` does not say what is left over\n{status}")
                done = self._command_while_downloads_end(command, ends=ends)
                in_time = time.monotonic() < killed + DRAIN_SECONDS
                self._check_words(done, hung, stranger, pid)
                if command == "start":
                    self._check_everything_answers()
                self._let_downloads_end()
                for download in running:
                    download.join(COMMAND_SECONDS)
                    if ends and in_time and not download.is_complete:
                        raise Fault(f"a download has ended with {download.received[-200:]!r}")
                wait_until(
                    lambda: not (earlier & self.pool.processes().keys()), timeout_seconds=DRAIN_SECONDS + 30,
                    what=lambda: f"no earlier process is left: {self._described(earlier)}\n{done}",
                )  # fmt: skip
                if command == "stop":
                    self._check_nothing_is_left()
                if pid and not is_alive(pid):
                    raise Fault(f"a stranger was ended\n{done}")

    def _start_and_settle(self) -> None:
        for name in ("may-end", "blocked"):
            (self.directory / name).unlink(missing_ok=True)
        self.ok("start", timeout_seconds=COMMAND_SECONDS)
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        wait_until(
            lambda: all(item["ready"] or item["state"] == "sleeping" for item in self.pool.items().values()),
            timeout_seconds=SETTLED_SECONDS, what=lambda: f"all servers are ready: {self.pool.items()}",
        )  # fmt: skip

    @contextlib.contextmanager
    def _blocked(self) -> Iterator[int]:
        """Block the event loop of a worker; yields its pid."""
        with socket.create_connection(("127.0.0.1", self.ports["hung"])) as client:
            client.sendall(b"GET /block HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until((self.directory / "blocked").exists)
            yield self.pool.items()["hung"]["pids"][0]

    @contextlib.contextmanager
    def _stranger(self, program: int, has: str) -> Iterator[int]:
        """Replace a program by a stranger's process with its "pid", or in its "session"; yields the pid, or 0."""
        if not has:
            yield 0
            return
        os.kill(program, signal.SIGKILL)
        wait_until(lambda: not os.path.exists(f"/proc/{program}"))
        sleep = f"exec sleep {600 + program}"
        process = _with_pid(program, sleep if has == "pid" else f"({sleep}) & ")
        try:
            if has == "pid":
                yield program
                return
            process.wait(10)
            (member,) = [
                pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_in(pid, program)
            ]
            try:
                yield member
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
                wait_until(lambda: not os.path.exists(f"/proc/{member}"))
        finally:
            process.kill()
            process.wait()

    def _command_while_downloads_end(self, command: str, *, ends: bool) -> Done:
        """`stop` waits for the downloads, `start` does not."""
        timer = threading.Timer(1.0, self._let_downloads_end)
        if ends and command == "stop":
            timer.start()
        try:
            return self.ok(command, timeout_seconds=COMMAND_SECONDS)
        finally:
            timer.cancel()

    def _let_downloads_end(self) -> None:
        (self.directory / "may-end").touch()

    def _check_words(self, done: Done, hung: int, stranger: str, pid: int) -> None:
        said = done.stdout + done.stderr
        if (match := LEFT.search(said)) is None:
            raise Fault(f"what was left over is not said\n{done}")
        names = match[2].split(", ")
        missed = PROGRAMS - ({"queue"} if stranger else set()) - {*names}
        if missed or (stranger and "queue" in names):
            raise Fault(f"{missed or 'queue, which is a stranger,'} is wrong in what was left over\n{done}")
        if int(match[1]) < len(names) + 1:  # `pair` has two processes
            raise Fault(f"{match[1]} is not the number of processes\n{done}")
        killed = {*re.findall(r"(\S+): pid \d+ had to be killed", said)}
        if killed != KILLED or f"hung: pid {hung} had to be killed" not in said:
            raise Fault(f"{killed} had to be killed, not {KILLED}\n{done}")
        if ("may be left over from a killed pool, or another program" in said) != (stranger == "session"):
            raise Fault(f"of the stranger {pid} was said what is wrong\n{done}")

    def _check_everything_answers(self) -> None:
        self._wait_until_ready()
        for name, port in self.ports.items():
            if (status := get(port, "/").status) not in (200, 303, 307, 401):
                raise Fault(f"{name} answers with {status}")

    def _check_nothing_is_left(self) -> None:
        if left := self.pool.processes():
            raise Fault(f"processes are left over: {left}")
        if accepted := [name for name, port in self.ports.items() if not refused(port)]:
            raise Fault(f"the addresses of {accepted} do not refuse connections")

    def _described(self, pids: Collection[int]) -> dict[int, str]:
        return {pid: line for pid, line in self.pool.processes().items() if pid in pids}


def _with_pid(pid: int, script: str) -> subprocess.Popen[bytes]:
    """A shell with this pid, which leads a session, and has the environment of a stranger."""
    for _ in range(10_000):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        process = subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True, env={}, cwd="/")
        if process.pid == pid:
            return process
        # A child of it would be another process in no test's session.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    raise Fault(f"the pid {pid} could not be had")


def _is_in(pid: int, session: int) -> bool:
    try:
        return os.getsid(pid) == session and is_alive(pid)
    except ProcessLookupError:
        return False


def main() -> int:
    options = options_of("both_killed", __doc__, times={"type": int, "default": 20, "help": "how often (20)"})
    chaos = BothKilled(options.seed, lambda text: print(text, flush=True))
    with contextlib.closing(chaos):
        try:
            chaos.run(options.times)
        except (Fault, AssertionError) as fault:
            print(fault, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
