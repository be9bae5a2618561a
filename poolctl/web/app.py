"""The page and its requests: login, a stream of the pool's state, actions, logs."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from poolctl.clock import Clock
from poolctl.errors import ControlError
from poolctl.values import Table

from .authentication import COOKIE_PATH, LIFE_SECONDS, Attempts, EndedSessions, Guard, Session, Sessions
from .hub import Hub
from .streams import Tails, with_pulse

STATIC = Path(__file__).with_name("static")
ACTIONS = ("start", "stop", "restart", "drain", "undrain")
_WAITS = ("start", "stop", "restart")
_LONGEST_SECONDS = 300.0
_MOST_BYTES = 256 * 1024

Endpoint = Callable[[Request], Awaitable[Response]]


class PageSettings(NamedTuple):
    """`key` and `name` are the pool's; `tls` holds the paths cert and key, and the password of the key.

    `ended_path` is the file of the ended sessions.
    """

    socket_path: str
    logs_directory: str
    key: str
    name: str
    token: str
    hosts: tuple[str, ...] = ()
    tls: Mapping[str, Any] | None = None
    ended_path: str = ""


class Actions:
    """Has the supervisor perform confirmed actions, in the name of the dashboard."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def perform(self, wish: Mapping[str, Any], address: str) -> tuple[int, Table]:
        """HTTP status and answer of {"action": …, "servers": […]}; `address` is the client's."""
        action, servers = wish.get("action"), wish.get("servers")
        if action not in ACTIONS:
            return 400, {"error": f"an action is one of {', '.join(ACTIONS)}"}
        if not isinstance(servers, list) or not servers or not all(map(_is_name, servers)):
            return 400, {"error": "servers is a list of names"}
        options: Table = {"progress": False}
        if action in _WAITS:
            options |= {"timeout": _LONGEST_SECONDS, "wait": True}
        by = {"command": f"dashboard {action}", "address": address}
        try:
            result = await self._hub.ask(action, servers, options, by, timeout_seconds=_LONGEST_SECONDS + 10)
        except (ControlError, TimeoutError) as error:
            return 503, {"error": str(error) or "the supervisor does not answer"}
        keys = ("items", "errors", "warnings", "exit_code")
        return 200, {key: result.get(key) for key in keys}


def _is_name(text: Any) -> bool:
    """Whether it is a valid server name: an address or a wildcard is not."""
    return (
        isinstance(text, str)
        and text != ""
        and all(char.isascii() and (char.isalnum() or char in "._-") for char in text)
    )


def make_app(settings: PageSettings, over: asyncio.Event, clock: Clock | None = None) -> ASGIApp:
    """The ASGI application of a dashboard. It queries the supervisor at `settings.socket_path`.

    Its streams end when `over` is set.
    """
    time = clock or Clock()
    hub = Hub(settings.socket_path, time)
    page = _Page(
        settings,
        hub,
        Sessions(settings.token, settings.key, time, EndedSessions(settings.ended_path, time)),
        Attempts(time),
        over,
    )
    return Guard(Starlette(routes=page.routes()), settings.hosts)


class _Page:
    def __init__(
        self, settings: PageSettings, hub: Hub, sessions: Sessions, attempts: Attempts, over: asyncio.Event
    ) -> None:
        self._settings = settings
        self._hub = hub
        self._sessions = sessions
        self._attempts = attempts
        self._over = over
        self._actions = Actions(hub)
        self._tails = Tails(hub, settings.logs_directory)

    def routes(self) -> list[BaseRoute]:
        """The routes of the page; those below COOKIE_PATH get the cookie."""
        own = {
            "session": (self._session, "GET"),
            "stream": (self._stream, "GET"),
            "logs": (self._logs, "GET"),
            "server": (self._server, "GET"),
            "routes": (self._routes, "GET"),
            "actions": (self._act, "POST"),
            "logout": (self._logout, "POST"),
        }
        guarded = [
            Route(f"{COOKIE_PATH}/{name}", self._known(endpoint, method == "POST"), methods=[method])
            for name, (endpoint, method) in own.items()
        ]
        return [
            Route("/", _index),
            Route(f"{COOKIE_PATH}/login", self._login, methods=["POST"]),
            *guarded,
            Mount("/static", StaticFiles(directory=STATIC)),
        ]

    # Login.

    def _known(self, endpoint: Endpoint, changes: bool) -> Endpoint:
        """The endpoint for clients that are logged in, or send the token; `changes` needs the CSRF token too."""

        async def checked(request: Request) -> Response:
            if self._attempts.wait_seconds() == 0 and (token := _bearer(request)):
                if self._sessions.knows(token):
                    return await endpoint(request)
                self._attempts.failed()
            session = self._session_of(request)
            if session is None:
                return JSONResponse({"error": "log in first"}, 401)
            if changes and not session.has(request.headers.get("x-csrf-token", "")):
                return JSONResponse({"error": "the request does not come from the page"}, 403)
            return await endpoint(request)

        return checked

    def _session_of(self, request: Request) -> Session | None:
        return self._sessions.find(request.cookies.get(self._sessions.cookie_name, ""))

    async def _login(self, request: Request) -> Response:
        wait = math.ceil(self._attempts.wait_seconds())
        if wait:
            headers = {"retry-after": str(wait)}
            return JSONResponse({"error": f"too many wrong tokens; wait {wait} s"}, 429, headers)
        token = (await _document(request)).get("token")
        if not isinstance(token, str) or not self._sessions.knows(token.strip()):
            self._attempts.failed()
            return JSONResponse({"error": "wrong token"}, 401)
        session, cookie = self._sessions.open()
        response = self._about(session)
        response.set_cookie(
            self._sessions.cookie_name,
            cookie,
            max_age=LIFE_SECONDS,
            path=COOKIE_PATH,
            secure=self._settings.tls is not None,
            httponly=True,
            samesite="strict",
        )
        return response

    async def _logout(self, request: Request) -> Response:
        session = self._session_of(request)
        if session is not None:
            self._sessions.end(session)
        response = Response(status_code=204)
        response.delete_cookie(self._sessions.cookie_name, path=COOKIE_PATH)
        return response

    async def _session(self, request: Request) -> Response:
        return self._about(self._session_of(request))

    def _about(self, session: Session | None) -> Response:
        return JSONResponse({"csrf": session.csrf if session else "", "pool": self._settings.name})

    # The pool's state.

    async def _stream(self, request: Request) -> Response:
        return self._streamed(self._hub.view())

    async def _logs(self, request: Request) -> Response:
        servers = request.query_params.getlist("server")
        try:
            paths = await self._tails.paths(servers)
        except (ControlError, TimeoutError) as error:
            return JSONResponse({"error": str(error) or "the supervisor does not answer"}, 503)
        if not paths:
            return JSONResponse({"error": "there is no such server"}, 404)
        return self._streamed(self._tails.follow(paths))

    def _streamed(self, messages: AsyncGenerator[str]) -> Response:
        return StreamingResponse(with_pulse(messages, self._over), media_type="text/event-stream")

    async def _server(self, request: Request) -> Response:
        """Workers and failure of one server. Not its configuration, whose values may be secret."""
        name = request.query_params.get("name", "")
        found = await self._asked("show", [name])
        if isinstance(found, Response):
            return found
        keys = (
            "name", "worker_list", "failure", "complaint", "overrides", "endpoints", "generation", "preload_problem",
        )  # fmt: skip
        items = [{key: item.get(key) for key in keys} for item in found["items"]]
        return JSONResponse({"items": items, "errors": found["errors"]})

    async def _routes(self, request: Request) -> Response:
        found = await self._asked("routes", [])
        if isinstance(found, Response):
            return found
        # A pool without a gateway has none, and an older supervisor does not support the verb.
        return JSONResponse({"items": found["items"] if found["exit_code"] == 0 else []})

    async def _asked(self, verb: str, targets: list[str]) -> Table | Response:
        try:
            return await self._hub.ask(verb, targets, {})
        except (ControlError, TimeoutError) as error:
            return JSONResponse({"error": str(error) or "the supervisor does not answer"}, 503)

    async def _act(self, request: Request) -> Response:
        document = await _document(request)
        address = request.client.host if request.client else ""
        status, answer = await self._actions.perform(document, address)
        return JSONResponse(answer, status)


async def _index(request: Request) -> Response:
    return Response((STATIC / "index.html").read_bytes(), media_type="text/html")


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def _document(request: Request) -> Mapping[str, Any]:
    """The JSON object of the request's body; an empty one for anything else."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            return {}
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
