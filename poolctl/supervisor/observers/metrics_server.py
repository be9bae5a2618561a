"""Serves the metrics and the pool's health over HTTP on one address; the keeper holds its listener for a successor.

No slow or hostile client can hold up the answers.
"""

from __future__ import annotations

import asyncio
import json
import socket
from ipaddress import ip_address

from poolctl.config import Tables
from poolctl.http.http_server import Received, Responder, ServerLimits
from poolctl.http.message_head import BadMessage
from poolctl.keeper import fd_store
from poolctl.monitor.event_queue import Events
from poolctl.monitor.exposition import OPENMETRICS, TEXT, wants_openmetrics
from poolctl.routing.route_health import FULL, SIMPLE, SUMMARY
from poolctl.runners.process_link import Link

from .held_address import HeldAddress, HttpEndpoint
from .pool_health import HealthOfPool, PoolHealth
from .pool_metrics import PoolMetrics


class MetricsAddress(HeldAddress["MetricsServer"]):
    """The address of `[metrics]`."""

    def __init__(self, keeper: Link, events: Events, metrics: PoolMetrics, health: PoolHealth) -> None:
        super().__init__(keeper, events, fd_store.METRICS, "metrics")
        self._metrics = metrics
        self._health = health
        self._path = ""

    def follow(self, tables: Tables) -> None:
        """Serve as `[metrics]` says from now on, or nowhere."""
        table = tables.metrics
        self._path = "" if table is None else table.path
        self.serve_at(None if table is None else table.bind)

    def make_server(self) -> MetricsServer:
        """See HeldAddress."""
        return MetricsServer(self._metrics, self._health, self._path)

    async def configure(self, server: MetricsServer) -> None:
        """See HeldAddress."""
        server.path = self._path


LIMITS = ServerLimits(
    head_bytes=16 * 1024,
    body_bytes=16 * 1024,
    request_seconds=10.0,
    keep_alive_seconds=120.0,  # Prometheus scrapes every minute, by default, and keeps its connection
    connections=32,
)
_FRESH_SECONDS = 0.5  # every client gets the same text for this time


# Where the health is, in which depth. 503 if something does not serve that should.
HEALTH = {"/health": SIMPLE, "/health/summary": SUMMARY, "/health/full": FULL}


class MetricsServer(HttpEndpoint):
    """Answers `GET path` with the metrics, and the paths of `HEALTH` with the pool's health."""

    def __init__(self, metrics: PoolMetrics, health: PoolHealth, path: str) -> None:
        super().__init__(LIMITS, "scrapes of the metrics")
        self.path = path
        self._metrics = metrics
        self._health = health
        self._latest_health: tuple[float, HealthOfPool] | None = None
        self._latest: dict[bool, tuple[float, str]] = {}
        self._rendering = asyncio.Lock()

    def refuse(self, error: BadMessage) -> tuple[int, str, bytes]:
        """See HttpHandler."""
        return error.status, "text/plain", f"not a request: {error}\n".encode()

    async def handle(self, request: Received, response: Responder) -> None:
        """See HttpHandler."""
        head = request.head
        path = head.path.decode()
        plain = ("content-type", "text/plain")
        if head.method not in (b"GET", b"HEAD"):
            await response.send(405, [("allow", "GET, HEAD"), plain], b"only GET\n")
        elif path != self.path and path in HEALTH:
            await self._send_health(HEALTH[path], request, response)
        elif path != self.path:
            await response.send(404, [plain], f"the metrics are at {self.path}\n".encode())
        else:
            openmetrics = wants_openmetrics(head.get(b"accept").decode("latin-1"))
            kind = ("content-type", OPENMETRICS if openmetrics else TEXT)
            await response.send(200, [kind, ("vary", "accept")], (await self._fresh(openmetrics)).encode())

    async def _send_health(self, depth: str, request: Received, response: Responder) -> None:
        if depth == FULL and not _is_local(request.sock):
            message = (
                b"addresses and errors are shown to clients of this machine alone: see /health/summary\n"
            )
            await response.send(403, [("content-type", "text/plain")], message)
            return
        async with self._rendering:
            now = asyncio.get_running_loop().time()
            if self._latest_health is None or now - self._latest_health[0] >= _FRESH_SECONDS:
                self._latest_health = now, await self._health.health()
            found = self._latest_health[1]
        body = json.dumps(found.in_depth(depth)).encode() + b"\n"
        fields = [("content-type", "application/json"), ("cache-control", "no-store")]
        await response.send(200 if found.serves else 503, fields, body)

    async def _fresh(self, openmetrics: bool) -> str:
        # Clients that scrape at the same time get the same text.
        async with self._rendering:
            loop = asyncio.get_running_loop()
            at, text = self._latest.get(openmetrics, (float("-inf"), ""))
            if loop.time() - at >= _FRESH_SECONDS:
                text = await self._metrics.text(openmetrics)
                self._latest[openmetrics] = loop.time(), text
            return text


def _is_local(sock: socket.socket) -> bool:
    """Whether the client is on this machine."""
    if sock.family == socket.AF_UNIX:
        return True
    try:
        client = ip_address(sock.getpeername()[0].partition("%")[0])
    except (OSError, ValueError):
        return False
    return (getattr(client, "ipv4_mapped", None) or client).is_loopback
