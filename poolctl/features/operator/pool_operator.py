"""The operator feature in the supervisor: accepts reports of requests, and has the gateway report its own requests.

The endpoint is compatible with KubeElasti's: clients report requests for a service, and the service is scaled up.
Permission to report is checked for each request. No slow or hostile client can hold up the others.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from poolctl.address import parse
from poolctl.clock import Clock, ReportLimit
from poolctl.config import Tables
from poolctl.core.core import Core
from poolctl.errors import ServerError
from poolctl.features.gateway.supervision.gateway_manager import GatewayManager, GatewayPart
from poolctl.http.http_server import ReceivedRequest, Responder, ServerLimits
from poolctl.http.messages import BadMessage
from poolctl.json_form import Table, to_json
from poolctl.keeper import fd_store
from poolctl.monitor.event_queue import EventBus
from poolctl.monitor.metrics import Family, Row, families_of
from poolctl.routing.decision import is_within
from poolctl.supervisor.active_configuration import SupervisorContext
from poolctl.supervisor.feature_parts import PartContext
from poolctl.supervisor.observers.bearer_tokens import Refused, TokenCheck, peer_of, token_digest
from poolctl.supervisor.observers.held_address import HttpAddressServer, HttpEndpoint

from .client import OperatorSettings
from .table import OperatorTable

_PACKAGE = __package__ or ""
LIMITS = ServerLimits(
    head_bytes=16 * 1024,
    body_bytes=16 * 1024,
    request_seconds=10.0,
    keep_alive_seconds=120.0,  # Go's clients keep their connections for 90 seconds
    connections=64,
)
ANSWER = "Request received successfully!"
_MOST_REQUESTS = 2**53


class Access(NamedTuple):
    """Who may report requests: clients with the token, an address in `trusted` or a certificate of the configured CA.

    `open_to_all` admits every client; it is set for a Unix socket, which is protected by its file mode.
    """

    open_to_all: bool = False
    token: str = ""
    trusted: tuple[str, ...] = ()

    def needs_token(self, request: ReceivedRequest) -> bool:
        """Whether the client may report requests only with a token."""
        known = is_within(_client_ip_address(request.sock), self.trusted)
        return not (self.open_to_all or request.certified or known)

    @property
    def digest(self) -> bytes:
        """The digest of the token."""
        return token_digest(self.token.encode())


class RequestCountReport(NamedTuple):
    """A client's report of requests that have arrived for a service."""

    service: str
    requests: int
    namespace: str


class RequestReportEndpoint(HttpEndpoint):
    """An HTTP endpoint that scales up a service when a client reports requests for it by a POST to the path `endpoint`.

    `endpoint`, `access` and `namespace` may be changed at any time. Unless `namespace` is None, reports for
    other namespaces are answered with 404.
    """

    def __init__(self, core: Core, events: EventBus) -> None:
        super().__init__(LIMITS, "reports of requests")
        self.endpoint = ""
        self.access = Access()
        self.namespace: str | None = None
        self._core = core
        self._events = events
        self.clock = Clock()  # limits the rate of events, and wrong tokens
        self._requests = ReportLimit()  # by service
        self._refusals = ReportLimit()
        self._tokens = TokenCheck()

    def error_response(self, error: BadMessage) -> tuple[int, str, bytes]:
        """Status, content type and JSON body of the response to an invalid request."""
        return error.status, "application/json", _message(f"not a request: {error}")

    async def handle(self, request: ReceivedRequest, response: Responder) -> None:
        """Scale the service for which the client reports requests, and send a response; refuses invalid requests."""
        fields = [("content-type", "application/json")]
        status, message = 200, ANSWER
        try:
            self._authorize(request)
            self._wake_service(request)
        except Refused as refused:
            status, message = refused.status, str(refused)
            fields += refused.fields
        await response.send(status, fields, _message(message))

    def _authorize(self, request: ReceivedRequest) -> None:
        """Raise Refused if the client may not report requests."""
        access = self.access
        if not access.needs_token(request):
            return
        try:
            if not access.token:
                raise Refused(403, "address not trusted")
            self._tokens.holder_of_token(request, peer_of(request.sock), [access], self.clock.monotonic())
        except Refused as refused:
            if refused.status in (401, 403):
                self._record_refusal_event(request)
            raise

    def _wake_service(self, request: ReceivedRequest) -> None:
        """Wake the service that the request reports on, or ask for more workers. Raises Refused."""
        head = request.head
        if head.path.decode() != self.endpoint:
            raise Refused(404, f"the endpoint is {self.endpoint}")
        if head.method != b"POST":
            raise Refused(405, "Invalid request method", allow="POST")
        try:
            report = read_report(request.body)
        except ValueError as error:
            raise Refused(400, f"Invalid request body: {error}") from None
        if self.namespace is not None and report.namespace != self.namespace:
            raise Refused(404, f"unknown namespace: {report.namespace[:200]!r}")
        try:
            workers = self._core.wake_and_count_planned_workers(report.service, report.requests)
        except KeyError:
            raise Refused(404, f"unknown service: {report.service[:200]!r}") from None
        self._record_report_event(report, workers)

    # Events, whose number is limited, however often clients report.

    def _record_report_event(self, report: RequestCountReport, workers: int) -> None:
        name = report.service
        count = self._requests.count_to_report(self.clock.monotonic(), report.requests, name)
        if not count:
            return
        message = f"{count} requests wait elsewhere" if count != 1 else "1 request waits elsewhere"
        if not workers:
            message += "; the server is not to run, and stays as it is"
        self._events.record(
            "scale",
            "requests reported",
            server=name,
            message=message,
            cause="an operator's client",
            requests=count,
            workers=workers,
            namespace=report.namespace[:200],
        )

    def _record_refusal_event(self, request: ReceivedRequest) -> None:
        if count := self._refusals.count_to_report(self.clock.monotonic()):
            client = _client_ip_address(request.sock) or "a client that has left"
            message = f"{count} reports of requests refused, the last one from {client}"
            self._events.record("audit", "operator client refused", message=message, severity="warning")


class OperatorAddressServer(HttpAddressServer[RequestReportEndpoint, OperatorTable]):
    """Listens on the address in [operator], and serves an RequestReportEndpoint there."""

    def __init__(self, environment: SupervisorContext, events: EventBus, core: Core) -> None:
        super().__init__(environment, events, fd_store.OPERATOR, "operator")
        self._core = core

    def make_server(self) -> RequestReportEndpoint:
        return RequestReportEndpoint(self._core, self._events)

    async def set_up_server(
        self, server: RequestReportEndpoint, table: OperatorTable, env: Mapping[str, str]
    ) -> None:
        access = access_of(table, env)
        required = not (access.token or access.trusted)
        await self.use_certificate(server, table.tls, env, mtls_required=required)
        server.endpoint, server.access, server.namespace = table.endpoint, access, table.namespace


def access_of(table: OperatorTable, env: Mapping[str, str]) -> Access:
    """The rules for who may report requests. Raises ServerError for a missing token."""
    token = env.get(table.token_env, "").strip() if table.token_env else ""
    if table.token_env and not token:
        raise ServerError(
            f"the environment variable {table.token_env} is not set",
            hint=f"export {table.token_env}=… before poolctl start",
        )
    return Access(
        open_to_all=parse(table.bind or "").kind == "unix",
        token=token,
        trusted=tuple(map(str, table.trusted)),
    )


def read_report(body: bytes) -> RequestCountReport:
    """Parse a report from JSON. A missing `count` means 1, a missing `namespace` means "". Raises ValueError."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    service, count, namespace = found.get("svc"), found.get("count", 1), found.get("namespace", "")
    if not isinstance(service, str) or not service:
        raise ValueError("svc is not the name of a service")
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MOST_REQUESTS:
        raise ValueError("count is not a number of requests")
    if not isinstance(namespace, str):
        raise ValueError("namespace is not a name")
    return RequestCountReport(service, count, namespace)


def _message(text: str) -> bytes:
    return json.dumps({"message": text}).encode()


def _client_ip_address(sock: socket.socket) -> str:
    """The client's IP address; "" for a client that has left, and for one of a Unix socket, which is never refused."""
    try:
        peer = sock.getpeername()
    except OSError:
        return ""
    return str(peer[0]) if isinstance(peer, tuple) else ""


class PoolOperator(GatewayPart):
    """A supervisor part that receives reports of request counts at `bind`, and has the gateway report to `url`."""

    def __init__(self, site: PartContext) -> None:
        super().__init__(site)
        self._table: OperatorTable | None = None
        self._address = OperatorAddressServer(site.environment, site.events, site.core)

    def apply_tables(self, tables: Tables) -> None:
        """Serve the address that [operator] configures, and apply its settings."""
        table = self._table = tables.get(OperatorTable)
        self._address.serve_table(table if table is not None and table.bind is not None else None)

    def connect(self, gateway: GatewayManager) -> None:
        gateway.process_parts[_PACKAGE] = self._reporter_settings

    def _reporter_settings(self) -> Table | None:
        if self._table is None:
            return None
        configuration = self.site.environment.configuration
        settings = settings_of(self._table, configuration.environment, configuration.name)
        return None if settings is None else to_json(settings)

    @property
    def problems(self) -> Iterable[str]:
        return [f"[operator]: {self._address.problem}"] if self._address.problem else []

    async def wait_for_opening_attempt(self) -> None:
        """Wait until the endpoint's address is open, or could not be opened; returns at once if none is configured."""
        await self._address.wait_for_opening_attempt()

    def gateway_metrics(self, reports: Table) -> Iterable[Family]:
        found = reports.get(_PACKAGE)
        return families_of(_METRICS, [(found, {})]) if found is not None else ()

    async def stop_serving(self) -> None:
        await self._address.close()


def settings_of(table: OperatorTable, env: Mapping[str, str], pool_name: str) -> OperatorSettings | None:
    """The settings of the client that informs an operator; None without a url."""
    if table.url is None:
        return None
    tls = table.tls or None
    return OperatorSettings(
        url=table.url,
        endpoint=table.endpoint,
        retry_seconds=table.retry,
        namespace=table.namespace or pool_name,
        token=env.get(table.token_env, "").strip() if table.token_env else "",
        ca=table.ca or "",
        cert=tls.cert if tls else "",
        key=(tls.key or "") if tls else "",
        key_password=env.get(tls.password_env, "") if tls and tls.password_env else "",
    )


_METRICS: Sequence[Row[Table]] = (
    ("poolctl_gateway_operator_requests", "counter", "Requests that the operator was informed of.",
     lambda each: each["delivered"]),
    ("poolctl_gateway_operator_unsent_requests", "gauge", "Requests that it has not confirmed yet.",
     lambda each: sum(each["unsent"].values())),
    ("poolctl_gateway_operator_failing_services", "gauge", "Services whose last report has failed.",
     lambda each: len(each["failing"])),
)  # fmt: skip
