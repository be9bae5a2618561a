"""Compares the gateway with nginx and HAProxy: one worker, reached in every way, in short alternating turns.

Every measured process runs on one processor and the clients on the others, so rates are per core. Processor times
come from the kernel (/proc): on a busy machine rates favour processes that lead sessions, as workers do
(autogroups, sched(7)). Polling programs send identical requests; browsers vary them.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import socket
import ssl
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.certificates import certificate
from tests.load import http2
from tests.load.frames import TEXT, frame, new_key

from . import answers, processes, proxies
from .project import Project
from .report import Row
from .serving import APP_BEGINNING, CONNECTIONS, Side

ROUNDS = 7
ROUND_SECONDS = 0.2
IDLE_CONNECTIONS = 10_000
_SPARE_DESCRIPTORS = 500
_START_SECONDS = 30.0
_LARGE_AT_ONCE = 4
_MEGABYTE = 1 << 20
_END, _LAST_CHUNK = b"hello\n", b"\r\n0\r\n\r\n"
_FORM = b"name=value&" * 9
_FIELDS = b"user-agent: benchmark\r\naccept: */*\r\n"
_UPGRADE = (
    b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: %b\r\n"
)
_BROWSER_FIELDS = (
    b"user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    b"accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n"
    b"accept-language: en-GB,en;q=0.7,de;q=0.3\r\naccept-encoding: gzip, deflate, br, zstd\r\n"
    b"referer: https://shop.example.com/products/%d\r\nconnection: keep-alive\r\n"
    b"cookie: session=%032x; seen=%d; consent=all; theme=dark\r\nupgrade-insecure-requests: 1\r\n"
    b"sec-fetch-dest: document\r\nsec-fetch-mode: navigate\r\nsec-fetch-site: same-origin\r\nsec-fetch-user: ?1\r\n"
    b"priority: u=0, i\r\n"
)
_numbers = itertools.count()
POOLCTL, DIRECT = "poolctl", "direct"

APP = (
    """
LARGE = b"x" * ((1 << 20) - 6) + b"hello\\n"
PIECES = [LARGE[at : at + 65536] for at in range(0, len(LARGE), 65536)]


"""
    + APP_BEGINNING
    + """\
    if scope["method"] == "POST":
        while (await receive()).get("more_body"):
            pass
    if scope["path"] == "/chunked":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in PIECES:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    body = LARGE if scope["path"] == "/large" else b"hello\\n"
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})
"""
)


class Way(Side):
    """A way to the worker: its own port, or the port of a process in front of it."""

    def __init__(
        self, name: str, port: int, worker: int, before: int | None, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(port, worker)
        self.name = name
        self.before = Side(port, before) if before else None
        self._tls = tls
        self.http2_requests = 0  # on each kept connection, so far

    def connect(self) -> socket.socket:
        sock = super().connect()
        return sock if self._tls is None else self._tls.wrap_socket(sock, server_hostname="localhost")

    def spent_ns(self) -> int:
        """The processor time of the worker and the process in front of it so far."""
        return self.processor_ns() + (self.before.processor_ns() if self.before else 0)

    def request(self, method: bytes = b"GET", path: bytes = b"/", fields: bytes = b"") -> bytes:
        host = self.name.encode()
        return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%b\r\n" % (method, path, host, _FIELDS, fields)


def _read(sock: socket.socket, end: bytes) -> None:
    last = b""
    while not last.endswith(end):
        received = sock.recv(1 << 18)
        if not received:
            raise RuntimeError("a connection was closed")
        last = (last + received)[-len(end) :]


def _exchange(socks: list[socket.socket], sent: bytes, end: bytes = _END) -> int:
    for sock in socks:
        sock.sendall(sent)
    for sock in socks:
        _read(sock, end)
    return len(socks)


def _keep_alive(way: Way) -> int:
    return _exchange(way.kept(), way.request())


def _new_connection(way: Way) -> int:
    return _exchange_on_new_connections(way, way.request())


def _exchange_on_new_connections(way: Way, sent: bytes) -> int:
    socks = [way.connect() for _ in range(CONNECTIONS)]
    asked = _exchange(socks, sent)
    for sock in socks:
        sock.close()
    return asked


def _post(way: Way) -> bytes:
    return way.request(b"POST", fields=b"content-length: %d\r\n" % len(_FORM)) + _FORM


def _post_keep_alive(way: Way) -> int:
    return _exchange(way.kept(), _post(way))


def _post_new_connection(way: Way) -> int:
    return _exchange_on_new_connections(way, _post(way))


def _browser_keep_alive(way: Way) -> int:
    return _browse(way, way.kept())


def _browser_new_connection(way: Way) -> int:
    socks = [way.connect() for _ in range(CONNECTIONS)]
    asked = _browse(way, socks)
    for sock in socks:
        sock.close()
    return asked


def _browse(way: Way, socks: list[socket.socket]) -> int:
    """Send a request on each connection, with a different path, referer and cookie each time."""
    for user, sock in enumerate(socks):
        number = next(_numbers)
        fields = _BROWSER_FIELDS % (number - 1, user, number)
        sock.sendall(
            b"GET /products/%d?page=%d HTTP/1.1\r\nhost: %b\r\n%b\r\n"
            % (number, number % 9, way.name.encode(), fields)
        )
    for sock in socks:
        _read(sock, _END)
    return len(socks)


def _large_request(way: Way) -> int:
    head = way.request(b"POST", fields=b"content-length: %d\r\n" % _MEGABYTE)
    return _exchange(way.kept()[:_LARGE_AT_ONCE], head + bytes(_MEGABYTE))


def _large_response(way: Way) -> int:
    return _exchange(way.kept()[:_LARGE_AT_ONCE], way.request(path=b"/large"))


def _chunked_response(way: Way) -> int:
    return _exchange(way.kept()[:_LARGE_AT_ONCE], way.request(path=b"/chunked"), _LAST_CHUNK)


def _websocket(way: Way) -> int:
    return _exchange(way.kept(way.request(fields=_UPGRADE % new_key())), frame(TEXT, b"hello"))


MODES: dict[str, Callable[[Way], int]] = {
    "keep-alive": _keep_alive,
    "new connection": _new_connection,
    "POST, keep-alive": _post_keep_alive,
    "POST, new connection": _post_new_connection,
    "keep-alive of a browser": _browser_keep_alive,
    "new connection of a browser": _browser_new_connection,
    "request of 1 MB": _large_request,
    "response of 1 MB": _large_response,
    "response of 1 MB in chunks": _chunked_response,
    "WebSocket": _websocket,
}
TLS_MODES: dict[str, Callable[[Way], int]] = {
    "TLS, keep-alive": _keep_alive,
    "TLS, new connection": _new_connection,
}


def _http2(way: Way) -> int:
    greeting = b"" if way.http2_requests else http2.greeting()
    asked = _exchange(way.kept(), greeting + http2.get(way.http2_requests, way.name, "/"))
    way.http2_requests += 1
    return asked


HTTP2_MODES: dict[str, Callable[[Way], int]] = {"HTTP/2": _http2}


class Turn(NamedTuple):
    """The rate of requests, and the processor time of one: of the worker and the process in front of it."""

    rate: float
    microseconds: float


def run(options: Namespace) -> Iterator[Row]:
    rounds = 2 if options.quick else ROUNDS
    with ExitStack() as stack:
        stack.enter_context(_all_descriptors())
        plain, tls, http2_ways = _ways(stack)
        idle = 200 if options.quick else IDLE_CONNECTIONS
        yield from _memory(plain, idle)
        yield from _latency(plain, rounds)
        for modes, ways in (MODES, plain), (TLS_MODES, tls), (HTTP2_MODES, http2_ways):
            for mode, ask in modes.items():
                yield from _rows_of(mode, _in_short_turns(ways, ask, rounds))


def _ways(stack: ExitStack) -> tuple[list[Way], list[Way], list[Way]]:
    """The ways without TLS, with it, and over HTTP/2, with their processes running."""
    project = stack.enter_context(Project(1, app=APP))
    directory = project.directory
    pem, key = certificate(directory)
    with pem.open("ab") as file:
        file.write(key.read_bytes())
    ports = iter(answers.free_ports(6))
    plain_port, tls_port = next(ports), next(ports)
    path = directory / "pool.toml"
    path.write_text(
        f'[gateway]\nbind = [{{ bind = "127.0.0.1:{plain_port}" }},'
        f' {{ bind = "127.0.0.1:{tls_port}", tls = {{ cert = "{pem}", key = "{key}" }} }}]\n'
        '[[route]]\nto = "s0"\n' + path.read_text()
    )
    project.run("start")
    (item,) = json.loads(project.run("list", "-o", "json"))["items"]
    (worker,) = item["pids"]
    gateway = project.process("gateway")
    context, of_http2 = (ssl.create_default_context(cafile=str(pem)) for _ in range(2))
    of_http2.set_alpn_protocols(["h2"])
    plain = [Way(DIRECT, project.ports[0], worker, None), Way(POOLCTL, plain_port, worker, gateway)]
    tls = [Way(POOLCTL, tls_port, worker, gateway, context)]
    for name in filter(proxies.is_installed, ("nginx", "HAProxy")):
        first, second = next(ports), next(ports)
        pid = stack.enter_context(
            proxies.http_peer(
                name, directory, plain=first, tls=second, backend=project.ports[0], certificate=pem
            )
        )
        plain.append(Way(name, first, worker, pid))
        tls.append(Way(name, second, worker, pid, context))
    answers.wait_for_all([way.port for way in plain], _START_SECONDS)
    stack.enter_context(on_one_processor([worker, *(way.before.pid for way in plain if way.before)]))
    return (
        plain,
        tls,
        [Way(each.name, each.port, worker, each.before.pid, of_http2) for each in tls if each.before],
    )


@contextmanager
def on_one_processor(pids: list[int]) -> Iterator[None]:
    """Run the processes on the first processor, and this one on the others, if there are any."""
    usable = os.sched_getaffinity(0)
    first = {min(usable)}
    if len(usable) > 1:
        for pid in set(pids):
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), first)
        os.sched_setaffinity(0, usable - first)
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


@contextmanager
def _all_descriptors() -> Iterator[None]:
    """Raise the limit of descriptors for this process and its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _memory(ways: list[Way], most: int) -> Iterator[Row]:
    # HAProxy keeps a descriptor free for the server of each connection.
    count = min(most, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_DESCRIPTORS) // 2)
    for way in ways:
        if way.before is None:
            continue
        empty = processes.pss_bytes(way.before.pid) / 1e6
        socks = []
        try:
            for _ in range(count):
                socks.append(way.connect())
                _exchange(socks[-1:], way.request())
            full = processes.pss_bytes(way.before.pid) / 1e6
        finally:
            for sock in socks:
                sock.close()
        yield Row(f"PSS with {count} idle connections, {way.name}", "MB", [full], "with none", [empty])


def _latency(ways: list[Way], rounds: int) -> Iterator[Row]:
    """The latency that a way adds to the worker's own, with one request at a time."""
    found: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
    for way in _in_turns(ways, rounds):
        taken = []
        ends = time.perf_counter() + ROUND_SECONDS
        while (started := time.perf_counter()) < ends:
            _exchange(way.kept()[:1], way.request())
            taken.append(1e6 * (time.perf_counter() - started))
        found[way.name].append((statistics.median(taken), statistics.quantiles(taken, n=100)[-1]))
    for way in ways:
        way.close()
    for number, what in enumerate(("p50", "p99")):
        direct = [turn[number] for turn in found[DIRECT]]
        for name in found:
            if name != DIRECT:
                added = [turn[number] - least for turn, least in zip(found[name], direct, strict=True)]
                yield Row(f"added latency {what}, {name}", "µs", added, "the worker alone", direct)


def _in_short_turns(ways: list[Way], ask: Callable[[Way], int], rounds: int) -> dict[str, list[Turn]]:
    found: dict[str, list[Turn]] = {way.name: [] for way in ways}
    for way in ways:
        ask(way)  # the first requests are slower
    for way in _in_turns(ways, rounds):
        spent = way.spent_ns()
        asked, started = 0, time.perf_counter()
        while time.perf_counter() < started + ROUND_SECONDS:
            asked += ask(way)
        seconds = time.perf_counter() - started
        found[way.name].append(Turn(asked / seconds, (way.spent_ns() - spent) / 1000 / asked))
    for way in ways:
        way.close()
    return found


def _in_turns(ways: list[Way], rounds: int) -> Iterator[Way]:
    """Every way once per round, in varying order."""
    for number in range(rounds):
        first = number % len(ways)
        yield from ways[first:] + ways[:first]


def _rows_of(mode: str, found: dict[str, list[Turn]]) -> Iterator[Row]:
    for name, turns in found.items():
        against = DIRECT if DIRECT in found else "nginx"
        others = [] if name == against else found.get(against, [])
        yield Row(
            f"{mode}, {name}", "requests/s", [turn.rate for turn in turns],
            against if others else "", [turn.rate for turn in others],
        )  # fmt: skip
    for name, turns in found.items():
        others = [] if name == "nginx" else found.get("nginx", [])
        if name != DIRECT:
            yield Row(
                f"processor time, worker included, {mode}, {name}", "µs", [turn.microseconds for turn in turns],
                "nginx" if others else "", [turn.microseconds for turn in others],
            )  # fmt: skip
