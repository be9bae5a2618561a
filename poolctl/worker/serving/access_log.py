"""Request IDs, and a line in the log for each request, for servers that configure it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from http import HTTPStatus
from time import gmtime, perf_counter, strftime, time
from typing import Any

from .uvicorn_parts import BUSY_APP, get_client_addr, get_path_with_query_string

_NAME = b"x-request-id"
# IDs from clients are logged, and sent on.
_GOOD = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")
_SECRET_BYTES = 16
_CLIENT_LEFT = 499  # nginx's status for a client that closed the connection

Write = Callable[[str], None]
Line = Callable[["LoggedRequest"], str]


class AccessLog:
    """An ASGI application that gives each request of another one an ID, and writes a line when it is complete.

    The ID is that of the header X-Request-ID, or a new one if that is missing or unprintable. The application finds it
    in the header, and in `scope["state"]["request_id"]`. With `answer` the response has the header too.
    """

    def __init__(
        self, app: Any, *, write: Write | None, line: Line | None = None, answer: bool = False
    ) -> None:
        self.inner = app
        self._write = write
        self._line = line or as_text
        self._answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.inner(scope, receive, send)
            return
        seen = LoggedRequest(scope)
        name = [(_NAME, seen.name.encode())]

        async def received() -> Any:
            message = await receive()
            seen.left = seen.left or message["type"] == "http.disconnect"
            return message

        async def sent(message: Any) -> None:
            if self._answer and message["type"] in _HEADS:
                headers = [each for each in message.get("headers", ()) if bytes(each[0]).lower() != _NAME]
                message = {**message, "headers": headers + name}
            await send(message)
            if seen.answered(message):
                self._log(seen)

        try:
            await self.inner(scope, received, sent)
        finally:
            self._log(seen)

    def _log(self, seen: LoggedRequest) -> None:
        if not seen.logged:
            seen.logged = True
            if self._write is not None:
                self._write(self._line(seen))


_HEADS = ("http.response.start", "websocket.accept", "websocket.http.response.start")


class LoggedRequest:
    """One request, and its outcome."""

    __slots__ = ("begun", "left", "logged", "name", "scope", "status")

    def __init__(self, scope: Any) -> None:
        self.scope = scope
        self.begun = perf_counter()
        self.name = _named(scope)
        self.status = 0
        self.left = self.logged = False

    def answered(self, message: Any) -> bool:
        """Record a message of the response; whether the response is complete with it."""
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
        elif kind == "websocket.accept":
            self.status = HTTPStatus.SWITCHING_PROTOCOLS
        elif kind == "websocket.close" and not self.status:
            self.status = HTTPStatus.FORBIDDEN
        return kind == "http.response.body" and not message.get("more_body", False)

    @property
    def outcome(self) -> int:
        """The status that was sent. uvicorn sends 500 for an application that sent nothing."""
        return self.status or (_CLIENT_LEFT if self.left else HTTPStatus.INTERNAL_SERVER_ERROR)

    @property
    def seconds(self) -> float:
        """The time since its begin."""
        return perf_counter() - self.begun

    @property
    def method(self) -> str:
        """The method; WebSocket for one."""
        return str(self.scope.get("method", "WebSocket"))

    @property
    def target(self) -> str:
        """The path with its query, as it is logged."""
        return get_path_with_query_string(self.scope)


def as_text(seen: LoggedRequest) -> str:
    """The line in uvicorn's format, followed by the time that the request took and its ID."""
    try:
        phrase = f" {HTTPStatus(seen.outcome).phrase}"
    except ValueError:
        phrase = ""
    request = f'"{seen.method} {seen.target} HTTP/{seen.scope["http_version"]}"'
    client = get_client_addr(seen.scope) or "-"
    return f"{client} - {request} {int(seen.outcome)}{phrase} {1000 * seen.seconds:.1f}ms {seen.name}"


def as_json(seen: LoggedRequest) -> str:
    """The line as a JSON object."""
    now = time()
    return json.dumps(
        {
            "time": f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(now))}.{int(now % 1 * 1000):03}Z",
            "level": "INFO",
            "message": f"{seen.method} {seen.target} {int(seen.outcome)}",
            "request_id": seen.name,
            "client": get_client_addr(seen.scope),
            "method": seen.method,
            "target": seen.target,
            "http_version": seen.scope["http_version"],
            "status": int(seen.outcome),
            "duration_seconds": round(seen.seconds, 6),
        }
    )


def watch_requests(config: Any, wanted: dict[str, Any] | None) -> None:
    """Let uvicorn's loaded configuration serve its application with an access log; None changes nothing."""
    if wanted is None:
        return
    form = wanted["log"]
    line, write = (as_json, _print) if form == "json" else (_with_level, _print)
    options: dict[str, Any] = {"write": write if form else None, "line": line, "answer": wanted["answer"]}
    config.loaded_app = AccessLog(config.loaded_app, **options)
    # The application with which uvicorn responds above max_concurrency.
    module = sys.modules.get(config.http_protocol_class.__module__)
    if module is not None and hasattr(module, BUSY_APP):
        vars(module)[BUSY_APP] = AccessLog(unwatched(getattr(module, BUSY_APP)), **options)


def unwatched(app: Any) -> Any:
    """The application itself."""
    return app.inner if isinstance(app, AccessLog) else app


def _with_level(seen: LoggedRequest) -> str:
    return f"INFO:     {as_text(seen)}"


def _print(line: str) -> None:
    try:
        os.write(1, line.encode() + b"\n")
    except OSError:
        pass  # no process reads the output: no request may fail for that


def _named(scope: Any) -> str:
    given = [value for name, value in scope["headers"] if name == _NAME]
    name = given[0] if given and _GOOD.fullmatch(given[0]) else os.urandom(_SECRET_BYTES).hex().encode()
    if given != [name]:
        scope["headers"] = [*(each for each in scope["headers"] if each[0] != _NAME), (_NAME, name)]
    text: str = name.decode()
    scope.setdefault("state", {})["request_id"] = text
    return text
