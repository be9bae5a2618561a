"""Requests with a name of their own, and a line in the log for each: for servers that ask for it, and no others."""

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
# What others send is printed, and sent on.
_GOOD = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")
_SECRET_BYTES = 16
_CLIENT_LEFT = 499  # as nginx has it: there was nobody to be answered

Write = Callable[[str], None]
Line = Callable[["Seen"], str]


class Access:
    """An ASGI application that names each request of another one, and writes a line when it is answered.

    The name is that of the header X-Request-ID, or a new one where that is missing or unprintable. The application
    finds it there, and in `scope["state"]["request_id"]`. With `answer` the response has the header too.
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
        seen = Seen(scope)
        name = [(_NAME, seen.name.encode())]

        async def told() -> Any:
            message = await receive()
            seen.left = seen.left or message["type"] == "http.disconnect"
            return message

        async def answered(message: Any) -> None:
            if self._answer and message["type"] in _HEADS:
                headers = [each for each in message.get("headers", ()) if bytes(each[0]).lower() != _NAME]
                message = {**message, "headers": headers + name}
            await send(message)
            if seen.answered(message):
                self._tell(seen)

        try:
            await self.inner(scope, told, answered)
        finally:
            self._tell(seen)

    def _tell(self, seen: Seen) -> None:
        if not seen.told:
            seen.told = True
            if self._write is not None:
                self._write(self._line(seen))


_HEADS = ("http.response.start", "websocket.accept", "websocket.http.response.start")


class Seen:
    """One request, and what became of it."""

    __slots__ = ("begun", "left", "name", "scope", "status", "told")

    def __init__(self, scope: Any) -> None:
        self.scope = scope
        self.begun = perf_counter()
        self.name = _named(scope)
        self.status = 0
        self.left = self.told = False

    def answered(self, message: Any) -> bool:
        """Whether with this message the answer is complete."""
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
        """How long it has taken."""
        return perf_counter() - self.begun

    @property
    def method(self) -> str:
        """What was asked for."""
        return str(self.scope.get("method", "WebSocket"))

    @property
    def target(self) -> str:
        """The path with its query, as it is printed."""
        return get_path_with_query_string(self.scope)


def as_text(seen: Seen) -> str:
    """The line as uvicorn has it, with the time that the request took, and its name."""
    try:
        phrase = f" {HTTPStatus(seen.outcome).phrase}"
    except ValueError:
        phrase = ""
    request = f'"{seen.method} {seen.target} HTTP/{seen.scope["http_version"]}"'
    client = get_client_addr(seen.scope) or "-"
    return f"{client} - {request} {int(seen.outcome)}{phrase} {1000 * seen.seconds:.1f}ms {seen.name}"


def as_json(seen: Seen) -> str:
    """The line as an object."""
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
    """Let uvicorn's loaded configuration serve its application so; None: as it is."""
    if wanted is None:
        return
    form = wanted["log"]
    line, write = (as_json, _print) if form == "json" else (_with_level, _print)
    options: dict[str, Any] = {"write": write if form else None, "line": line, "answer": wanted["answer"]}
    config.loaded_app = Access(config.loaded_app, **options)
    # What uvicorn answers itself, above max_concurrency.
    module = sys.modules.get(config.http_protocol_class.__module__)
    if module is not None and hasattr(module, BUSY_APP):
        vars(module)[BUSY_APP] = Access(unwatched(getattr(module, BUSY_APP)), **options)


def unwatched(app: Any) -> Any:
    """The application without any of this."""
    return app.inner if isinstance(app, Access) else app


def _with_level(seen: Seen) -> str:
    return f"INFO:     {as_text(seen)}"


def _print(line: str) -> None:
    try:
        os.write(1, line.encode() + b"\n")
    except OSError:
        pass  # nobody reads: no request may fail for that


def _named(scope: Any) -> str:
    given = [value for name, value in scope["headers"] if name == _NAME]
    name = given[0] if given and _GOOD.fullmatch(given[0]) else os.urandom(_SECRET_BYTES).hex().encode()
    if given != [name]:
        scope["headers"] = [*(each for each in scope["headers"] if each[0] != _NAME), (_NAME, name)]
    text: str = name.decode()
    scope.setdefault("state", {})["request_id"] = text
    return text
