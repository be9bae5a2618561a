"""Each kind of process is killed, frozen and starved of descriptors under requests: none is refused, all work again."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import poolctl
from poolctl.keeper.spawn import MAX_SIZE_BYTES
from tests.deadline import wait_until
from tests.http_get import get
from tests.ports import claim_port
from tests.processes import children, command_line, freeze, is_alive, is_frozen
from tests.real_pool import RealPool, pool_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PACKAGE = Path(poolctl.__file__).parent
# Not started by a pool: the command and `serve`.
_OTHERS = {"", "features.serve"}
PARTS = {".".join(path.parent.relative_to(PACKAGE).parts) for path in PACKAGE.rglob("__main__.py")} - _OTHERS
HAPROXY = "haproxy"
# The limits of another user's process need a capability that root does not have everywhere (prlimit(2)).
AS_ROOT = 'user = "root"' if os.geteuid() == 0 else ""

CHATTY = """
from hello import app as hello

async def app(scope, receive, send):
    if scope["type"] == "http":
        print(scope["path"], flush=True)
    await hello(scope, receive, send)
"""


class FullPool:
    """A pool that has each kind of process, and clients that ask it all the time."""

    def __init__(self, pool: RealPool) -> None:
        self.pool = pool
        self.web, self.sleepy, self.gateway, self.page = (claim_port() for _ in range(4))
        pool.write_hello("none")
        pool.write("chatty.py", CHATTY)
        self._numbers = itertools.count()

    def write(self) -> None:
        self.pool.write(
            "pool.toml",
            f"""
            [gateway]
            bind = "127.0.0.1:{self.gateway}"
            {AS_ROOT}

            [dashboard]
            bind = "127.0.0.1:{self.page}"

            [[server]]
            name = "web"
            bind = "127.0.0.1:{self.web}"
            app = "chatty:app"
            workers = 2
            recovery = {{ strategy = "replace", stuck_after = "2s" }}

            [[server]]
            name = "private"
            bind = "127.0.0.1:auto"
            command = ["{sys.executable}", "-m", "uvicorn", "hello:app", "--port", "{{port}}"]
            socket = "proxied"

            [[server]]
            name = "sleepy"
            bind = "127.0.0.1:{self.sleepy}"
            app = "hello:app"
            scale = {{ min = 0, idle = "1s" }}

            [[route]]
            to = ["web"]
            """,
        )

    def start(self) -> None:
        self.write()
        self.pool.ok("start")
        self.wake()

    @property
    def workers(self) -> list[int]:
        return list(self.pool.items()["web"]["pids"])

    def pids(self, part: str) -> list[int]:
        """The keeper's children that run this part, without workers."""
        workers = {pid for item in self.pool.items().values() for pid in item["pids"]}
        return [
            pid
            for pid in children(self.pool.info()["keeper_pid"])
            if pid not in workers and is_alive(pid) and f"bootstrap.py {part}" in command_line(pid)
        ]

    def own(self, name: str) -> list[int]:
        """The process that `status` names so."""
        done = self.pool.run("status", "-o", "json")
        named = done.json["summary"].get("processes", ()) if done.stdout else ()
        return [each["pid"] for each in named if each["name"] == name]

    # What each kind is needed for. A wrong answer, or none, is an exception.

    def serve(self, port: int) -> None:
        assert get(port).status == 200

    def restart(self) -> None:
        self.pool.ok("restart", "web")

    def reload(self) -> None:
        """Have a changed file read."""
        text = (self.pool.directory / "pool.toml").read_text()
        self.pool.write("pool.toml", f"{text}# {next(self._numbers)}\n")
        self.pool.ok("reload")

    def log(self) -> None:
        """A line that a server prints is in its log."""
        path = f"/line-{next(self._numbers)}"
        get(self.web, path)
        # A killed logger may lose a line: another one has to be printed then.
        wait_until(lambda: path in self.pool.ok("logs", "web").stdout, timeout_seconds=5)

    def wake(self) -> None:
        """A server that sleeps with a listener that its application shares is woken by a request."""
        wait_until(lambda: self.pool.items()["sleepy"]["state"] in ("sleeping", "running"))
        assert get(self.sleepy).status == 200
        wait_until(lambda: self.pool.items()["sleepy"]["state"] == "sleeping")


@dataclass(frozen=True)
class Kind:
    """How its process is found, and what needs it. `part` is the package that it runs."""

    name: str
    part: str
    find: Callable[[FullPool], list[int]]
    use: Callable[[FullPool], object]


KINDS = [
    Kind("keeper", "keeper", lambda it: [it.pool.info()["keeper_pid"]], FullPool.restart),
    Kind("supervisor", "supervisor", lambda it: [it.pool.info()["supervisor_pid"]], FullPool.reload),
    Kind("logger", "logs", lambda it: it.own("logger"), FullPool.log),
    Kind("accept", "acceptor", lambda it: it.own("accept"), FullPool.wake),
    Kind("web", "web", lambda it: it.own("web"), lambda it: it.serve(it.page)),
    Kind("gateway", HAPROXY, lambda it: it.own("gateway"), lambda it: it.serve(it.gateway)),
    Kind("forwarder", "features.gateway.forwarder", lambda it: it.own("forwarder"), lambda it: it.serve(it.gateway)),
    Kind("zygote", "worker", lambda it: it.pids("worker zygote"), FullPool.restart),
    Kind("worker", "worker", lambda it: it.workers, lambda it: it.serve(it.web)),
]  # fmt: skip
# The helpers but for the logger itself, and HAProxy, whose log has another descriptor.
HELPERS_WITH_PIPE = {"accept", "web", "forwarder"}


def test_every_part_that_a_pool_runs_is_tried() -> None:
    assert {kind.part for kind in KINDS} == PARTS | {HAPROXY}


@pytest.fixture(scope="module")
def full_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FullPool]:
    with pool_in(tmp_path_factory.mktemp("pool")) as pool:
        it = FullPool(pool)
        it.start()
        yield it


@contextmanager
def nothing_is_refused(it: FullPool) -> Iterator[None]:
    """Connect to each address of the pool all the time: the kernel must never refuse one."""
    refused: list[int] = []
    counts = dict.fromkeys((it.web, it.gateway, it.page), 0)
    ended = threading.Event()

    def ask(port: int) -> None:
        while not ended.wait(0.01):
            try:
                get(port, timeout_seconds=20)
            except ConnectionRefusedError:
                refused.append(port)
            except Exception:
                pass  # lost with its process: what is lost with which is tried in other tests
            counts[port] += 1

    askers = [threading.Thread(target=ask, args=(port,), daemon=True) for port in counts]
    for each in askers:
        each.start()
    try:
        yield
        before = dict(counts)
        wait_until(lambda: all(counts[port] > before[port] for port in counts), what="each address answers")
    finally:
        ended.set()
        for each in askers:
            each.join(60)
    assert refused == []


def works(it: FullPool, kind: Kind) -> bool:
    with contextlib.suppress(Exception, AssertionError):
        kind.use(it)
        return True
    return False


def process_of(it: FullPool, kind: Kind) -> int:
    """One process of this kind, which has just been used."""
    wait_until(lambda: works(it, kind))
    return int(wait_until(lambda: kind.find(it), what=f"there is a {kind.name}")[0])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_killed_process_is_replaced(full_pool: FullPool, kind: Kind) -> None:
    with nothing_is_refused(full_pool):
        pid = process_of(full_pool, kind)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: works(full_pool, kind))
        wait_until(lambda: not is_alive(pid))
        wait_until(lambda: set(kind.find(full_pool)) - {pid}, what="another one runs")


@pytest.mark.parametrize(
    "kind", [each for each in KINDS if each.name in HELPERS_WITH_PIPE], ids=lambda kind: kind.name
)
def test_what_a_helper_prints_is_in_its_bounded_log(full_pool: FullPool, kind: Kind) -> None:
    # Not the one of the start, when no logger runs yet.
    os.kill(first := process_of(full_pool, kind), signal.SIGKILL)
    wait_until(lambda: not is_alive(first))
    pid = process_of(full_pool, kind)
    log = next(full_pool.pool.runtime.glob("[!@]*/supervisor.log")).with_name(f"{kind.name}.log")
    with Path(f"/proc/{pid}/fd/2").open("wb", buffering=0) as printed:
        for _ in range(3):
            printed.write(b"a line\n" * 100_000)
        printed.write(b"the last one\n")

    def has_last_line() -> bool:
        with contextlib.suppress(FileNotFoundError):  # while it is rotated
            return log.read_bytes().endswith(b"a line\nthe last one\n")
        return False

    wait_until(has_last_line, what="the line is in the log")
    assert log.stat().st_size <= MAX_SIZE_BYTES
    assert Path(f"{log}.1").stat().st_size <= MAX_SIZE_BYTES
    assert not Path(f"{log}.2").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_frozen_process_is_replaced_or_continued(full_pool: FullPool, kind: Kind) -> None:
    with nothing_is_refused(full_pool):
        pid = process_of(full_pool, kind)
        freeze(pid)
        try:
            wait_until(lambda: works(full_pool, kind), timeout_seconds=90)
            wait_until(lambda: not is_frozen(pid), timeout_seconds=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_process_without_a_free_descriptor_works_again_when_there_are_some(
    full_pool: FullPool, kind: Kind
) -> None:
    with nothing_is_refused(full_pool):
        pid = process_of(full_pool, kind)
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = {int(each) for each in os.listdir(f"/proc/{pid}/fd")}
        free = next(each for each in itertools.count() if each not in used)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, hard))
        using = threading.Thread(target=works, args=(full_pool, kind), daemon=True)
        using.start()
        using.join(3)
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        using.join(60)
        wait_until(lambda: works(full_pool, kind), timeout_seconds=60)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS[2:], ids=lambda kind: kind.name)
@pytest.mark.parametrize("whom", ["supervisor_pid", "keeper_pid"])
def test_process_killed_with_its_supervisor_or_keeper_is_replaced(
    full_pool: FullPool, kind: Kind, whom: str
) -> None:
    with nothing_is_refused(full_pool):
        pid = process_of(full_pool, kind)
        before: dict[str, Any] = full_pool.pool.info()
        for each in (before[whom], pid):
            os.kill(each, signal.SIGKILL)
        wait_until(lambda: full_pool.pool.info()[whom] != before[whom])
        wait_until(lambda: works(full_pool, kind), timeout_seconds=60)
        wait_until(lambda: not is_alive(pid))
