"""A program on the pool's socket is replaced while the old process serves, and is ready when it accepts itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.configuration import server
from tests.http_get import get
from tests.processes import is_alive
from tests.real_pool import RealPool

# Answers with the pid of its leader. It is given a descriptor, and runs `begin` of the file begin.py first.
PROGRAM = """
import http.server, os, signal, socket, sys, threading
leader = os.getpid()
with open("starts", "a") as starts:
    starts.write(f"{leader}\\n")
import begin
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(leader).encode()
        self.send_response(begin.status(self.path))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self):
        return "client"
    def log_message(self, *args):
        pass
listener = socket.socket(fileno=int(sys.argv[1]))
listener.setblocking(False)  # another process may accept first: accept must not wait for the next client
served = http.server.ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
served.socket.close()
served.socket, served.server_name, served.server_port = listener, "test", 0
served.daemon_threads = False
def stop(*args):
    threading.Thread(target=served.shutdown).start()
signal.signal(signal.SIGTERM, stop)
begin.serve(served)
"""

BEGIN = """
import os, pathlib, time
def status(path):
    return 200
def serve(served):
    served.serve_forever(0.01)
    served.server_close()
"""

# The second process waits until the test lets it begin.
GATED = """
if len(pathlib.Path("starts").read_text().split()) > 1:
    while not pathlib.Path("go").exists():
        time.sleep(0.01)
"""

# The second process accepts at once, but answers with 503 until then.
LATE = """
is_second = len(pathlib.Path("starts").read_text().split()) > 1
def status(path):
    return 503 if is_second and not pathlib.Path("go").exists() else 200
"""

LOCKED = """
import fcntl
held = open("lock", "w")
fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""

# The leader only waits; two children accept, as gunicorn's do.
FORKING = """
import signal, sys
def serve(served):
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            served.serve_forever(0.01)
            served.server_close()
            os._exit(0)
        children.append(child)
    def stop(*args):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for child in children:
            os.kill(child, signal.SIGTERM)
        for child in children:
            os.waitpid(child, 0)
        os._exit(0)
    signal.signal(signal.SIGTERM, stop)
    while True:
        signal.pause()
"""


# Writes down each SIGTERM, and ends with none.
STUBBORN = """
import signal
def serve(served):
    def written_down(*args):
        with open("signals", "a") as signals:
            signals.write(f"{os.getpid()}\\n")
    signal.signal(signal.SIGTERM, written_down)
    served.serve_forever(0.01)
"""


class Overlapping:
    """A pool with one program on the pool's socket."""

    def __init__(self, pool: RealPool, port: int) -> None:
        self.pool = pool
        self.port = port
        pool.write("program.py", PROGRAM)

    def write(self, begin: str = "", *arguments: str, **keys: Any) -> None:
        self.pool.write("begin.py", BEGIN + begin)
        command = [sys.executable, "program.py", "{fd}", *arguments]
        keys = {"bind": f"127.0.0.1:{self.port}", "command": command} | keys
        self.pool.write("pool.toml", server("web", **keys))

    def start(self, begin: str = "", **keys: Any) -> int:
        """Start it; returns the pid of its leader."""
        self.write(begin, **keys)
        self.pool.ok("start")
        return self.answering()

    def answering(self) -> int:
        return int(get(self.port).text)

    @property
    def starts(self) -> list[int]:
        return [int(line) for line in (self.pool.directory / "starts").read_text().split()]

    def events(self, name: str) -> list[str]:
        found = map(json.loads, self.pool.ok("events", "-o", "json").stdout.splitlines())
        return [each["message"] for each in found if each["event"] == name]

    @contextmanager
    def during(self, *command: str) -> Iterator[None]:
        """Give the command, and wait for its end after the test's own work."""
        done = self.pool.spawn(*command)
        try:
            yield
        finally:
            self.let_go()
            _, stderr = done.communicate(timeout=60)
        assert done.returncode == 0, stderr

    def let_go(self) -> None:
        """Let further processes begin."""
        (self.pool.directory / "go").touch()


@pytest.fixture
def program(pool: RealPool, free_port: Any) -> Overlapping:
    return Overlapping(pool, free_port())


@pytest.mark.parametrize("kind", ["threads", pytest.param("children", marks=pytest.mark.capability)])
def test_old_process_answers_until_the_new_one_accepts(program: Overlapping, until: Any, kind: str) -> None:
    begin = GATED + (FORKING if kind == "children" else "")
    old = program.start(begin, health={"readiness": {"http": "/"}})
    with program.during("restart"):
        until(lambda: len(program.starts) == 2)
        assert [program.answering() for _ in range(20)] == [old] * 20
        assert is_alive(old)
    until(lambda: not is_alive(old))
    assert program.answering() == program.starts[1] == program.pool.items()["web"]["pids"][0]


def test_old_process_gets_its_stop_signal_once_and_is_killed_after_both_time_limits(
    program: Overlapping, until: Any
) -> None:
    old = program.start(STUBBORN, drain_timeout="300ms", stop_timeout="300ms")
    program.pool.ok("restart")
    until(lambda: not is_alive(old))
    assert (program.pool.directory / "signals").read_text().split() == [str(old)]


def test_further_process_is_not_ready_because_the_first_one_accepts(program: Overlapping, until: Any) -> None:
    program.start(GATED)

    def phases() -> list[str]:
        (item,) = program.pool.ok("show", "web", "-o", "json").json["items"]
        return sorted(each["phase"] for each in item["worker_list"])

    with program.during("scale", "web", "2"):
        until(lambda: len(program.starts) == 2)
        for _ in range(50):
            program.answering()
        assert phases() == ["ready", "starting"]
    assert phases() == ["ready", "ready"]


def test_woken_process_is_ready_when_it_accepts(program: Overlapping, until: Any) -> None:
    program.write(GATED.replace("> 1", "> 0"), scale={"min": 0})
    program.pool.ok("start")
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(program.answering)
        until(lambda: (program.pool.directory / "starts").exists() and program.starts)
        assert not program.pool.items()["web"]["ready"]
        program.let_go()
        assert [answer.result()] == program.starts
    until(lambda: program.pool.items()["web"]["ready"])


def test_answer_of_the_old_process_does_not_make_the_new_one_ready(program: Overlapping, until: Any) -> None:
    old = program.start(LATE, health={"readiness": {"http": "/", "interval": "50ms"}})
    with program.during("restart"):
        until(lambda: len(program.starts) == 2)
        # It accepts, and is not ready to answer.
        new = program.starts[1]
        until(lambda: any(program.answering() == new for _ in range(20)))
        for _ in range(20):
            program.answering()
        assert is_alive(old)
    assert program.pool.items()["web"]["pids"] == [new]


def test_probe_by_a_program_that_the_old_process_answers_is_not_enough(
    program: Overlapping, until: Any
) -> None:
    asks = [sys.executable, "-c", "import sys, urllib.request as r; r.urlopen(sys.argv[1])"]
    probe = {"exec": [*asks, f"http://127.0.0.1:{program.port}/"], "interval": "50ms", "timeout": "20s"}
    old = program.start(GATED, health={"readiness": probe})
    with program.during("restart"):
        until(lambda: len(program.starts) == 2)
        assert [program.answering() for _ in range(20)] == [old] * 20
    until(lambda: not is_alive(old))  # it may accept until it has ended
    assert program.answering() == program.starts[1]


@pytest.mark.parametrize("workers", [1, 3])
def test_program_that_cannot_run_twice_is_started_after_its_old_process(
    program: Overlapping, workers: int
) -> None:
    locked = LOCKED.replace('"lock"', '"lock" + os.environ["POOLCTL_INDEX"]')
    program.start(locked, workers=workers)
    before = program.pool.items()["web"]["pids"]
    said = program.pool.ok("restart").stderr
    assert "web: cannot start while its previous process runs" in said
    assert "starting again after the end of the previous process" in program.pool.ok("events").stdout
    after = program.pool.items()["web"]["pids"]
    assert len(after) == workers
    assert not {*after} & {*before}
    count = len(program.starts)
    assert "cannot start" not in program.pool.ok("restart").stderr
    assert len(program.starts) == count + workers, "it is remembered"
    program.pool.ok("stop")
    program.pool.ok("start")
    program.pool.ok("restart")
    assert len(program.starts) == count + 3 * workers, "over a stop of the pool, too"
    assert len(program.events("no overlap")) == 1
    # Another command is another program.
    program.write("", "changed", workers=workers)
    program.pool.ok("reload")
    count = len(program.starts)
    program.pool.ok("restart")
    assert len(program.starts) == count + workers
    assert len(program.events("no overlap")) == 1


def test_broken_code_leaves_the_old_process_alone(program: Overlapping) -> None:
    old = program.start()
    program.write("import no_such_module")
    done = program.pool.run("restart")
    assert (done.code, program.answering()) == (1, old)
    assert "no_such_module" in done.stderr
    assert program.pool.items()["web"]["pids"] == [old]


def test_program_that_was_replaced_before_is_not_stopped_for_one_that_fails(program: Overlapping) -> None:
    program.start()
    program.pool.ok("restart")
    old = program.answering()
    program.write("raise SystemExit(3)")
    done = program.pool.run("restart")
    assert (done.code, program.answering()) == (1, old)
    assert "overlap = false ends the previous process first" in done.stderr
    # An address in use may be held by the old process.
    program.write("print('bind: address already in use: 9100')\nraise SystemExit(3)")
    assert program.pool.run("restart").code == 1
    assert not is_alive(old)


def test_new_process_that_is_not_ready_in_time_leaves_the_old_one(program: Overlapping) -> None:
    old = program.start(GATED)
    program.write(GATED, start_timeout="1s")
    program.pool.ok("reload")
    assert program.answering() == old
    done = program.pool.run("restart")
    assert (done.code, program.answering()) == (1, old)
    assert (
        f"was not ready within 1s: it has not accepted a connection on 127.0.0.1:{program.port}"
        in done.stderr
    )
    assert "overlap = false ends the previous process first" in done.stderr


@pytest.mark.parametrize("keys", [{"overlap": False}, {"overlap": True}])
def test_overlap_that_is_written_down_is_not_tried_out(program: Overlapping, keys: dict[str, Any]) -> None:
    old = program.start(LOCKED, **keys)
    done = program.pool.run("restart")
    if keys["overlap"]:
        assert (done.code, program.answering()) == (1, old)
    else:
        assert (done.code, len(program.starts)) == (0, 2)
        assert program.answering() != old
    assert program.events("no overlap") == []
