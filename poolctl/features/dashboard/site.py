"""Serves the dashboard: the page, login, actions, and streams of the pool's state and of the servers' logs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from poolctl.cli.log_rendering import log_paths, record_lines
from poolctl.clock import Clock
from poolctl.config import value_text
from poolctl.config.origins import DEFAULT, configured_values
from poolctl.config.values.plain import NAME_PATTERN
from poolctl.control.answers import Result
from poolctl.control.gateway_answers import HostsResult, RoutesResult
from poolctl.control.server_answers import ServerDetails, ShowResult
from poolctl.errors import ControlError
from poolctl.json_form import Table, to_json
from poolctl.logs.line_filter import canonical_level, stated_level
from poolctl.logs.log_line import LogLine, parse_record
from poolctl.logs.log_tail import Follower
from poolctl.routing.route_report import BACKEND_COLUMNS, route_columns
from poolctl.selection.regular_expressions import BadExpression
from poolctl.web.bearer_tokens import Peer, Refused, Token, TokenCheck, bearer_token
from poolctl.web.site import Site, SiteLimits

from ._access import COOKIE_PATH, SESSION_SECONDS, HostAndOriginGuard, Session, Sessions, UsedCode
from ._answers import HistoryResult
from ._log_search import SEARCH_SECONDS, LogSearch
from ._state_hub import Hub, event_message

STATIC = Path(__file__).with_name("static")
ACTIONS = ("start", "stop", "restart", "drain", "undrain")
SPANS = ("hour", "day")
FIRST_LINES = 300
HEARTBEAT_SECONDS = 5.0
MAX_SERVERS = 50
_WAITING_ACTIONS = ("start", "stop", "restart")
# The fields of a server on the page, beside its configuration.
_DETAILS = (
    "name", "worker_list", "failure", "complaint", "overrides", "endpoints", "generation", "preload_problem",
)  # fmt: skip
_MAX_SECONDS = 300.0
# Maximum routes and maximum hosts: more would make the page slow.
_MAX_ROWS = 500
# The polling interval for log files that do not exist yet, and on systems without inotify.
_POLL_SECONDS = 1.0
_GATHER_SECONDS = 0.05

_ICON_FONT = 'text-anchor="middle" font-family="sans-serif" font-weight="bold" font-size="16" fill="#fff"'
_USED_LINK = "this link was used already, or is older than ten minutes; for a new one: poolctl dashboard"

Endpoint = Callable[[Request], Awaitable[Response]]


class DashboardSettings(NamedTuple):
    """The page's settings, sent by the supervisor; `key` and `name` identify the pool.

    `secure`: the page is served with TLS. Logged-out sessions are stored in `ended_path`.
    """

    logs_directory: str
    key: str
    name: str
    token: str
    hosts: tuple[str, ...]
    secure: bool
    ended_path: str


def _is_name(text: object) -> bool:
    """Whether `text` is a valid server name, not an address or a wildcard."""
    return isinstance(text, str) and re.fullmatch(NAME_PATTERN, text) is not None


class DashboardSite(Site):
    """The page and its endpoints. Streams end when the settings change, so that no stream outlives its token."""

    limits = SiteLimits(connections=256, keep_alive_seconds=30, head_bytes=32 * 1024, body_bytes=256 * 1024)

    _over: asyncio.Event | None = None

    def configure(self, settings: Table) -> None:
        self.close()
        over = self._over = asyncio.Event()
        values = DashboardSettings(**settings)
        page = _DashboardEndpoints(values, self.supervisor.socket_path, over, self.clock)
        handlers = {ControlError: _service_unavailable, TimeoutError: _service_unavailable}
        self.app = HostAndOriginGuard(
            Starlette(
                routes=page.routes(), exception_handlers=handlers, middleware=[Middleware(GZipMiddleware)]
            ),
            values.hosts,
        )

    def close(self) -> None:
        if self._over is not None:
            self._over.set()


class _DashboardEndpoints:
    def __init__(
        self, settings: DashboardSettings, socket_path: str, over: asyncio.Event, clock: Clock
    ) -> None:
        self._settings = settings
        self._hub = Hub(socket_path, clock)
        self._sessions = Sessions(settings.token, settings.key, clock, settings.ended_path)
        self._token, self._tokens, self._clock = Token(settings.token), TokenCheck(), clock
        self._over = over
        self._version, self._page = _versioned_page()
        self._searches = asyncio.Semaphore(2)  # each search occupies a thread

    def routes(self) -> list[BaseRoute]:
        """Return the dashboard's URL routes. Routes that need the session cookie are below the cookie's path."""
        endpoints = {
            "session": (self._session, "GET"),
            "stream": (self._stream, "GET"),
            "logs": (self._stream_logs, "GET"),
            "server": (self._server, "GET"),
            "history": (self._history, "GET"),
            "routes": (self._routes, "GET"),
            "actions": (self._act, "POST"),
            "logout": (self._logout, "POST"),
        }
        guarded = [
            Route(f"{COOKIE_PATH}/{name}", self._restricted(endpoint, method == "POST"), methods=[method])
            for name, (endpoint, method) in endpoints.items()
        ]
        return [
            Route("/", self._index),
            Route("/icon/{failing:int}.svg", _icon),
            Route(f"{COOKIE_PATH}/login", self._login, methods=["POST"]),
            *guarded,
            Mount(f"/static/{self._version}", PageFiles("public, max-age=31536000, immutable")),
            Mount("/static", PageFiles("no-cache")),
        ]

    async def _index(self, request: Request) -> Response:
        return Response(self._page, media_type="text/html")

    # Login.

    def _restricted(self, endpoint: Endpoint, changes: bool) -> Endpoint:
        """Restrict the endpoint to clients with token or session; with `changes` a session must send the CSRF token."""

        async def checked(request: Request) -> Response:
            request.state.session = None
            token = bearer_token(request.headers.get("authorization", ""))
            refusal = self._refusal(request, token) if token else JSONResponse({"error": "log in first"}, 401)
            if refusal is None:
                return await endpoint(request)
            session = request.state.session = self._session_of(request)
            if session is None:
                return refusal
            if changes and not session.has_csrf(request.headers.get("x-csrf-token", "")):
                return JSONResponse({"error": "the request does not come from the page"}, 403)
            return await endpoint(request)

        return checked

    def _refusal(self, request: Request, token: bytes) -> Response | None:
        """The response to a wrong token, or None if the token is right. Wrong tokens are counted by address."""
        peer: Peer | None = request.state.peer
        try:
            self._tokens.accepted(token, [self._token], peer.key if peer else "", self._clock.monotonic())
        except Refused as refused:
            fields = {name.replace("_", "-"): value for name, value in refused.fields.items()}
            return JSONResponse({"error": str(refused)}, refused.status, fields)
        return None

    def _session_of(self, request: Request) -> Session | None:
        return self._sessions.find(request.cookies.get(self._sessions.cookie_name, ""))

    async def _login(self, request: Request) -> Response:
        token = (await _json_body_or_empty(request)).get("token")
        sent = token.strip() if isinstance(token, str) else ""
        try:
            opened = self._sessions.redeem(sent)
        except UsedCode:  # no guess, so it is not counted as a wrong token
            return JSONResponse({"error": _USED_LINK}, 401)
        if opened is None:
            # JSON can contain unpaired surrogates.
            refusal = self._refusal(request, sent.encode(errors="surrogatepass"))
            if refusal is not None:
                return refusal
            opened = self._sessions.open()
        session, cookie = opened
        response = self._csrf_response(session)
        response.set_cookie(
            self._sessions.cookie_name,
            cookie,
            max_age=SESSION_SECONDS,
            path=COOKIE_PATH,
            secure=self._settings.secure,
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
        return self._csrf_response(self._session_of(request))

    def _csrf_response(self, session: Session | None) -> Response:
        return JSONResponse({"csrf": session.csrf if session else "", "pool": self._settings.name})

    # The pool's state.

    async def _stream(self, request: Request) -> Response:
        """Stream the state of the pool, and log lines of the servers that are named by `log`: "" for all.

        `level`, `age` in seconds and `grep` select lines.
        """
        sources = [self._hub.view()]
        if names := request.query_params.getlist("log"):
            sources.append(self._log_lines({*names} - {""}, request.query_params))
        return self._streamed(request, *sources)

    async def _stream_logs(self, request: Request) -> Response:
        """Stream the log files of the servers in the query, or of all."""
        paths = await self._log_paths(set(request.query_params.getlist("server")))
        if not paths:
            return JSONResponse({"error": "there is no such server"}, 404)
        search = LogSearch({}, self._clock.time())
        return self._streamed(request, log_line_events(paths, search, self._searches))

    async def _log_paths(self, wanted: Collection[str]) -> dict[str, str]:
        """The log files of the first MAX_SERVERS of these servers, or of all if none is named."""
        result = await self._hub.ask(ShowResult, "show", [], {})
        items = [item for item in result.items if not wanted or item.name in wanted]
        return dict(list(log_paths(items, self._settings.logs_directory).items())[:MAX_SERVERS])

    async def _log_lines(self, names: Collection[str], query: Mapping[str, str]) -> AsyncGenerator[str]:
        """The events of `log_line_events`, once the supervisor answers and there is such a server."""
        try:
            search = LogSearch(query, self._clock.time())
            paths: dict[str, str] = {}
            while not paths:
                with contextlib.suppress(ControlError, TimeoutError):
                    paths = await self._log_paths(names)
                if not paths:
                    await asyncio.sleep(_POLL_SECONDS)
            async with contextlib.aclosing(log_line_events(paths, search, self._searches)) as events:
                async for event in events:
                    yield event
        except BadExpression as bad:
            yield event_message("search", {"problem": "\n".join(filter(None, (str(bad), bad.hint)))})
            await asyncio.Event().wait()  # the state is streamed on

    def _streamed(self, request: Request, *sources: AsyncGenerator[str]) -> Response:
        """Stream the messages until the dashboard ends, or the session with which the client has been let in."""
        ends: list[Callable[[], Coroutine[Any, Any, object]]] = [self._over.wait]
        if (session := request.state.session) is not None:
            ends.append(partial(self._sessions.wait_until_over, session))
        messages = with_heartbeats(sources, *ends)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return StreamingResponse(messages, media_type="text/event-stream")
        fields = {"content-encoding": "gzip", "vary": "accept-encoding"}
        return StreamingResponse(_gzipped(messages), headers=fields, media_type="text/event-stream")

    async def _server(self, request: Request) -> Response:
        """Respond with the workers, the failure and the configuration of one server."""
        shown = await self._hub.ask(ShowResult, "show", [request.query_params.get("name", "")], {})
        items = [{**to_json(item, *_DETAILS), **_configuration(item)} for item in shown.items]
        return JSONResponse({"items": items, "errors": [to_json(error) for error in shown.errors]})

    async def _history(self, request: Request) -> Response:
        """Respond with the figures of a server or the pool in the last hour or day."""
        server, span = request.query_params.get("server", ""), request.query_params.get("span", "")
        if span not in SPANS or (server and not _is_name(server)):
            return JSONResponse({"error": f"a span is one of {', '.join(SPANS)}"}, 400)
        history = await self._hub.ask(HistoryResult, "history", [server] if server else [], {"span": span})
        return JSONResponse(to_json(history, "slot_seconds", "slots", "series"))

    async def _routes(self, request: Request) -> Response:
        """Respond with the gateway's state, its first 500 routes and hosts, and how many more of each there are."""
        gateway = (await self._hub.ask(Result, "status", [], {})).gateway
        answer = await self._hub.ask(RoutesResult, "routes", [], {})
        hosts = await self._hub.ask(HostsResult, "hosts", [], {})
        routes = answer.items
        return JSONResponse({
            "gateway": gateway,
            "route_columns": route_columns(routes),
            "backend_columns": BACKEND_COLUMNS,
            "refused_without_route": answer.refused or {},
            "routes": [to_json(route) for route in routes[:_MAX_ROWS]],
            "hosts": [to_json(item) for item in hosts.items[:_MAX_ROWS]],
            "more_routes": max(0, len(routes) - _MAX_ROWS),
            "more_hosts": max(0, len(hosts.items) - _MAX_ROWS),
            "problem": hosts.errors[0].message if hosts.errors else "",
        })  # fmt: skip

    async def _act(self, request: Request) -> Response:
        """Have the supervisor perform {"action": …, "servers": […]}, which the user has confirmed."""
        wish = await _json_body_or_empty(request)
        action, servers = wish.get("action"), wish.get("servers")
        if action not in ACTIONS:
            return JSONResponse({"error": f"an action is one of {', '.join(ACTIONS)}"}, 400)
        if not isinstance(servers, list) or not servers or not all(map(_is_name, servers)):
            return JSONResponse({"error": "servers is a list of names"}, 400)
        options: Table = {"progress": False}
        if action in _WAITING_ACTIONS:
            options |= {"timeout": _MAX_SECONDS, "wait": True}
        client = request.client.host if request.client else ""
        by = {"command": f"dashboard {action}", "address": client}
        result = await self._hub.ask(
            Result, str(action), servers, options, by, timeout_seconds=_MAX_SECONDS + 10
        )
        return JSONResponse(
            to_json(result, "items", "errors", "warnings", "exit_code", "dependents", "unchanged")
        )


def _configuration(item: ServerDetails) -> Table:
    """What is configured for the server, as [key, value, place]; of its environment only the names are shown."""
    values = [value for value in configured_values(item.config, item.origin) if value.place != DEFAULT]
    environment = [value.key.removeprefix("env.") for value in values if value.key.startswith("env.")]
    rows = [
        (value.key, value_text(value.value), value.place)
        for value in values
        if not value.key.startswith("env.")
    ]
    return {"configuration": rows, "environment": environment}


async def _service_unavailable(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error) or "the supervisor does not answer"}, 503)


class PageFiles(StaticFiles):
    """The files of the page, with this `Cache-Control`."""

    def __init__(self, cache_control: str) -> None:
        super().__init__(directory=STATIC)
        self._cache_control = cache_control

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["cache-control"] = self._cache_control
        return response


def _versioned_page() -> tuple[str, str]:
    """A hash of the page's files, and the page, which names the files below it: a browser may keep them for ever.

    All modules are named, too: a browser would find one only after it has read another that imports it.
    """
    files = {path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.is_file()}
    version = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    modules = "".join(
        f'<link rel="modulepreload" href="/static/{name}">\n' for name in files if name.endswith(".js")
    )
    page = files["index.html"].decode().replace("</head>", f"{modules}</head>")
    return version, page.replace("/static/", f"/static/{version}/")


async def _icon(request: Request) -> Response:
    """The page's icon, with a number of failing servers, for a tab in the background."""
    text = (
        f'<circle cx="21" cy="21" r="11" fill="#d43848"/><text x="21" y="26.5" {_ICON_FONT}>%d</text></svg>'
    )
    icon = (STATIC / "icon.svg").read_text().replace("</svg>", text % min(request.path_params["failing"], 99))
    return Response(icon, media_type="image/svg+xml")


async def _json_body_or_empty(request: Request) -> Table:
    """The JSON object of the request's body; an empty one for anything else."""
    try:
        document = json.loads(await request.body())
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


async def log_line_events(
    paths: Mapping[str, str], search: LogSearch, searches: asyncio.Semaphore
) -> AsyncGenerator[str]:
    """Yield server-sent events `lines`: the last lines of these log files (by server name), then new lines.

    An event is a list of lines as [time, name, text, level]; `level` is "" if unknown. JSON lines become readable text.
    Raises SlowExpression.
    """
    lines_per_log = max(20, FIRST_LINES // len(paths))

    def open_logs() -> Follower:
        search.begin()
        return Follower(paths, lines=lines_per_log, since=search.since, wanted=search)

    try:
        # Without a search only the last lines are read, so the viewer does not wait for other searches.
        async with searches if search.selects else contextlib.nullcontext():
            follower = await asyncio.to_thread(open_logs)
    finally:
        search.stop()  # also if the viewer has left meanwhile
    if search.is_incomplete:
        problem = f"only a part of the log was searched in {SEARCH_SECONDS:g} s; choose a shorter time, or one server"
        yield event_message("search", {"problem": problem})
    loop = asyncio.get_running_loop()
    news = asyncio.Event()
    try:
        if follower.fileno() >= 0:
            loop.add_reader(follower.fileno(), news.set)
        # In threads, as a program may print anything.
        yield await asyncio.to_thread(_lines_message, follower.first)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await news.wait()
            # The lines of a busy server are sent in batches, not one by one.
            await asyncio.sleep(_GATHER_SECONDS)
            lines = await asyncio.to_thread(follower.read)
            news.clear()
            if lines:
                yield await asyncio.to_thread(_lines_message, lines)
    finally:
        if follower.fileno() >= 0:
            loop.remove_reader(follower.fileno())
        follower.close()


def _lines_message(lines: Sequence[LogLine]) -> str:
    return event_message("lines", [[line.time, line.name, *_text_and_level(line.text)] for line in lines])


def _text_and_level(text: str) -> tuple[str, str]:
    record = parse_record(text)
    if record is None:
        return text, stated_level(text)
    record.time = ""  # the line's own time is shown already
    return "\n".join(record_lines(record)), canonical_level(record.level)


async def _gzipped(messages: AsyncGenerator[str]) -> AsyncGenerator[bytes]:
    """The messages, compressed one by one; a stream takes 64 KB of memory for it."""
    compressor = zlib.compressobj(3, zlib.DEFLATED, 16 + 13, 6)
    async with contextlib.aclosing(messages):
        async for message in messages:
            yield compressor.compress(message.encode()) + compressor.flush(zlib.Z_SYNC_FLUSH)


async def with_heartbeats(
    sources: Sequence[AsyncGenerator[str]],
    *ends: Callable[[], Coroutine[Any, Any, object]],
) -> AsyncGenerator[str]:
    """The messages of all sources, and a heartbeat whenever none was sent for HEARTBEAT_SECONDS.

    Ends with the first source, or when one of `ends` returns. The first message sets the browser's reconnection delay
    to one second. A page takes a stream without heartbeats for lost.
    """
    yield "retry: 1000\n\n"
    ending = {asyncio.ensure_future(end()) for end in ends}
    upcoming: dict[asyncio.Future[str], AsyncGenerator[str]] = {
        asyncio.ensure_future(anext(source)): source for source in sources
    }
    try:
        while True:
            waiting: set[asyncio.Future[Any]] = {*upcoming, *ending}
            done, _ = await asyncio.wait(
                waiting, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if not done.isdisjoint(ending):
                return
            if not done:
                yield event_message("heartbeat", 0)
            for ready in [future for future in upcoming if future in done]:
                source = upcoming.pop(ready)
                try:
                    message = ready.result()
                except StopAsyncIteration:
                    return
                upcoming[asyncio.ensure_future(anext(source))] = source
                yield message
    finally:
        for end in ending:
            end.cancel()
        for future in upcoming:
            future.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await future
        for source in sources:
            await source.aclose()
