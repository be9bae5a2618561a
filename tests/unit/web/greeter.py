"""A site that greets, and clients of it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from poolctl.http.http_client import exchange
from poolctl.json_form import Table, to_json
from poolctl.selection.selector import Selector
from poolctl.supervisor.verbs.verb import Call, Verb
from poolctl.web.bearer_tokens import Peer
from poolctl.web.site import EndpointSite, Site, SiteLimits, SupervisorClient, response
from poolctl.web.site_server import SiteServer
from poolctl.web.web_process import ServedAddress


class Greeter(EndpointSite):
    """Answers each request with its word; /stream is a stream without an end, and /broken an error."""

    limits = SiteLimits(connections=8, keep_alive_seconds=60, body_bytes=1000, request_seconds=600)
    word = ""

    def configure(self, settings: Table) -> None:
        self.word = settings["word"]

    async def answer(self, request: Request, peer: Peer) -> Response:
        if request.url.path == "/stream":
            return StreamingResponse(self._endless(), media_type="text/event-stream")
        if request.url.path == "/broken":
            raise RuntimeError("broken")
        body = await request.body()
        return response(200, "text/plain", f"{self.word} {peer.key} {peer.certified} {len(body)}".encode())

    async def _endless(self) -> Any:
        yield "begun\n\n"
        await asyncio.sleep(3600)


class Hall:
    """Greets on a port of its own; `limits` are those of the site."""

    def __init__(self, **limits: Any) -> None:
        self._kind = type("Limited", (Greeter,), {"limits": Greeter.limits._replace(**limits)})
        self.tls: dict[str, Any] | None = None

    def begin(self) -> None:
        begun = threading.Event()

        async def serve() -> None:
            self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
            servers: set[asyncio.Task[None]] = set()
            address = ServedAddress(self._kind(SupervisorClient("/nowhere")), servers)
            listener = socket.create_server(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
            await address.serve({"word": "hello"}, self.tls, [listener], lambda problem, changed: None)
            begun.set()
            await self._over.wait()
            await address.close(drains=False)
            await asyncio.gather(*servers)

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self._thread.start()
        assert begun.wait(60)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(60)

    def connect(self, sent: bytes = b"") -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        sock.sendall(sent)
        return sock

    def ask(self, request: bytes) -> bytes:
        """Everything that is received until the connection is closed."""
        with self.connect(request) as sock:
            return everything(sock)


@contextmanager
def hall(tls: dict[str, Any] | None = None, **limits: Any) -> Iterator[Hall]:
    found = Hall(**limits)
    found.tls = tls
    found.begin()
    try:
        yield found
    finally:
        found.end()


class Direct(SupervisorClient):
    """Calls the verbs of a supervisor in this process."""

    def __init__(self, verbs: Mapping[str, Verb]) -> None:
        super().__init__("/nowhere", self.reports.append)
        self._verbs = verbs

    @cached_property
    def reports(self) -> list[Table]:
        return []

    async def ask(self, verb: str, options: Mapping[str, object], address: str = "") -> Table:
        call = Call(Selector(), dict(options), lambda line: None, lambda: {"address": address})
        return to_json(await self._verbs[verb](call))


Answer = tuple[int, dict[str, str], str]


@asynccontextmanager
async def served(site: Site) -> AsyncIterator[Callable[..., Awaitable[Answer]]]:
    """A function that sends a request of its own to the site, which is served until the end of the block."""
    ready = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = SiteServer(site)
        serving = asyncio.ensure_future(server.serve_site([listener], ready.set))
        await ready.wait()
        where = listener.getsockname()

        async def ask(path: str, method: str = "GET", body: bytes = b"", **fields: str) -> Answer:
            given = [
                ("Host", "x"),
                ("Connection", "close"),
                ("Content-Length", str(len(body))),
                *fields.items(),
            ]
            async with exchange(where, method, path, given, body) as response:
                content = b"".join([piece async for piece in response.body()])
                found = {name.decode(): value.decode() for name, value in response.head.headers}
                return response.status, found, content.decode()

        try:
            yield ask
        finally:
            server.stop()
            await serving


def everything(sock: socket.socket) -> bytes:
    received = b""
    try:
        while data := sock.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


def tls_of(cert: Path, key: Path, **more: Any) -> dict[str, Any]:
    return {
        "cert": str(cert), "key": str(key), "ca": None, "password": "",
        "client_auth": "none", "min_version": "1.2", "ciphers": None,
    } | more  # fmt: skip


def any_certificate() -> ssl.SSLContext:
    """A client that accepts every certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
