"""The site of [operator]: an endpoint to which clients report requests for a service.

The endpoint is compatible with KubeElasti's. Permission to report is checked for each request.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from poolctl.clock import Clock, ReportLimit
from poolctl.exit_codes import NOTHING_MATCHED
from poolctl.json_form import Table
from poolctl.routing.networks import is_within
from poolctl.web.bearer_tokens import Peer, Refused, Token, TokenCheck, bearer_token
from poolctl.web.site import EndpointSite, SiteLimits, SupervisorClient, path_of, response

ANSWER = "Request received successfully!"
_MAX_REQUESTS = 2**53


class Access(NamedTuple):
    """The clients that may report requests: with the token, an address in `trusted`, or a certificate of the CA.

    `open_to_all` admits every client; it is set for a Unix socket, which is protected by its file mode.
    """

    open_to_all: bool = False
    token: Token | None = None
    trusted: tuple[str, ...] = ()

    def needs_token(self, peer: Peer) -> bool:
        """Whether the client may report requests only with a token."""
        trusted = is_within(peer.address, self.trusted)
        return not (self.open_to_all or peer.certified or trusted)


class RequestCountReport(NamedTuple):
    """A client's report of requests that have arrived for a service."""

    service: str
    requests: int
    namespace: str


class OperatorSite(EndpointSite):
    """Answers clients that report requests for a service, which is then scaled up.

    Unless the configured namespace is None, reports for other namespaces are answered with 404.
    """

    # Go's clients keep their connections for 90 seconds.
    limits = SiteLimits(connections=64, keep_alive_seconds=120)

    def __init__(self, supervisor: SupervisorClient, clock: Clock | None = None) -> None:
        super().__init__(supervisor, clock)
        self._refusals = ReportLimit()
        self._tokens = TokenCheck()

    def configure(self, settings: Table) -> None:
        self._endpoint = str(settings["endpoint"])
        self._namespace: str | None = settings["namespace"]
        token = Token(settings["token"]) if settings["token"] else None
        self._access = Access(settings["open_to_all"], token, tuple(settings["trusted"]))

    def error_body(self, message: str) -> tuple[str, bytes]:
        return "application/json", _message(message)

    async def answer(self, request: Request, peer: Peer) -> Response:
        self._authorize(request, peer)
        report = self._read(request, await request.body())
        result = await self.supervisor.ask("report_requests", report._asdict(), peer.address)
        if result["exit_code"] == NOTHING_MATCHED:
            raise Refused(404, f"unknown service: {report.service[:200]!r}")
        return response(200, "application/json", _message(ANSWER))

    def _authorize(self, request: Request, peer: Peer) -> None:
        """Raise Refused if the client may not report requests."""
        access = self._access
        if not access.needs_token(peer):
            return
        try:
            if access.token is None:
                raise Refused(403, "address not trusted")
            sent = bearer_token(request.headers.get("authorization", ""))
            self._tokens.accepted(sent, [access.token], peer.key, self.clock.monotonic())
        except Refused as refused:
            # Recorded as at most one event a minute.
            if refused.status in (401, 403) and (
                count := self._refusals.count_to_report(self.clock.monotonic())
            ):
                message = f"{count} reports of requests refused, the last one from {peer.ip}"
                self.supervisor.report_refusal("operator", message)
            raise

    def _read(self, request: Request, body: bytes) -> RequestCountReport:
        """The report of the client. Raises Refused."""
        if path_of(request) != self._endpoint:
            raise Refused(404, f"the endpoint is {self._endpoint}")
        if request.method != "POST":
            raise Refused(405, "Invalid request method", allow="POST")
        try:
            report = read_report(body)
        except ValueError as error:
            raise Refused(400, f"Invalid request body: {error}") from None
        if self._namespace is not None and report.namespace != self._namespace:
            raise Refused(404, f"unknown namespace: {report.namespace[:200]!r}")
        return report


def read_report(body: bytes) -> RequestCountReport:
    """Parse a report from JSON. A missing `count` means 1, a missing `namespace` means "". Raises ValueError."""
    try:
        report = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(report, dict):
        raise ValueError("it is not a JSON object")
    service, count, namespace = report.get("svc"), report.get("count", 1), report.get("namespace", "")
    if not isinstance(service, str) or not service:
        raise ValueError("svc is not the name of a service")
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MAX_REQUESTS:
        raise ValueError("count is not a number of requests")
    if not isinstance(namespace, str):
        raise ValueError("namespace is not a name")
    return RequestCountReport(service, count, namespace)


def _message(text: str) -> bytes:
    return json.dumps({"message": text}).encode()
