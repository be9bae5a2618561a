"""Clients of every kind of a pool that HAProxy serves, while its routes and its servers change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from tests.certificates import certificate
from tests.load import Load, Report
from tests.ports import claim_port
from tests.programs import program
from tests.real_pool import RealPool

pytestmark = [pytest.mark.slow, pytest.mark.integration]

FILE = """
[gateway]
bind = ["127.0.0.1:{plain}", {{ bind = "127.0.0.1:{tls}", tls = {{ cert = "localhost.pem", key = "localhost.key" }} }}]
[defaults]
app = "tests.load.apps:app"
drain_timeout = "2s"
[[stream]]
bind = "127.0.0.1:{tcp}"
to = "database"
[[server]]
name = "database"
bind = "127.0.0.1:auto"
[[server]]
name = "{server}"
bind = "127.0.0.1:{port}"
[[route]]
alias = "all"
to = "{server}"
"""
EXTRA = '[[route]]\nalias = "extra"\nhost = "extra.example"\nto = "database"\n'
SHORT = ("kept connections with pauses", "HTTP/2", "WebSockets", "event streams", "TCP streams")
ANSWERS = 3  # of each kind of clients after each change


class Kind(NamedTuple):
    """Kinds of clients: what they ask, and the name of the port that they ask it on."""

    mode: str
    port: str = "plain"
    options: Mapping[str, Any] = MappingProxyType({})


KINDS = {
    "new connections": Kind("new_connection"),
    "kept connections": Kind("keep_alive"),
    "kept connections with pauses": Kind("keep_alive", options={"pause": 0.05}),
    "pipelined requests": Kind("pipelined"),
    "HTTP/2": Kind("http2", "tls"),
    "new TLS connections": Kind("new_connection", "tls"),
    "kept TLS connections": Kind("keep_alive", "tls"),
    "WebSockets": Kind("websocket"),
    "event streams": Kind("sse"),
    "uploads": Kind("bodies", options={"body_bytes": 1_000_000}),
    "chunked uploads": Kind("chunked", options={"body_bytes": 100_000}),
    "slow downloads": Kind("stream", options={"chunks": 10, "chunk_pause": 0.1}),
    "responses without a body": Kind("bodiless"),
    "TCP streams": Kind("keep_alive", "tcp", {"pause": 0.01}),
}


class Clients:
    """A pool, and clients of every kind."""

    def __init__(self, pool: RealPool, until: Callable[..., Any]) -> None:
        program("haproxy")
        certificate(pool.directory)
        self.pool = pool
        self.until = until
        self.ports = {name: claim_port() for name in ("plain", "tls", "tcp")}
        self.has_extra = False
        self.server, self.port = "one", claim_port()
        self.loads: dict[str, Load] = {}

    def write(self) -> None:
        text = FILE.format(**self.ports, server=self.server, port=self.port)
        self.pool.write("pool.toml", text + EXTRA * self.has_extra)

    @contextlib.contextmanager
    def asking(self, *, connections: int, pause: float, kinds: Iterable[str] = KINDS) -> Iterator[None]:
        """These kinds of clients ask, over this number of connections each, with pauses of seconds between requests."""
        self.loads = {
            name: Load(
                [self.ports[kind.port]], kind.mode, connections=connections, tls=kind.port == "tls",
                patience=30.0, **{"pause": pause, **kind.options},
            )
            for name, kind in ((name, KINDS[name]) for name in kinds)
        }  # fmt: skip
        self.write()
        self.pool.ok("start")
        with contextlib.ExitStack() as stack:
            for load in self.loads.values():
                load.start(answered=False)
                stack.callback(load.stop)
            self.settle()
            yield

    def settle(self) -> None:
        """Wait until every kind of clients has been answered."""
        start = self.look()
        self.until(
            lambda: all(
                answers(now) >= answers(start[name]) + ANSWERS * (KINDS[name].mode != "stream")
                for name, now in self.look().items()
            )
        )

    def look(self) -> dict[str, Report]:
        return {name: load.look() for name, load in self.loads.items()}

    def judge(self) -> None:
        """Fail if a request has failed."""
        failed = {name: load.report for name, load in self.loads.items() if load.report.failed}
        pipelined = failed.get("pipelined requests")
        # RFC 9112 §9.6: the client knows that a request behind one that is answered with "close" was not processed.
        if pipelined is not None and all("closed after an answer" in each for each in pipelined.failures):
            del failed["pipelined requests"]
        assert failed == {}

    # Changes.

    def reload_routes(self) -> None:
        self.has_extra = not self.has_extra
        self.write()
        self.pool.ok("reload")
        self.settle()

    def replace_server(self, *, with_routes: bool = False) -> None:
        """Have another server take over the route, and remove the one before; `with_routes` needs another HAProxy."""
        self.has_extra ^= with_routes
        self.server, self.port = "two" if self.server == "one" else "one", claim_port()
        self.write()
        self.pool.ok("reload")
        self.settle()

    def move_server(self) -> None:
        """Have the server listen on another port."""
        self.port = claim_port()
        self.write()
        self.pool.ok("reload")
        self.settle()

    def command(self, *words: str) -> None:
        self.pool.ok(*words)
        self.settle()


def answers(report: Report) -> int:
    return report.complete + report.messages


@pytest.fixture
def clients(real_pool: RealPool, until: Callable[..., Any]) -> Clients:
    return Clients(real_pool, until)


@pytest.mark.capability
def test_reload_of_routes_and_servers_loses_no_request(clients: Clients) -> None:
    with clients.asking(connections=1, pause=0.03, kinds=SHORT):
        clients.reload_routes()
        after = clients.look()
        assert {after[name].complete for name in ("WebSockets", "event streams")} == {0}, "they stay"
        clients.replace_server(with_routes=True)
    clients.judge()


def test_idle_connection_that_is_used_again_during_a_replacement_is_not_reset(clients: Clients) -> None:
    """Each client has an idle connection when a process is replaced, and uses it again at another moment."""
    clients.write()
    clients.pool.ok("start")
    connections = [HTTPConnection("127.0.0.1", clients.ports["plain"], timeout=60) for _ in range(30)]
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor())
        for each in connections:
            stack.callback(each.close)
        asked_again = 0
        for _ in range(5):
            done = executor.submit(clients.reload_routes)
            while not done.done():
                for each in connections:
                    asked_again += each.sock is not None
                    each.request("GET", "/")
                    response = each.getresponse()
                    response.read()
                    assert response.status == 200
            done.result()
    assert asked_again > 5 * len(connections), asked_again


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_no_change_loses_a_request_of_any_kind_of_client(clients: Clients) -> None:
    with clients.asking(connections=2, pause=0.003):
        for _ in range(3):
            clients.reload_routes()
            clients.replace_server()
            clients.replace_server(with_routes=True)
            clients.command("scale", clients.server, "2")
            clients.command("restart", clients.server)
            clients.move_server()
            clients.command("restart")
            clients.reload_routes()
            clients.command("scale", clients.server, "1")
    clients.judge()
