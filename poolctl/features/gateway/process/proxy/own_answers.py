"""Responses by the gateway itself: for redirects and refusals of a route, and for a server that sleeps or starts."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from poolctl.http.messages import RequestHead
from poolctl.routing.decision import is_within
from poolctl.routing.match import EXACT, host_pattern, normal_host
from poolctl.routing.normal_path import normal_path
from poolctl.routing.route import Route

from ..backends.route_backends import SLEEPING, Backend
from ..edge import GatewayState
from .response_head import PLAIN_TEXT, Response, read_response, whole_response

RELOAD_SECONDS = 1
_HTML = re.compile(rb"(?:^|,)[\t ]*+text/html[\t ]*+(?:[;,]|$)", re.IGNORECASE)
_PAGE = f"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="robots" content="noindex">
<meta http-equiv="refresh" content="{RELOAD_SECONDS}">
<link rel="icon" href="data:,">
<title>Starting…</title>
<style>
  :root {{ color-scheme: light dark }}
  body {{ font: 1rem/1.5 system-ui, sans-serif; display: grid; place-content: center; min-height: 90vh; margin: 1rem }}
</style>
<main role="status">
  <h1>Starting…</h1>
  <p>This page reloads by itself until the application answers.</p>
</main>
</html>
""".encode()
# Fields of responses that are valid only until the server is ready. If not stored, an icon is requested again later.
_NOT_STORED = b"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
_PAGE_FIELDS = (
    _NOT_STORED
    + (
        f"Retry-After: {RELOAD_SECONDS}\r\n"
        "Content-Security-Policy: default-src 'none'; img-src data:; style-src 'unsafe-inline'\r\n"
    ).encode()
)


def answer_of_route(route: Route, request: RequestHead, client: str) -> Response | None:
    """The route's own response, a refusal or a redirect, to this client's request; None if a backend has to respond."""
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
    if not route.redirects_to_https:
        parts = urlsplit(to)
        return to.encode() if parts.path or parts.query else to.encode() + target
    host = normal_host(request.host.decode("latin-1"))
    if not host and host_pattern(route.host).tier == EXACT:
        host = route.host
    return f"https://{host}".encode() + target if host else b""


def spares_server(route: Route, method: bytes, path: bytes) -> bool:
    """Whether the request is a probe or for a favicon: the gateway answers it and does not wake a sleeping server."""
    return method in (b"GET", b"HEAD") and (path.endswith(b"/favicon.ico") or _is_probe(route, path))


def announce_request_to_parts(edge: GatewayState, route: Route, method: bytes, path: bytes) -> None:
    """Tell each feature's EdgePart that a request has arrived, unless `spares_server` is true for the request."""
    if edge.parts and not spares_server(route, method, path):
        for part in edge.parts.values():
            part.request_arrived(route)


def wake_and_answer(
    edge: GatewayState, backend: Backend, route: Route, request: RequestHead
) -> Response | None:
    """The gateway's own response while the backend sleeps or starts; None if the request waits for the backend.

    Wakes a sleeping server, unless `spares_server` is true for the request.
    """
    sleeps = backend.rank == SLEEPING
    if sleeps and spares_server(route, request.method, request.path):
        if _is_probe(route, request.path):
            return _response(200, request, _NOT_STORED, body=b"sleeping\n")
        return _response(404, request, _NOT_STORED)
    if sleeps:
        edge.wake(backend.key)
    if not takes_waiting_page(route, request):
        return None
    return _response(503, request, _PAGE_FIELDS, kind="text/html; charset=utf-8", body=_PAGE)


def takes_waiting_page(route: Route, request: RequestHead) -> bool:
    """Whether a browser requests a page, on a route that has a waiting page."""
    return (
        route.waiting_page
        and request.method == b"GET"
        and not request.upgrade
        and not request.body
        and request.get(b"sec-fetch-mode") in (b"", b"navigate")
        and _HTML.search(request.get(b"accept")) is not None
    )


def _is_probe(route: Route, path: bytes) -> bool:
    return bool(route.probe_responses) and normal_path(path.decode("latin-1")) in route.probe_responses


def _response(
    status: int, request: RequestHead, fields: bytes = b"", *, kind: str = PLAIN_TEXT, body: bytes = b""
) -> Response:
    head_only = request.method == b"HEAD"
    whole = whole_response(status, head_only=head_only, keep_alive=True, fields=fields, kind=kind, body=body)
    made = read_response(whole, 0, head_only=head_only)
    assert made is not None
    return made
