"""A request that a backend has executed is not sent again, neither by HAProxy nor by a client that is told to."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.gateway.haproxy.configuration import ServerAddresses, configuration_of
from poolctl.features.gateway.haproxy.listeners import HaproxyListener
from poolctl.features.gateway.program import program_version
from poolctl.routing.route import Route, StreamRoute, Target, Timeouts, TrafficLimits
from tests.environments import need_gateway
from tests.features.gateway.scripted_haproxy import gateway_settings
from tests.load import http2
from tests.ports import claim_port
from tests.programs import program
from tests.real_pool import RealPool

ANSWER_SECONDS = 20.0
UPGRADE = "Connection: Upgrade\r\nUpgrade: echo\r\n"


class Backend:
    """An HTTP/1.1 server. It counts requests that it has read as a whole, by method and path.

    /dies closes the connection instead of an answer; /dies-once does so the first time. Two requests for /meet at the
    same time set `has_met`. /negotiate authenticates connections. An upgrade is answered with 101, and the
    connection then echoes.
    """

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        self.executed: Counter[str] = Counter()
        self.connections = 0
        self.has_met = False
        self.meeting_seconds = 0.0
        self._barrier = threading.Barrier(2)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.connections += 1
                self._open.add(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError), sock.makefile("rb") as file:
                authenticated = False
                while line := file.readline():
                    head = "".join(iter(lambda: file.readline().decode().strip("\r\n") + "\n", "\n")).lower()
                    length = re.search(r"content-length: (\d+)", head)
                    file.read(int(length[1]) if length else 0)
                    method, path = line.decode().split()[:2]
                    authenticated |= "authorization: negotiate 2" in head
                    with self._lock:
                        self.executed[f"{method} {path}"] += 1
                    if path == "/meet":
                        self._meet()
                    if not self._answer(sock, path, f"{method} {path}", head, authenticated):
                        return
        finally:
            self._open.discard(sock)
            sock.close()

    def _meet(self) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            self._barrier.wait(0 if self.has_met else self.meeting_seconds)
            self.has_met = True
        self._barrier.reset()

    def _answer(self, sock: socket.socket, path: str, name: str, head: str, authenticated: bool) -> bool:
        """Whether the connection stays open."""
        if path == "/dies" or (path == "/dies-once" and self.executed[name] == 1):
            return False
        if "connection: upgrade" in head:
            sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
            while data := sock.recv(100):
                sock.sendall(data)
            return False
        refused = path == "/negotiate" and not authenticated
        status = "401 No\r\nWWW-Authenticate: Basic realm=a, Negotiate" if refused else "200 OK"
        close = "connection: close" in head
        last = "Connection: close\r\n" if close else ""
        sock.sendall(f"HTTP/1.1 {status}\r\n{last}Content-Length: 2\r\n\r\nok".encode())
        return not close

    def close(self) -> None:
        self.listener.close()
        for sock in [*self._open]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Gateway:
    """HAProxy with a route, or with the port of a program, for HTTP/1.1 and HTTP/2 (without TLS)."""

    def __init__(self, backend: Backend, http1: int, http2_port: int) -> None:
        self.backend = backend
        self.ports = {"HTTP/1.1": http1, "HTTP/2": http2_port}


Start = Callable[..., Gateway]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start HAProxy before a backend, with the route's keys."""
    with contextlib.ExitStack() as stack:

        def begin(*, is_stream: bool = False, **keys: object) -> Gateway:
            executable = program("haproxy")
            backend = Backend()
            stack.callback(backend.close)
            socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
            binds = (f"fd@{socks[0].fileno()}", f"fd@{socks[1].fileno()} proto h2")
            listener = HaproxyListener(binds, alias="a" if is_stream else "")
            to = (Target(url=f"http://127.0.0.1:{backend.port}"),)
            routes = [] if is_stream else [Route(alias="a", to=to, **keys)]  # type: ignore[arg-type]
            streams = [
                StreamRoute(alias="a", bind="", to=to, protocol="http", timeouts=Timeouts(idle=0.0))
            ] * is_stream
            settings = gateway_settings(version=program_version(executable) or (0, 0))
            made = configuration_of(settings, [listener], routes, streams, ServerAddresses({}))
            for name, text in {"haproxy.cfg": made.text(), **made.all_files}.items():
                (tmp_path / name).write_text(text)
            process = subprocess.Popen(
                [executable, "-db", "-f", str(tmp_path / "haproxy.cfg")],
                pass_fds=[each.fileno() for each in socks],
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return Gateway(backend, *(each.getsockname()[1] for each in socks))

        yield begin


class Client:
    """A client with one connection. `ask` returns the status, or how else the request has ended."""

    def __init__(self, gateway: Gateway, protocol: str = "HTTP/1.1") -> None:
        self.sock = socket.create_connection(("127.0.0.1", gateway.ports[protocol]), ANSWER_SECONDS)
        self._is_http2 = protocol == "HTTP/2"
        self._requests = 0
        if self._is_http2:
            self.sock.sendall(http2.greeting())

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, method: str, path: str, fields: str = "") -> str:
        number, self._requests = self._requests, self._requests + 1
        if self._is_http2:
            get = http2.get(number, "a", path)
            self.sock.sendall(http2.post(number, "a", path, b"x") if method == "POST" else get)
            return http2.read_outcome(self.sock, number)
        body = "x" if method == "POST" else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
        self.sock.sendall(f"{head}{body}".encode())
        with self.sock.makefile("rb") as file:
            status = file.readline().decode()
            head = "".join(iter(lambda: file.readline().decode().strip("\r\n"), "")).lower()
            length = re.search(r"content-length: ?(\d+)", head)
            file.read(int(length[1]) if length else 0)
        return status.split()[1] if status else "closed"


@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_post_whose_server_dies_is_executed_once_and_answered_with_502(
    start: Start, protocol: str, is_stream: bool
) -> None:
    gateway = start(is_stream=is_stream)
    with Client(gateway) as other:
        assert other.ask("GET", "/") == "200"  # its connection to the backend is idle now
        for before in (0, 3):
            with Client(gateway, protocol) as client:
                found = [client.ask(method, "/") for method in ("GET", "POST", "GET")[:before]]
                assert found == ["200"] * before
                assert client.ask("POST", "/dies") == "502"
    assert gateway.backend.executed["POST /dies"] == 2


@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_get_whose_server_dies_is_retried(start: Start, protocol: str, is_stream: bool) -> None:
    gateway = start(is_stream=is_stream)
    with Client(gateway, protocol) as client:
        assert [client.ask("GET", path) for path in ("/", "/dies-once")] == ["200", "200"]
    assert gateway.backend.executed["GET /dies-once"] == 2


def test_get_has_a_kept_connection_and_post_one_of_its_own(start: Start) -> None:
    gateway = start()
    with Client(gateway) as client:
        assert client.ask("GET", "/") == "200"
        before = gateway.backend.connections
        assert {client.ask("GET", "/") for _ in range(5)} == {"200"}
        assert gateway.backend.connections == before
        assert {client.ask("POST", "/") for _ in range(5)} == {"200"}
        assert gateway.backend.connections == before + 5
        assert client.ask("GET", "/") == "200"
        assert gateway.backend.connections == before + 5


def test_posts_of_a_repeatable_route_have_kept_connections_and_are_retried(start: Start) -> None:
    gateway = start(repeatable=True)
    with Client(gateway) as client:
        assert client.ask("GET", "/") == "200"
        before = gateway.backend.connections
        assert {client.ask("POST", "/") for _ in range(5)} == {"200"}
        assert gateway.backend.connections == before
        assert client.ask("POST", "/dies-once") == "200"
    assert gateway.backend.executed["POST /dies-once"] == 2


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_upgrade_passes_whatever_its_method(start: Start, method: str) -> None:
    gateway = start()
    with Client(gateway) as client:
        assert client.ask(method, "/", UPGRADE) == "101"
        client.sock.sendall(b"ping")
        assert client.sock.recv(9)[-4:] == b"ping"


def test_post_after_a_negotiation_is_sent_on_the_authenticated_connection(start: Start) -> None:
    gateway = start()
    with Client(gateway) as client:
        steps = [client.ask("GET", "/negotiate", f"Authorization: Negotiate {n}\r\n") for n in (1, 2)]
        assert [*steps, client.ask("POST", "/negotiate"), client.ask("GET", "/negotiate")] == [
            "401", "200", "200", "200",
        ]  # fmt: skip


@pytest.mark.parametrize("concurrency", [1, 2])
def test_limit_of_a_target_counts_requests_of_all_methods(start: Start, concurrency: int) -> None:
    limit = TrafficLimits(concurrency=concurrency, queue=20, queue_seconds=ANSWER_SECONDS)
    gateway = start(backend_limit=limit)
    gateway.backend.meeting_seconds = 0.2 if concurrency == 1 else ANSWER_SECONDS / 2

    def ask(number: int) -> str:
        with Client(gateway) as client:
            return client.ask(("GET", "POST")[number % 2], "/meet")

    with ThreadPoolExecutor(6) as pool:
        assert {*pool.map(ask, range(6))} == {"200"}
    assert gateway.backend.has_met is (concurrency == 2)


APP = """
import os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    if scope["method"] == "POST":
        with open("executed", "a") as file:
            file.write(scope["path"] + "\\n")
        os._exit(1)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
"""
PROGRAM = """
import http.server, os

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        with open("executed", "a") as file:
            file.write(self.path + "\\n")
        os._exit(1)

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.capability
def test_post_that_kills_its_worker_is_executed_logged_and_counted_once(
    real_pool: RealPool, until: Any
) -> None:
    need_gateway()
    real_pool.write("dying.py", APP)
    real_pool.write("program.py", PROGRAM)
    port, own, other = (claim_port() for _ in range(3))
    targets = {"app": "app", "program": "program", "url": f"http://127.0.0.1:{own}"}
    routes = "".join(
        f'[[route]]\nalias = "{name}"\npath = "/{name}"\nto = "{to}"\n' for name, to in targets.items()
    )
    real_pool.write(
        "pool.toml",
        f'[gateway]\nbind = "127.0.0.1:{port}"\naccess_log = true\n{routes}'
        f'[[server]]\nname = "app"\nbind = "127.0.0.1:{own}"\napp = "dying:app"\nworkers = 2\n'
        f'[[server]]\nname = "program"\nbind = "127.0.0.1:{other}"\nsocket = "proxied"\nworkers = 2\n'
        f'command = ["{sys.executable}", "program.py"]\n',
    )
    real_pool.ok("start")
    gateway = Gateway(Backend(), port, port)
    for name in targets:
        with Client(gateway) as client:
            assert [client.ask(*each) for each in (("GET", f"/{name}"), ("POST", f"/{name}"))] == [
                "200",
                "502",
            ]
    executed = (real_pool.directory / "executed").read_text().split()
    assert executed == [f"/{name}" for name in targets]

    def errors() -> dict[str, int]:
        rows = json.loads(real_pool.ok("backends", "-o", "json").stdout)["items"]
        return {each["host"]: each["errors"] for each in rows}

    until(lambda: errors() == dict.fromkeys(targets.values(), 1), what=lambda: str(errors()))
    (log,) = real_pool.runtime.rglob("gateway-access.log")
    until(lambda: re.findall(r'"POST (\S+) HTTP/1.1" 502', log.read_text()) == executed)
