"""The site of [metrics]: metrics and the pool's health, both made by the supervisor."""

from __future__ import annotations

import asyncio
import json

from starlette.requests import Request
from starlette.responses import Response

from poolctl.clock import Clock
from poolctl.json_form import Table
from poolctl.routing.route_health import FULL, SIMPLE, SUMMARY

from .bearer_tokens import Peer, Refused
from .site import EndpointSite, SiteLimits, SupervisorClient, path_of, response

TEXT = "text/plain; version=0.0.4; charset=utf-8"

# The depth of the health report by path. The status is 503 if a route or server that should serve does not.
HEALTH = {"/health": SIMPLE, "/health/summary": SUMMARY, "/health/full": FULL}
FRESH_SECONDS = 0.5  # every client gets the same answer for this time


class MetricsSite(EndpointSite):
    """Answers `GET path` with the metrics, and the paths in `HEALTH` with the pool's health."""

    # Prometheus scrapes every minute, by default, and keeps its connection.
    limits = SiteLimits(connections=32, keep_alive_seconds=120)

    _path = ""

    def __init__(self, supervisor: SupervisorClient, clock: Clock | None = None) -> None:
        super().__init__(supervisor, clock)
        # By content type or depth: when the answer was requested, and the answer.
        self._latest: dict[str, tuple[float, asyncio.Future[Table]]] = {}

    def configure(self, settings: Table) -> None:
        self._path = str(settings["path"])

    async def answer(self, request: Request, peer: Peer) -> Response:
        path = path_of(request)
        if request.method not in ("GET", "HEAD"):
            raise Refused(405, "only GET", allow="GET, HEAD")
        if path == self._path:
            metrics = await self._recent_answer(TEXT, "metrics", {})
            return response(200, TEXT, str(metrics["text"]).encode())
        if path not in HEALTH:
            raise Refused(404, f"the metrics are at {self._path}")
        depth = HEALTH[path]
        if depth == FULL and not peer.is_local:
            message = "addresses and errors are shown to clients of this machine alone: see /health/summary"
            raise Refused(403, message)
        report = await self._recent_answer(depth, "health", {"depth": depth})
        body = json.dumps(health_by_name(report, depth)).encode() + b"\n"
        return response(
            503 if report["exit_code"] else 200, "application/json", body, cache_control="no-store"
        )

    async def _recent_answer(self, kind: str, verb: str, options: Table) -> Table:
        # Clients that ask at the same time get the same answer.
        now = self.clock.monotonic()
        requested_at, answer = self._latest.get(kind, (now, None))
        if answer is None or (answer.done() and requested_at + FRESH_SECONDS <= now):
            answer = asyncio.ensure_future(self.supervisor.ask(verb, options))
            self._latest[kind] = now, answer
        return await asyncio.shield(answer)


def health_by_name(result: Table, depth: str) -> Table:
    """The health of each route and server, from the result of the verb `health`."""
    healths = {item.pop("name"): item for item in map(dict, result["items"])}
    for health in healths.values():
        del health["kind"]
    return {name: health["status"] for name, health in healths.items()} if depth == SIMPLE else healths
