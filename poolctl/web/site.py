"""Base classes and limits of sites, which answer requests at the pool's addresses, and their supervisor client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import request_response
from starlette.types import ASGIApp

from poolctl.clock import Clock
from poolctl.control.client import AsyncClient, NoSupervisor, SupervisorEnded
from poolctl.errors import ControlError
from poolctl.json_form import Table

from .bearer_tokens import Peer, Refused

# The maximum time that a request waits for the supervisor, for example while it is replaced.
SUPERVISOR_SECONDS = 30.0
_RETRY_SECONDS = 0.05


class SiteLimits(NamedTuple):
    """Limits for the clients of an address.

    `request_seconds` is for the head of a request, and again for its body. Above `connections`, the connection that has
    been without a request longest is closed.
    """

    connections: int
    keep_alive_seconds: float
    head_bytes: int = 16 * 1024
    body_bytes: int = 16 * 1024
    request_seconds: float = 10.0


class SupervisorClient:
    """Sends requests to the supervisor at `socket_path`; reports refused clients through `send`."""

    def __init__(self, socket_path: str, send: Callable[[Table], None] = lambda message: None) -> None:
        self.socket_path = socket_path
        self._client = AsyncClient(socket_path, silence_seconds=None)
        self._send = send

    async def ask(self, verb: str, options: Mapping[str, object], address: str = "") -> Table:
        """Return the supervisor's result for `verb` as JSON; `address` is the client's, for events.

        While the supervisor is replaced, the request waits for the next one. Raises TimeoutError.
        """
        body = {"options": options, "by": {"address": address}}
        async with asyncio.timeout(SUPERVISOR_SECONDS):
            while True:
                with contextlib.suppress(NoSupervisor, SupervisorEnded):
                    return await self._client.call(verb, body)
                await asyncio.sleep(_RETRY_SECONDS)

    def report_refusal(self, table: str, message: str) -> None:
        """Report to the supervisor that this table's address refused clients."""
        self._send({"t": "refused", "table": table, "message": message})


class Site:
    """Base class of sites. A site answers the requests at the address of a table.

    `app` is an ASGI application for HTTP only, called once a request's body has arrived. The request's state has the
    client as `peer`, None if it has disconnected.
    """

    limits: ClassVar[SiteLimits]
    app: ASGIApp

    def __init__(self, supervisor: SupervisorClient, clock: Clock | None = None) -> None:
        self.supervisor = supervisor
        self.clock = clock or Clock()

    def configure(self, settings: Table) -> None:
        """Serve according to these settings from now on. Called before the first request, and after each change."""
        raise NotImplementedError

    def error_body(self, message: str) -> tuple[str, bytes]:
        """Content type and body of an error response."""
        return "text/plain", f"{message}\n".encode()

    def close(self) -> None:
        """End open streams."""


class EndpointSite(Site):
    """Base class of sites with one function for all requests: `answer`."""

    def __init__(self, supervisor: SupervisorClient, clock: Clock | None = None) -> None:
        super().__init__(supervisor, clock)
        self.app = request_response(self._answer_or_refuse)

    async def answer(self, request: Request, peer: Peer) -> Response:
        """Answer the request of this client. Raises Refused, TimeoutError and ControlError."""
        raise NotImplementedError

    async def _answer_or_refuse(self, request: Request) -> Response:
        try:
            if (peer := request.state.peer) is None:
                raise Refused(400, "the client has left")
            return await self.answer(request, peer)
        except Refused as refused:
            kind, body = self.error_body(str(refused))
            return response(refused.status, kind, body, **refused.fields)
        except (TimeoutError, ControlError) as error:
            kind, body = self.error_body(str(error) or "the supervisor does not answer")
            return response(503, kind, body)


def response(status: int, kind: str, body: bytes, **fields: str) -> Response:
    """A response with exactly the content type `kind`: Starlette would add a charset to text types."""
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return Response(body, status, {"content-type": kind, **named})


def path_of(request: Request) -> str:
    """The path as the client has sent it, which may be part of a URL (RFC 9112 §3.2.2)."""
    sent: str = request.scope["raw_path"].decode("ascii")
    return sent if sent.startswith("/") else urlsplit(sent).path or "/"
