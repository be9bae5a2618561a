"""Responses of the gateway itself for a server that sleeps or starts: to probes, for icons, and a page for browsers."""

from __future__ import annotations

import re

from poolctl.http.message_head import RequestHead
from poolctl.routing.normal_path import normal_path
from poolctl.routing.route import Route

from ..backends import SLEEPING, Backend
from ..edge import Edge
from .response_head import Response, read_response

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
_PAGE_FIELDS = (
    f"Retry-After: {RELOAD_SECONDS}\r\n"
    "Content-Security-Policy: default-src 'none'; img-src data:; style-src 'unsafe-inline'\r\n"
)
# Browsers ask for an icon again if this is not stored.
_NOT_FOUND = "404 Not Found", b"404 Not Found\n"


def spares_server(route: Route, method: bytes, path: bytes) -> bool:
    """Whether the gateway answers the request instead of waking a server: a probe, or a browser asking for an icon."""
    return method in (b"GET", b"HEAD") and (path.endswith(b"/favicon.ico") or _is_probe(route, path))


def report_arrival(edge: Edge, route: Route, method: bytes, path: bytes) -> None:
    """Report the request to the parts of features, unless it is one that wakes no server."""
    if edge.parts and not spares_server(route, method, path):
        for part in edge.parts.values():
            part.arrived(route)


def own_answer(edge: Edge, backend: Backend, route: Route, request: RequestHead) -> Response | None:
    """The response to give instead of asking a backend that sleeps or starts; None if the request waits for it.

    Has the server woken unless it is spared, so that the connection to it does not have to do that.
    """
    sleeps = backend.rank == SLEEPING
    if sleeps and spares_server(route, request.method, request.path):
        status, body = ("200 OK", b"sleeping\n") if _is_probe(route, request.path) else _NOT_FOUND
        return _response(status, "text/plain; charset=utf-8", body, head_only=request.method == b"HEAD")
    if sleeps:
        edge.wake(backend.key)
    if not takes_waiting_page(route, request):
        return None
    return _response("503 Service Unavailable", "text/html; charset=utf-8", _PAGE, _PAGE_FIELDS)


def takes_waiting_page(route: Route, request: RequestHead) -> bool:
    """Whether the request is a browser's for a page, on a route that has a waiting page."""
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


def _response(status: str, kind: str, body: bytes, lines: str = "", *, head_only: bool = False) -> Response:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{lines}\r\n"
    ).encode()
    found = read_response(head if head_only else head + body, head_only=head_only)
    assert found is not None
    return found
