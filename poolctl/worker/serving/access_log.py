"""Request IDs, and a line in the log for each request, for servers that configure it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
from http import HTTPStatus
from time import gmtime, perf_counter, strftime, time
from typing import Any

import uvicorn

from .cut_requests import CUT
from .uvicorn_parts import (
    BUSY_APP,
    App,
    Message,
    Receive,
    Scope,
    Send,
    get_client_addr,
    get_path_with_query_string,
)

logger = logging.getLogger("uvicorn.access")

_NAME = b"x-request-id"
# IDs from clients are logged, and sent on.
_GOOD = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")
_SECRET_BYTES = 16
_CLIENT_LEFT = 499  # nginx's status for a client that closed the connection


class AccessLog:
    """An ASGI application that gives each request of another one an ID, and writes a line when it is complete.

    The ID is that of the header X-Request-ID, or a new one if that is missing or unprintable. The application finds it
    in the header, and in `scope["state"]["request_id"]`. With `answer` the response has the header too. `log` is the
    form of the lines in the worker's output, `text` or `json`, or `logger` for uvicorn's logger; None for no lines.
    """

    def __init__(self, app: App, *, log: str | None, answer: bool = False) -> None:
        self.inner = app
        self._form = log
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.inner(scope, receive, send)
            return
        seen = LoggedRequest(scope)
        name = [(_NAME, seen.name.encode())]

        async def received() -> Message:
            message = await receive()
            seen.left = seen.left or message["type"] == "http.disconnect"
            return message

        async def sent(message: Message) -> None:
            if self._answer and message["type"] in _HEADS:
                headers = [each for each in message.get("headers", ()) if bytes(each[0]).lower() != _NAME]
                message = {**message, "headers": headers + name}
            await send(message)
            if seen.answered(message):
                self._log(seen)

        try:
            await self.inner(scope, received, sent)
        except asyncio.CancelledError as error:
            seen.cut = CUT in error.args
            raise
        finally:
            self._log(seen)

    def _log(self, seen: LoggedRequest) -> None:
        if seen.logged or self._form is None:
            return
        seen.logged = True
        if self._form == "logger":
            logger.info(as_text(seen))
        else:
            _print(as_json(seen) if self._form == "json" else f"INFO:     {as_text(seen)}")


_HEADS = ("http.response.start", "websocket.accept", "websocket.http.response.start")


class LoggedRequest:
    """One request, and its outcome."""

    __slots__ = ("begun", "cut", "left", "logged", "name", "scope", "status")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.begun = perf_counter()
        self.name = _named(scope)
        self.status = 0
        self.left = self.logged = False
        self.cut = False  # it took longer than the stop of its worker may take

    def answered(self, message: Message) -> bool:
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
        if self.status or self.left:
            return self.status or _CLIENT_LEFT
        return HTTPStatus.SERVICE_UNAVAILABLE if self.cut else HTTPStatus.INTERNAL_SERVER_ERROR

    @property
    def seconds(self) -> float:
        """The time since its begin."""
        return perf_counter() - self.begun

    @property
    def client(self) -> str:
        """The client's address; empty if it has none."""
        return get_client_addr(self.scope)  # type: ignore[arg-type]

    @property
    def method(self) -> str:
        """The method; WebSocket for one."""
        return str(self.scope.get("method", "WebSocket"))

    @property
    def target(self) -> str:
        """The path with its query, as it is logged."""
        return get_path_with_query_string(self.scope)  # type: ignore[arg-type]


def as_text(seen: LoggedRequest) -> str:
    """The line in uvicorn's format, followed by the time that the request took and its ID."""
    try:
        phrase = f" {HTTPStatus(seen.outcome).phrase}"
    except ValueError:
        phrase = ""
    request = f'"{seen.method} {seen.target} HTTP/{seen.scope["http_version"]}"'
    return f"{seen.client or '-'} - {request} {int(seen.outcome)}{phrase} {1000 * seen.seconds:.1f}ms {seen.name}"


def as_json(seen: LoggedRequest) -> str:
    """The line as a JSON object."""
    now = time()
    return json.dumps(
        {
            "time": f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(now))}.{int(now % 1 * 1000):03}Z",
            "level": "INFO",
            "message": f"{seen.method} {seen.target} {int(seen.outcome)}",
            "request_id": seen.name,
            "client": seen.client,
            "method": seen.method,
            "target": seen.target,
            "http_version": seen.scope["http_version"],
            "status": int(seen.outcome),
            "duration_seconds": round(seen.seconds, 6),
        }
    )


def watch_requests(config: uvicorn.Config, wanted: dict[str, Any] | None) -> None:
    """Let uvicorn's loaded configuration serve its application with an access log; None changes nothing."""
    if wanted is None:
        return
    config.loaded_app = AccessLog(config.loaded_app, **wanted)
    # The application with which uvicorn responds above max_concurrency.
    module = sys.modules.get(config.http_protocol_class.__module__)
    if module is not None and hasattr(module, BUSY_APP):
        vars(module)[BUSY_APP] = AccessLog(unwatched(getattr(module, BUSY_APP)), **wanted)


def unwatched(app: App) -> App:
    """The application itself."""
    return app.inner if isinstance(app, AccessLog) else app


def _print(line: str) -> None:
    try:
        os.write(1, line.encode() + b"\n")
    except OSError:
        pass  # no process reads the output: no request may fail for that


def _named(scope: Scope) -> str:
    given = [value for name, value in scope["headers"] if name == _NAME]
    name = given[0] if given and _GOOD.fullmatch(given[0]) else os.urandom(_SECRET_BYTES).hex().encode()
    if given != [name]:
        scope["headers"] = [*(each for each in scope["headers"] if each[0] != _NAME), (_NAME, name)]
    text: str = name.decode()
    scope.setdefault("state", {})["request_id"] = text
    return text
