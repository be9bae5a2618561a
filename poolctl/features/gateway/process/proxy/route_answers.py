"""Responses that a route itself decides, before any backend is asked: to clients that it refuses, and redirects."""

from __future__ import annotations

from urllib.parse import urlsplit

from poolctl.http.message_head import RequestHead
from poolctl.routing.match import EXACT, host_pattern, normal_host
from poolctl.routing.networks import is_within
from poolctl.routing.route import Route

from .refusal import refusal
from .response_head import Response, read_response


def answer_of_route(route: Route, request: RequestHead, client: str) -> Response | None:
    """The response to this client's request; None if a backend gives it."""
    if route.allow and not is_within(client, route.allow):
        return _response(403, request)
    if route.redirect is None:
        return None
    location = _location(route, request)
    if not location:
        return _response(400, request)
    return _response(route.redirect.status, request, b"Location: %b\r\n" % location)


def _location(route: Route, request: RequestHead) -> bytes:
    """The location that the client is redirected to; b"" if neither the request nor the route names a host."""
    assert route.redirect is not None
    to, target = route.redirect.to, b"/" if request.target == b"*" else request.target
    if not route.only_plain:
        parts = urlsplit(to)
        return to.encode() if parts.path or parts.query else to.encode() + target
    host = normal_host(request.host.decode("latin-1"))
    if not host and host_pattern(route.host).tier == EXACT:
        host = route.host
    return f"https://{host}".encode() + target if host else b""


def _response(status: int, request: RequestHead, fields: bytes = b"") -> Response:
    head_only = request.method == b"HEAD"
    made = read_response(
        refusal(status, head_only=head_only, keep_alive=True, fields=fields), head_only=head_only
    )
    assert made is not None
    return made
