"""A worker answers heartbeats, follows orders, reports that it is idle, and drains without a supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from websockets.asyncio.client import connect

from poolctl import ServerConfig
from poolctl.keeper import connection_handover, wire
from poolctl.routing.route import Route, Target
from poolctl.routing.route_table import write_table
from poolctl.runners.worker_spec import memory_files, spec_file, tls_contents, worker_spec
from poolctl.worker import tally
from poolctl.worker.process_setup import BEAT
from poolctl.worker.serving.connection_balancer import PeerCounts, create_peer_counts_page
from poolctl.worker.tally import BEAT_ANSWERED_NS, BEAT_ASKED_NS, BEAT_LAG_NS
from poolctl.worker.worker_process import (
    ControlSocket,
    IdleTimer,
    WorkerProcess,
    answer_if_heartbeat,
)
from tests import serving
from tests.deadline import wait_until
from tests.http_get import get
from tests.serving import Client, Engine, Served, blank_page, served, turns, until

SECONDS = 0.15


# Heartbeats.


def test_heartbeat_is_answered_with_the_time_of_the_question_and_the_lag() -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        theirs.setblocking(False)
        page = blank_page()
        asked = time.monotonic_ns() - 5_000_000
        page[BEAT_ASKED_NS] = asked
        ours.send(BEAT)
        assert answer_if_heartbeat(theirs, page)
        assert page[BEAT_ANSWERED_NS] == asked
        assert 5_000_000 <= page[BEAT_LAG_NS] <= time.monotonic_ns() - asked
        assert not answer_if_heartbeat(theirs, page), "there is no second one"
        ours.send(BEAT)
        assert answer_if_heartbeat(theirs, None), "who counts nothing reads it all the same"


def test_other_messages_stay_in_the_socket_with_their_descriptors() -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        theirs.setblocking(False)
        for message in ({"order": "stop"}, {"order": "beat", "more": 1}):
            with open(os.devnull) as file:
                wire.send(ours, message, [file.fileno()])
            assert not answer_if_heartbeat(theirs, blank_page())
            received = wire.receive(theirs)
            assert received is not None
            assert received[0] == message
            (fd,) = received[1]
            os.close(fd)
        ours.send(BEAT + b" ")
        assert not answer_if_heartbeat(theirs, blank_page())
        assert wire.receive(theirs) is not None
        ours.close()
        assert not answer_if_heartbeat(theirs, blank_page()), "an end of the file is not a heartbeat"


# Orders.


class Ordered:
    """A worker that records its orders."""

    def __init__(self) -> None:
        self.orders: list[wire.Message] = []
        self.drains = 0

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        self.orders.append(message)

    def drain(self) -> None:
        self.drains += 1


async def test_orders_that_have_arrived_before_are_followed_at_once_and_descriptors_closed(
    descriptors_closed: None,
) -> None:
    ours, theirs = wire.pair()
    read, write = os.pipe()
    with ours:
        wire.send(ours, {"order": "rest"}, [write])
        ours.send(b"no message")
        ours.send(BEAT)
        wire.send(ours, {"order": "out"})
        os.close(write)
        worker = Ordered()
        control = ControlSocket(theirs.detach(), cast(WorkerProcess, worker))
        control.start_reading_orders(None)
        assert worker.orders == [{"order": "rest"}, {"order": "out"}]
        assert os.read(read, 1) == b""
        wire.send(ours, {"order": "in"})
        await until(lambda: len(worker.orders) == 3)
        control.ignore()
        wire.send(ours, {"order": "drain"})
        await turns()
        assert len(worker.orders) == 3
        control.close_in_child()
        control.send_or_drop({"event": "lost"})
    os.close(read)


async def test_end_of_the_control_socket_drains_the_worker_once(descriptors_closed: None) -> None:
    ours, theirs = wire.pair()
    worker = Ordered()
    control = ControlSocket(theirs.detach(), cast(WorkerProcess, worker))
    control.start_reading_orders(None)
    ours.close()
    await until(lambda: worker.drains)
    await turns()
    assert (worker.drains, worker.orders) == (1, [])
    control.close_in_child()


# Idleness.


class Told:
    """What was told so far."""

    def __init__(self) -> None:
        self.news: list[bool] = []
        self._unheard: asyncio.Queue[bool] = asyncio.Queue()

    def __call__(self, idle: bool) -> None:
        self.news.append(idle)
        self._unheard.put_nowait(idle)

    async def next(self) -> bool:
        return await asyncio.wait_for(self._unheard.get(), 60)

    def forget(self) -> None:
        """Forget what was told before the test has begun, on a machine that was slow."""
        self.news.clear()
        self._unheard = asyncio.Queue()


@asynccontextmanager
async def watched(any_engine: Engine) -> AsyncIterator[tuple[Served, Told]]:
    async with served(any_engine) as serving:
        told = Told()
        idleness = IdleTimer(serving.server.server_state, SECONDS, told)
        try:
            yield serving, told
        finally:
            idleness.stop()


async def test_worker_without_traffic_reports_once_that_it_is_idle(any_engine: Engine) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with watched(any_engine) as (_, told):
        assert await told.next() is True
        assert loop.time() - begun >= SECONDS * 0.9
        await asyncio.sleep(2 * SECONDS)
        assert told.news == [True]


async def test_connection_or_request_ends_idleness(any_engine: Engine) -> None:
    async with watched(any_engine) as (serving, told):
        assert await told.next() is True
        client = await Client.connect(serving.port)
        assert await told.next() is False
        assert await told.next() is True  # open, and silent
        await client.get()
        assert await told.next() is False
        assert await told.next() is True
        assert told.news == [True, False] * 2 + [True]


async def test_request_on_an_open_connection_ends_idleness_when_it_begins(engine: Engine) -> None:
    async with watched(engine) as (serving, told):
        client = await Client.connect(serving.port)
        await client.get()
        while await told.next() is not True:
            continue
        await client.send("/slow")
        assert await told.next() is False
        serving.app.release.set()
        await client.answer()


async def test_requests_put_it_off(any_engine: Engine) -> None:
    async with watched(any_engine) as (serving, told):
        client = await Client.connect(serving.port)
        loop = asyncio.get_running_loop()
        times = [loop.time()]
        while times[-1] < times[0] + 3 * SECONDS:
            await client.get()
            times.append(loop.time())
            await asyncio.sleep(SECONDS / 5)
        times.append(loop.time())
        longest = max(later - earlier for earlier, later in itertools.pairwise(times))
        # On a machine that is busy otherwise a pause may be one indeed.
        assert told.news == [] or longest >= SECONDS * 0.9
        if told.news:
            return
        assert await told.next() is True


async def test_request_under_way_is_no_idleness_and_its_end_restarts_the_idle_time(
    any_engine: Engine,
) -> None:
    async with watched(any_engine) as (serving, told):
        client = await Client.connect(serving.port)
        await client.send("/slow")
        await serving.app.under_way.wait()
        told.forget()
        await asyncio.sleep(3 * SECONDS)
        assert told.news == []
        ended = asyncio.get_running_loop().time()
        serving.app.release.set()
        await client.answer()
        assert await told.next() is True
        assert asyncio.get_running_loop().time() - ended >= SECONDS * 0.9


async def test_worker_with_an_open_websocket_is_not_idle(any_engine: Engine) -> None:
    async with watched(any_engine) as (serving, told):
        async with connect(f"ws://127.0.0.1:{serving.port}/", proxy=None):
            await serving.app.under_way.wait()
            told.forget()
            await asyncio.sleep(3 * SECONDS)
            assert told.news == []
        assert await told.next() is True


async def test_idleness_reports_nothing_once_it_has_ended(any_engine: Engine) -> None:
    async with watched(any_engine) as (serving, _):
        told = Told()
        idleness = IdleTimer(serving.server.server_state, SECONDS, told)
        idleness.stop()
        await Client.connect(serving.port)
        await asyncio.sleep(2 * SECONDS)
        assert told.news == []


# A worker as a process.

APP = """
import os, sys, time
print("imported", os.environ.get("POOLCTL_INDEX"), os.environ.get("PYTHONOPTIMIZE"), sys.flags.optimize, flush=True)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (kind := (await receive())["type"]) != "lifespan.shutdown":
            await send({"type": f"{kind}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    text = scope["path"]
    if text == "/hang":
        print("hangs", flush=True)
        await __import__("asyncio").Event().wait()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text.encode()})
"""
LEAVING = "raise SystemExit(7)"
START = """
import sys
from poolctl.worker.imports import hide_poolctl_from_applications, import_libraries_and_set_up
from poolctl.worker.worker_process import become_worker
import_libraries_and_set_up()
from poolctl.worker.serving import http1_connection
http1_connection.QUIET_SECONDS = 60.0
hide_poolctl_from_applications()
become_worker({fds}, preloaded={preloaded})
"""


class Running:
    """A worker in a process of its own, with a supervisor's end of everything that it has."""

    def __init__(
        self,
        directory: Path,
        app: str = "served:app",
        *,
        go: bool = True,
        preloaded: bool = False,
        **keys: Any,
    ) -> None:
        (directory / "served.py").write_text(APP)
        (directory / "leaving.py").write_text(LEAVING)
        self.listener = serving.listener()
        self.port = self.listener.getsockname()[1]
        more = {name: keys.pop(name) for name in ("index", "woken") if name in keys}
        tls = keys.get("tls")
        config = ServerConfig(
            name="web", bind=f"127.0.0.1:{self.port}", app=app, app_dir=str(directory), cwd="/", **keys
        )
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = tls_contents(config)
        spec = worker_spec(
            config, interpreter=sys.executable, listeners=1, tls_files=len(files), open_files=limits
        )
        self.control, theirs = wire.pair()
        self.pair = wire.pair()
        self.page = os.fdopen(tally.create_tally_page(), "r+b", buffering=0)
        read, write = os.pipe()
        self.output = open(read, "rb", buffering=0)  # noqa: SIM115
        spec_fd = spec_file({**spec, "index": 3} | more)
        with theirs, memory_files(files) as tls_fds:
            ends = [self.listener.fileno(), *tls_fds, *(each.fileno() for each in self.pair)]
            fds = [spec_fd, theirs.fileno(), write, *ends, self.page.fileno()]
            start = START.format(fds=fds, preloaded=preloaded)
            self.process = subprocess.Popen([sys.executable, "-c", start], pass_fds=fds)
        os.close(spec_fd)
        os.close(write)
        assert tls is None or files
        if go:
            self.order("go")

    def order(self, order: str, fds: Sequence[int] = (), **keys: Any) -> None:
        wire.send(self.control, {"order": order, **keys}, list(fds))

    def event(self, control: socket.socket | None = None) -> wire.Message:
        """The next event; fails the test when there is none."""
        sock = self.control if control is None else control
        sock.settimeout(60)
        received = wire.receive(sock, wait=True)
        assert received is not None, "the worker has closed its control socket"
        return received[0]

    def ready(self) -> None:
        assert [self.event()["event"] for _ in range(2)] == ["imported", "ready"]

    def get(self, path: str = "/") -> str:
        return get(self.port, path).text

    def text(self) -> str:
        """Everything that it prints until it ends."""
        return self.output.read().decode()

    def end(self) -> int:
        return self.process.wait(60)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for each in (self.control, *self.pair, self.listener, self.page, self.output):
            each.close()


@pytest.fixture
def run_worker(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    with contextlib.ExitStack() as stack:

        def run(*arguments: Any, **keys: Any) -> Running:
            made = Running(tmp_path, *arguments, **keys)
            stack.callback(made.close)
            return made

        yield run


RunWorker = Callable[..., Running]


def ask(sock: socket.socket, path: str) -> str:
    """The text of a response on this connection."""
    sock.sendall(f"GET {path} HTTP/1.1\r\nhost: test\r\n\r\n".encode())
    data = b""
    while not data.endswith(path.encode()) and (more := sock.recv(1000)):
        data += more
    return data.rpartition(b"\r\n\r\n")[2].decode()


@pytest.mark.slow
def test_worker_becomes_ready_serves_and_stops(run_worker: RunWorker) -> None:
    worker = run_worker()
    worker.ready()
    assert worker.get("/x") == "/x"
    worker.order("report")
    assert worker.event() == {"event": "ready", "leaving": False}
    worker.order("stop")
    assert worker.end() == 0
    lines = worker.text().splitlines()
    assert lines == [
        "imported 3 None 0", "INFO:     Application startup complete.", "INFO:     Application shutdown complete.",
    ]  # fmt: skip
    found = tally.read_tally_page(worker.page.fileno())
    assert found is not None
    assert found[tally.STARTED] == 1


@pytest.mark.slow
def test_worker_needs_nothing_of_json_that_its_application_replaces(
    run_worker: RunWorker, tmp_path: Path
) -> None:
    (tmp_path / "replacing.py").write_text(
        "import json\n"
        "real = json.dumps\n"
        "json.dumps = lambda obj, default=None, option=None: real(obj, default=default).encode()\n"
        "json.loads = json.JSONEncoder = json.JSONDecoder = lambda text: 1 / 0\n"
        "async def app(scope, receive, send):\n"
        "    if scope['type'] == 'lifespan':\n"
        "        for kind in ('startup', 'shutdown'):\n"
        "            await receive()\n"
        "            await send({'type': f'lifespan.{kind}.complete'})\n"
        "        return\n"
        "    await send({'type': 'http.response.start', 'status': 500, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b'ok'})\n"
    )
    worker = run_worker("replacing:app", http={"access_log": True})
    worker.ready()
    table = write_table([Route(alias="a", path="/", to=(Target(server="web"),))], 5)
    worker.order("routes", [table], key="secret", trusted=[])
    os.close(table)
    worker.order("report")
    assert worker.event()["event"] == "ready"
    assert worker.get() == "ok"
    worker.order("drain")
    assert worker.event() == {"event": "left"}
    assert worker.end() == 0
    text = worker.text()
    assert "Application shutdown complete." in text
    assert "cannot be used" not in text


@pytest.mark.slow
def test_worker_serves_and_is_probed_although_its_application_replaces_the_socket_class(
    run_worker: RunWorker, tmp_path: Path
) -> None:
    (tmp_path / "replacing.py").write_text(  # as PySocks does
        "import socket\n"
        "class Socket(socket.socket):\n"
        "    def __init__(self, family=socket.AF_INET, type=socket.SOCK_STREAM, proto=0, *args, **keys):\n"
        "        super().__init__(family, type, proto, *args, **keys)\n"
        "socket.socket = Socket\n"
        "from tests.asgi_apps import hello as app\n"
    )
    worker = run_worker("replacing:app")
    worker.ready()
    assert worker.get() == "hello"
    ours, theirs = socket.socketpair()
    with ours:
        worker.order("conn", [theirs.fileno()], kind="http")
        theirs.close()
        ours.sendall(b"GET /pid HTTP/1.1\r\nhost: a\r\n\r\n")
        assert ours.recv(1000).startswith(b"HTTP/1.1 200 OK")
    worker.order("stop")
    assert worker.end() == 0


@pytest.mark.slow
def test_failed_shutdown_is_not_called_complete(run_worker: RunWorker, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        "async def app(scope, receive, send):\n"
        "    await receive()\n"
        "    await send({'type': 'lifespan.startup.complete'})\n"
        "    await receive()\n"
        "    await send({'type': 'lifespan.shutdown.failed', 'message': 'cannot flush'})\n"
    )
    worker = run_worker("failing:app")
    worker.ready()
    worker.order("stop")
    assert worker.end() == 0
    lines = worker.text().splitlines()
    assert lines[1:] == ["ERROR:    cannot flush", "ERROR:    Application shutdown failed. Exiting."]


@pytest.mark.slow
@pytest.mark.parametrize("app", ["served:app", "frozen:app"])
def test_worker_answers_heartbeats_and_notes_that_it_does(
    run_worker: RunWorker, tmp_path: Path, app: str
) -> None:
    (tmp_path / "frozen.py").write_text(
        "import time\n"
        "for name in ('monotonic', 'monotonic_ns', 'perf_counter', 'process_time_ns', 'time', 'time_ns'):\n"
        "    setattr(time, name, lambda now=getattr(time, name)(): now)\n"
        "from served import app\n"
    )
    worker = run_worker(app)
    worker.ready()
    page = tally.map_page(worker.page.fileno())
    assert page[BEAT_ANSWERED_NS] > 0
    used = 0
    for _ in range(2):
        page[BEAT_ASKED_NS] = asked = time.monotonic_ns()
        worker.control.send(BEAT)
        wait_until(lambda asked=asked: page[BEAT_ANSWERED_NS] == asked)
        assert 0 < page[BEAT_LAG_NS] <= time.monotonic_ns() - asked
        used, before = page[tally.BEAT_CPU_NS], used
        assert used > before, "the clock of the process goes on"
    page.release()


@pytest.mark.slow
def test_worker_of_a_process_that_was_set_up_for_its_server_sets_its_index_alone(
    run_worker: RunWorker,
) -> None:
    worker = run_worker(preloaded=True, env={"PYTHONOPTIMIZE": "1"})
    worker.ready()
    worker.order("stop")
    assert worker.end() == 0
    assert worker.text().startswith("imported 3 None 0\n")


@pytest.mark.slow
def test_status_of_an_application_that_exits_at_its_import_is_the_workers(run_worker: RunWorker) -> None:
    assert run_worker("leaving:app").end() == 7


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_the_worker_whose_status_shows_the_signal(run_worker: RunWorker, number: int) -> None:
    worker = run_worker(drain_timeout=60)
    worker.ready()
    with socket.create_connection(("127.0.0.1", worker.port), timeout=60) as client:
        assert ask(client, "/x") == "/x"
        worker.process.send_signal(number)
        assert worker.event() == {"event": "left"}
        assert ask(client, "/y") == "/y"
    assert worker.end() == -number


@pytest.mark.slow
def test_second_signal_stops_a_worker_that_drains(run_worker: RunWorker) -> None:
    worker = run_worker(drain_timeout=600, stop_timeout=0.1)
    worker.ready()
    with socket.create_connection(("127.0.0.1", worker.port), timeout=60) as client:
        client.sendall(b"GET /hang HTTP/1.1\r\nhost: test\r\n\r\n")
        assert worker.output.readline() == b"imported 3 None 0\n"
        assert b"startup complete" in worker.output.readline()
        assert worker.output.readline() == b"hangs\n"
        worker.process.send_signal(signal.SIGTERM)
        assert worker.event() == {"event": "left"}
        worker.process.send_signal(signal.SIGTERM)
        assert worker.end() == -signal.SIGTERM


@pytest.mark.slow
def test_orders_about_traffic_change_and_report_it(run_worker: RunWorker) -> None:
    worker = run_worker()
    worker.ready()
    worker.order("rest")
    worker.order("report")
    assert worker.event() == {"event": "ready", "leaving": False, "resting": "told"}
    worker.order("work")
    worker.order("report")
    assert worker.event() == {"event": "ready", "leaving": False}
    worker.order("idle", seconds=0.01)
    assert worker.event() == {"event": "idle"}
    worker.order("report")
    assert [worker.event()["event"] for _ in range(2)] == ["ready", "idle"]
    worker.get()
    assert worker.event() == {"event": "busy"}
    assert worker.event() == {"event": "idle"}
    worker.order("idle", seconds=None)
    worker.order("report")
    while (event := worker.event()) != {"event": "ready", "leaving": False}:
        assert event["event"] in ("busy", "idle"), "of a client that connects, and asks later"
    worker.get()
    worker.order("out")
    assert get(worker.port).headers["connection"] == "close"
    worker.order("in")
    worker.order("report")
    assert worker.event() == {"event": "ready", "leaving": False}
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            worker.order("conn", [theirs.fileno()], kind="http", plain=True)
        ours.settimeout(60)
        assert ask(ours, "/probe") == "/probe"
        worker.order("drain")
        assert worker.event() == {"event": "left"}
    assert worker.end() == 0


@pytest.mark.slow
@pytest.mark.parametrize("order", ["stop", "drain"])
def test_connections_wait_in_the_pair_for_a_later_worker_if_so_ordered(
    run_worker: RunWorker, order: str
) -> None:
    worker = run_worker()
    worker.ready()
    with socket.create_connection(("127.0.0.1", worker.port), timeout=60) as client:
        assert ask(client, "/x") == "/x"
        worker.order(order, to="pair")
        assert worker.end() == 0
        taken = connection_handover.receive_connection(worker.pair[1])
        assert taken is not None
        with taken:
            assert taken.getpeername() == client.getsockname()


@pytest.mark.slow
def test_worker_shows_the_others_how_many_connections_it_has(run_worker: RunWorker) -> None:
    worker = run_worker()
    worker.ready()
    page = create_peer_counts_page()
    worker.order("peers", [page])
    with socket.create_connection(("127.0.0.1", worker.port), timeout=60) as client:
        assert ask(client, "/x") == "/x"
        worker.order("report")
        worker.event()
        with contextlib.closing(PeerCounts(page)) as counts:
            assert counts.others() == [1]


@pytest.mark.slow
def test_gated_worker_rests_until_it_is_ordered_to_work(run_worker: RunWorker) -> None:
    worker = run_worker(health={"readiness": {"http": "/"}})
    worker.ready()
    worker.order("report")
    assert worker.event() == {"event": "ready", "leaving": False, "resting": "new"}


@pytest.mark.slow
def test_worker_that_has_served_its_requests_says_so_and_serves_on(run_worker: RunWorker) -> None:
    worker = run_worker(http={"max_requests": 1})
    worker.ready()
    worker.get()
    assert worker.event() == {"event": "expired"}
    worker.order("report")
    assert [worker.event()["event"] for _ in range(2)] == ["ready", "expired"]
    assert worker.get("/x") == "/x"


@pytest.mark.slow
def test_worker_uses_the_routes_that_it_gets_and_logs_a_table_that_is_unusable(run_worker: RunWorker) -> None:
    worker = run_worker()
    worker.ready()
    table = write_table([Route(alias="a", path="/", to=(Target(server="web"),))], 5)
    worker.order("routes", [table], key="secret", trusted=["10.0.0.0/8"])
    os.close(table)
    with open(os.devnull) as file:
        worker.order("routes", [file.fileno()])
    worker.order("routes")
    worker.order("report")
    assert worker.event()["event"] == "ready"
    worker.order("stop")
    assert worker.text().count("ERROR:    the route table cannot be used: ") == 1
