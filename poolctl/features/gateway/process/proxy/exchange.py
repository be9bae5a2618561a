"""One request to a backend and its response back."""

from __future__ import annotations

import asyncio
from time import monotonic

from poolctl.http.chunked_body import Buffer
from poolctl.http.message_head import BadMessage, RequestHead
from poolctl.routing.context import context_line

from ..backends import ANSWERED, CANCELLED, FAILED, READY, UNUSED, Lease, Limiter, NoBackend, RequestOutcome
from ..counts import CONNECT, PROTOCOL, REFUSED, RESET, TIMEOUT
from ..edge import Edge
from .backend_connection import BackendConnection
from .client_side import ClientSide
from .forwarded_head import reported, response_fields
from .gateway_access_log import CLIENT_LEFT, AccessLogEntry
from .request_routing import RoutedRequest
from .response_head import Response
from .route_answers import answer_of_route
from .sleeping_answers import own_answer, report_arrival
from .timer_wheel import Timer

# Maximum bytes of a request's body kept until the response begins, for a retry or until there is a backend.
MOST_KEPT_BYTES = 64 * 1024
_TRY_ANOTHER = (502, 503, 504)


class Exchange:
    """Forwards one request to a backend. Call `start`, then `send_body` for the rest of the request's body.

    `timer` is the client side's, used until the exchange ends.
    """

    __slots__ = (
        "_assigned_at", "_backends", "_client", "_connection", "_cookie", "_counts", "_edge", "_ends", "_half_closed",
        "_head", "_kept", "_lease", "_log_entry", "_of_client", "_paused", "_received", "_repeats", "_request",
        "_retries", "_route", "_sent", "_side", "_started", "_status", "_stuck", "_task", "_timer", "_tried", "begun",
        "complete", "tunnel",
    )  # fmt: skip

    def __init__(
        self,
        edge: Edge,
        side: ClientSide,
        request: RequestHead,
        routed: RoutedRequest,
        timer: Timer,
    ) -> None:
        self._edge, self._side, self._request, self._timer = edge, side, request, timer
        route, self._client, self._head, forwarding, self._backends, self._counts, _ = routed
        self._route = route
        self._log_entry: AccessLogEntry | None = None
        if edge.access_log is not None:
            sender = forwarding.sender_of(request)
            self._log_entry = edge.access_log.begin(request, sender, side.http_version)
            self._head = self._log_entry.identified(self._head)
        self._cookie = request.cookie(route.sticky_cookie) if route.sticky_cookie else ""
        self._of_client: Limiter | None = None  # among whose requests in flight it is
        self._connection: BackendConnection | None = None
        self._lease: Lease | None = None
        self._task: asyncio.Task[None] | None = None  # waits for a place, or connects
        self._kept: bytes | None = b""  # of the body, all that has come; None when it became too much
        self._tried: list[str] = []
        self._retries = route.retries
        self._repeats = 0
        self._status = 0
        self._received = self._sent = 0  # bytes of the bodies
        self._paused = False  # the client accepts no bytes of the response for now
        self._stuck = False  # the backend accepts no bytes of the request for now
        self.begun = False  # the response
        self.complete = False  # the request
        self.tunnel = self._half_closed = False  # bytes of another protocol are copied
        self._started = self._assigned_at = monotonic()
        self._ends = self._started + route.timeouts.total if route.timeouts.total else 0.0

    def __repr__(self) -> str:
        return f"<Exchange {self._request!r} on {self._route.alias}>"

    # The request.

    def start(self, body: bytes, *, complete: bool) -> None:
        """Send the request to a backend, with the part of its body that is there."""
        self._kept = body
        self._received = len(body)
        self.complete = complete
        self._counts.began()
        response = answer_of_route(self._route, self._request, self._client)
        if response is not None:
            self._answer(response)
            return
        clients = self._backends.clients
        limiter = None if clients is None else clients.limiter(self._client)
        if limiter is not None:
            seconds = limiter.refused_seconds(self._started)
            if seconds:
                self._give_up(CANCELLED, 429, REFUSED, seconds)
                return
            limiter.enter(self._started)
            self._of_client = limiter
        report_arrival(self._edge, self._route, self._request.method, self._request.path)
        self._acquire()

    def send_body(self, data: Buffer, *, complete: bool) -> None:
        """Send more of the body, in the framing that the head names."""
        self.complete = complete
        self._received += len(data)
        connection = self._connection
        if self._kept is not None:
            fits = len(self._kept) + len(data) <= MOST_KEPT_BYTES or not connection
            self._kept = self._kept + data if fits else None
        if connection is not None:
            connection.send(data)
            timeouts = self._route.timeouts
            self._wait(timeouts.idle if self.begun or not complete else timeouts.head)
        elif self._kept is not None and len(self._kept) > MOST_KEPT_BYTES:
            self._side.take_body(False)

    def client_left(self) -> None:
        """The client has gone; no more bytes are sent to it."""
        self._end(CANCELLED)

    def client_eof(self) -> None:
        """The client closed its side of the tunnel."""
        if self._connection is not None:
            self._connection.send_eof()
            self._one_end_closed()

    def client_writable(self, writable: bool) -> None:
        """The client takes more of the response again, or does not for now."""
        self._paused = not writable
        if self._connection is not None and self.begun:
            if writable:
                self._connection.resume_reading()
                self._wait(self._route.timeouts.idle)
            else:
                self._connection.pause_reading()

    def refuse(self, status: int) -> None:
        """End with this status because the client's request is at fault; a response that has begun is cut off."""
        self._give_up(CANCELLED, status)

    # A backend.

    def _acquire(self) -> None:
        lease = self._backends.acquire(self._client, self._cookie, self._tried)
        if isinstance(lease, NoBackend):
            if lease.may_wait:
                self._wait(0)
                self._task = self._edge.pool.start(self._wait_for_place())
            else:
                self._refused(lease)
            return
        self._assigned(lease)

    async def _wait_for_place(self) -> None:
        try:
            lease = await self._backends.wait(self._client, self._cookie, self._tried)
        except NoBackend as refused:
            self._task = None
            self._refused(refused)
            return
        self._task = None
        self._assigned_at = monotonic()
        self._assigned(lease)

    def _assigned(self, lease: Lease) -> None:
        if lease.backend.rank != READY:
            response = own_answer(self._edge, lease.backend, self._route, self._request)
            if response is not None:
                lease.release(UNUSED)
                self._answer(response)
                return
        self._lease = lease
        self._send()

    def _answer(self, response: Response) -> None:
        """End with a whole response of the gateway's own."""
        self._status, self._sent = response.status, response.first_size
        self._respond(response)
        self.response_ends(b"")

    def _refused(self, refused: NoBackend) -> None:
        self._give_up(CANCELLED, refused.status, REFUSED, refused.retry_after_seconds)

    def _send(self, *, fresh: bool = False) -> None:
        """Send the received part of the request on an idle connection or a new one."""
        assert self._lease is not None
        backend, certain = self._lease.backend, not self._request.idempotent
        connection = None if fresh else self._edge.pool.take(backend.endpoint, certain=certain)
        if connection is not None:
            self._use(connection)
        else:
            self._wait(self._edge.connect_seconds(backend, self._route.timeouts.connect))
            self._task = self._edge.pool.start(self._connect())

    async def _connect(self) -> None:
        assert self._lease is not None
        try:
            connection = await self._edge.reach(self._lease.backend, self._route.timeouts.connect)
        except NoBackend as refused:
            self._task = None
            self._refused(refused)
        except (OSError, ValueError):  # ValueError: a host name that cannot be one
            self._task = None
            self._failed(CONNECT, 502, sent=False)
        else:
            self._task = None
            connection.belongs_to(self._lease.backend)
            self._use(connection)

    def _use(self, connection: BackendConnection) -> None:
        kept, request = self._kept, self._request
        assert kept is not None
        self._connection = connection
        timeouts = self._route.timeouts
        self._wait(timeouts.head if self.complete else timeouts.idle)
        head = self._head
        assert self._lease is not None
        backend = self._lease.backend
        if self._route.context_headers:
            head = head[:-2] + reported(self._route, backend) + b"\r\n"
        if backend.context_key:
            head = head[:-2] + context_line(self._route.alias, backend.context_key) + b"\r\n"
        connection.request(
            self,
            head + kept if kept else head,
            head_only=request.method == b"HEAD",
            decode=not self._side.takes_chunks,
            may_switch=bool(request.upgrade),
        )
        if len(kept) > MOST_KEPT_BYTES:
            self._kept = None
            self._side.take_body(True)

    # Its response.

    def interim(self, response: Response) -> None:
        self._side.interim(response)

    def switched(self, response: Response, data: bytes) -> None:
        self.begun = self.tunnel = True
        self._status, self._kept = 101, None
        assert self._lease is not None
        self._lease.connected()
        self._wait(self._route.timeouts.idle)
        self._side.switch(response, data)

    def response_begins(self, response: Response, *, done: bool) -> None:
        assert self._lease is not None
        status = self._status = response.status
        if self._retries and status in _TRY_ANOTHER and self._try_another():
            return
        if self._lease.cookie:
            name = self._route.sticky_cookie
            response.add(
                f"Set-Cookie: {name}={self._lease.cookie}; Path=/; HttpOnly; SameSite=Lax\r\n".encode()
            )
        self.begun = True
        self._kept = None
        if not done:
            self._wait(self._route.timeouts.idle)
            self._lease.connected(status)
        self._sent = response.first_size
        self._respond(response)

    def _respond(self, response: Response) -> None:
        if self._route.response_headers:
            lines, replaced = response_fields(self._route.response_headers)
            response.replace(replaced, lines)
        self._side.respond(response)

    def response_data(self, data: Buffer) -> None:
        self._wait(self._route.timeouts.idle)
        self._sent += len(data)
        self._side.send_data(data)

    def response_ends(self, trailers: bytes) -> None:
        self._end(ANSWERED)
        self._side.finish(trailers)

    def backend_eof(self) -> None:
        self._side.send_eof()
        self._one_end_closed()

    def _one_end_closed(self) -> None:
        """One side of the tunnel has closed; the exchange ends when both have."""
        if not self._half_closed:
            self._half_closed = True
            return
        self._end(ANSWERED)
        self._side.finish(b"")

    def backend_writable(self, writable: bool) -> None:
        self._stuck = not writable
        self._side.take_body(writable)

    def backend_lost(self, error: Exception | None) -> None:
        connection = self._connection
        assert connection is not None
        if self.tunnel:
            self._end(ANSWERED)
            self._side.finish(b"")
            return
        # An idle connection that the backend was closing: the request has probably not been seen.
        stale = connection.requests > 1 and not connection.answered and not self._repeats
        if stale and self._request.idempotent and self._kept is not None:
            self._connection = None
            self._repeats += 1
            self._send(fresh=True)
            return
        self._failed(PROTOCOL if isinstance(error, BadMessage) else RESET, 502, sent=True)

    def _try_another(self) -> bool:
        """Whether another backend gets the request, because this one's response is not worth passing on."""
        lease = self._lease
        assert lease is not None
        if self._kept is None or not self._request.idempotent:
            return False
        tried = [*self._tried, lease.backend.key]
        other = self._backends.acquire(self._client, self._cookie, tried)
        if isinstance(other, NoBackend):
            return False
        now = monotonic()
        lease.release(ANSWERED, now - self._assigned_at, self._status)
        self._leave_connection(keep=False)
        self._tried, self._lease, self._assigned_at = tried, None, now
        self._retries -= 1
        self._assigned(other)
        return True

    # Its end.

    def _failed(self, error: str, status: int, *, sent: bool) -> None:
        """The backend has failed: try another backend if the request may be sent again, or report it to the client."""
        lease, self._lease = self._lease, None
        assert lease is not None
        self._leave_connection(keep=False)
        now = monotonic()
        lease.release(FAILED, now - self._assigned_at, 0, error)
        self._assigned_at = now
        may_repeat = self._kept is not None and (not sent or self._request.idempotent)
        if self._retries and may_repeat and not self.begun:
            self._retries -= 1
            self._tried.append(lease.backend.key)
            self._acquire()
            return
        if not sent and self._kept is not None:
            # The request has had no effect, so another backend may get it, even if the route allows no retries.
            self._tried.append(lease.backend.key)
            other = self._backends.acquire(self._client, self._cookie, self._tried)
            if not isinstance(other, NoBackend):
                self._assigned(other)
                return
        self._give_up(FAILED, status, error)

    def _expired(self) -> None:
        if self._connection is None:
            if self._task is not None:
                self._task.cancel()
                self._task = None
            if self._lease is not None:
                self._failed(TIMEOUT, 504, sent=False)
            else:
                self._give_up(CANCELLED, 504, TIMEOUT)
        elif self._paused if self.begun else not self.complete and not self._stuck:
            self.refuse(408)  # the client does not go on
        else:
            self._failed(TIMEOUT, 504, sent=True)

    def _give_up(
        self, outcome: RequestOutcome, status: int, error: str = "", retry_after_seconds: float = 0
    ) -> None:
        """End with this status; a response that has begun is cut off."""
        if self.begun:
            self._end(outcome, error)
            self._side.cut_off()
        else:
            self._status = status
            self._end(outcome, error)
            headers = self._route.response_headers
            self._side.refuse(status, retry_after_seconds, response_fields(headers).lines if headers else b"")

    def _end(self, outcome: RequestOutcome, error: str = "") -> None:
        """Release the connection and the lease, and count the outcome of the request."""
        self._timer.stop()
        if self._task is not None:
            self._task.cancel()
            self._task = None
        now = monotonic()
        if self._of_client is not None:
            self._of_client.leave()
            self._of_client = None
        if self._connection is not None:
            self._leave_connection(keep=outcome is ANSWERED and self.complete)
        if self._lease is not None:
            traffic = self._lease.backend.counts
            traffic.bytes_in += self._received
            traffic.bytes_out += self._sent
            self._lease.release(outcome, now - self._assigned_at, self._status)
            self._lease = None
        self._counts.bytes_in += self._received
        self._counts.bytes_out += self._sent
        if error:
            self._counts.failed(error)
        elif outcome is ANSWERED:
            self._counts.answered(self._status, now - self._started)
        else:
            self._counts.disconnected()
        if self._log_entry is not None:
            self._log_entry.write(self._status or CLIENT_LEFT, now - self._started)

    def _leave_connection(self, *, keep: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if keep and connection.reusable:
            if self._paused:
                connection.resume_reading()
            self._edge.pool.give_back(connection)
        else:
            connection.close(gently=self.tunnel)

    def _wait(self, seconds: float) -> None:
        """Set the time limit of the next step, which is at most the rest of the total time."""
        if self._ends:
            left = max(self._ends - monotonic(), 0.001)
            seconds = min(seconds, left) if seconds else left
        self._timer.start(seconds, self._expired)
