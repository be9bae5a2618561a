"""Records requests: counts by latency and status, and if configured request IDs and access log lines."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import Callable
from http import HTTPStatus
from json import JSONEncoder
from time import gmtime, monotonic, perf_counter, strftime, time
from typing import Any, NamedTuple

import uvicorn

from .. import tally
from . import uvicorn_parts
from .uvicorn_parts import App, Message, Receive, Scope, Send

logger = logging.getLogger("uvicorn.access")

_ENCODER = JSONEncoder()  # which the application cannot replace, unlike json.dumps

CUT = "the server stops"  # the message with which a request that outlasts the stop timeout is cancelled

_FIELD = b"x-request-id"
# Client request IDs that are logged and forwarded.
_VALID_ID = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")
_ID_BYTES = 16
_CLIENT_LEFT = 499  # nginx's status for a client that closed the connection
FAILURES = HTTPStatus.INTERNAL_SERVER_ERROR // 100  # the first digit of the statuses that are failures
# Maximum log lines per second, because an overloaded server may refuse thousands of requests.
_MAX_LINES = 50


class RequestCounts:
    """The counter of a worker's requests in `tally`, a shared memory page that the supervisor reads."""

    __slots__ = ("tally",)

    def __init__(self, tally: memoryview) -> None:
        self.tally = tally

    def count_unanswered(self, connection: object, newest: Any) -> None:
        """Count the unanswered requests of a closed connection: the newest, and pipelined ones."""
        # uvicorn resets this when the application has returned.
        awaited = getattr(newest.on_response, "__self__", None) is connection
        kind = tally.DISCONNECTED if awaited or newest.disconnected else tally.BROKEN
        self.tally[kind] += 1 + len(getattr(connection, "pipeline", ()))


class AccessLogMiddleware:
    """ASGI middleware that gives each request an ID, and writes a line when the request is complete.

    The ID is taken from the header X-Request-ID, or generated if the header is missing or unprintable. The application
    finds it in the header, and in `scope["state"]["request_id"]`. With `answer` the response has the header too. `log`
    is the form of the lines in the worker's output, `text` or `json`, or `logger` for uvicorn's logger; None for no
    lines.
    """

    def __init__(self, app: App, *, log: str | None, answer: bool = False) -> None:
        self.inner = app
        self._form = log
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.inner(scope, receive, send)
            return
        request = LoggedRequest(scope)
        name = [(_FIELD, request.name.encode())]

        async def received() -> Message:
            message = await receive()
            request.left = request.left or message["type"] == "http.disconnect"
            return message

        async def sent(message: Message) -> None:
            if self._answer and message["type"] in _HEADS:
                headers = [field for field in message.get("headers", ()) if bytes(field[0]).lower() != _FIELD]
                message = {**message, "headers": headers + name}
            await send(message)
            if request.record_and_check_end(message):
                self._log_once(request)

        try:
            await self.inner(scope, received, sent)
        except asyncio.CancelledError as error:
            request.cut = CUT in error.args
            raise
        finally:
            self._log_once(request)

    def _log_once(self, request: LoggedRequest) -> None:
        if not request.logged and self._form is not None:
            request.logged = True
            _write_log_line(self._form, "INFO", request.line())


_HEADS = ("http.response.start", "websocket.accept", "websocket.http.response.start")


class LoggedRequest:
    """One request and its outcome, for an access log line."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._begun = perf_counter()
        self.name = _assign_request_id(scope)
        self.status = 0
        self.left = self.logged = False
        self.cut = False  # it was cancelled because its worker had to stop

    def record_and_check_end(self, message: Message) -> bool:
        """Record a message of the response. Returns whether the response is now complete."""
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
        elif kind == "websocket.accept":
            self.status = HTTPStatus.SWITCHING_PROTOCOLS
        elif kind == "websocket.close" and not self.status:
            self.status = HTTPStatus.FORBIDDEN
        return kind == "http.response.body" and not message.get("more_body", False)

    def line(self) -> RequestLogLine:
        """The log line for the request in its current state.

        If the application has sent no status, the line has 499 if the client has left, 503 if the request was cancelled
        by a stop, else 500 as in uvicorn.
        """
        default = HTTPStatus.SERVICE_UNAVAILABLE if self.cut else HTTPStatus.INTERNAL_SERVER_ERROR
        status = self.status or (_CLIENT_LEFT if self.left else default)
        return RequestLogLine(self._scope, status, perf_counter() - self._begun, self.name)


class RequestLogLine(NamedTuple):
    """A log line about a request that took `seconds`. `name` is the request's ID ("": none)."""

    scope: Scope
    status: int
    seconds: float
    name: str

    def __str__(self) -> str:
        """The line in uvicorn's format, followed by the request's duration, and its ID if known."""
        try:
            phrase = f" {HTTPStatus(self.status).phrase}"
        except ValueError:
            phrase = ""
        client = uvicorn_parts.get_client_addr(self.scope) or "-"  # type: ignore[arg-type]
        request = f'"{self._method_and_target()} HTTP/{self.scope["http_version"]}"'
        return f"{client} - {request} {int(self.status)}{phrase} {1000 * self.seconds:.1f}ms {self.name}".rstrip()

    def members(self) -> dict[str, object]:
        """Return the log line as JSON fields, such as `method` and `status`. A field without a value is left out."""
        fields = {
            "message": f"{self._method_and_target()} {int(self.status)}",
            "request_id": self.name or None,
            "client": uvicorn_parts.get_client_addr(self.scope),  # type: ignore[arg-type]
            "method": self.scope.get("method", "WebSocket"),
            "target": uvicorn_parts.get_path_with_query_string(self.scope),  # type: ignore[arg-type]
            "http_version": self.scope["http_version"],
            "status": int(self.status),
            "duration_seconds": round(self.seconds, 6),
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _method_and_target(self) -> str:
        target = uvicorn_parts.get_path_with_query_string(self.scope)  # type: ignore[arg-type]
        return f"{self.scope.get('method', 'WebSocket')} {target}"


class FailedRequestLog:
    """Writes a line for each failed request as its response begins; `form` is as in AccessLogMiddleware.

    Above a limit per second, requests are only counted.
    """

    def __init__(self, form: str, clock: Callable[[], float] = monotonic) -> None:
        self._form = form
        self._clock = clock
        self._second = 0
        self._lines = 0

    def log(self, scope: Scope, status: int, seconds: float) -> None:
        """Log a request that is answered with this status, `seconds` after it arrived."""
        now = int(self._clock())
        if now != self._second:
            if (left_out := self._lines - _MAX_LINES) > 0:
                _write_log_line(self._form, "ERROR", f"{left_out} more requests failed within a second")
            self._second, self._lines = now, 0
        self._lines += 1
        if self._lines > _MAX_LINES:
            return
        id_ = next((value for name, value in scope["headers"] if name == _FIELD), b"")
        name = id_.decode() if _VALID_ID.fullmatch(id_) else ""
        _write_log_line(self._form, "ERROR", RequestLogLine(scope, status, seconds, name))


def _write_log_line(form: str, level: str, line: RequestLogLine | str) -> None:
    if form == "json":
        now = time()
        stamp = f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(now))}.{int(now % 1 * 1000):03}Z"
        members = {"message": line} if isinstance(line, str) else line.members()
        _print(_ENCODER.encode({"time": stamp, "level": level, **members}))
    elif form == "logger":
        logger.log(logging.getLevelName(level), str(line))
    else:
        _print(f"{level + ':':<9} {line}")


def add_access_log(config: uvicorn.Config, wanted: dict[str, Any] | None) -> None:
    """Add an access log to the application of uvicorn's loaded configuration, with the arguments in `wanted`.

    Does nothing if `wanted` is None, or asks for neither lines nor request IDs in responses.
    """
    if wanted is None or not (wanted["log"] or wanted["answer"]):
        return
    log, answer = wanted["log"], wanted["answer"]
    config.loaded_app = AccessLogMiddleware(config.loaded_app, log=log, answer=answer)
    # uvicorn's application for responses above max_concurrency.
    module = sys.modules.get(config.http_protocol_class.__module__)
    if module is not None and hasattr(module, uvicorn_parts.BUSY_APP):
        vars(module)[uvicorn_parts.BUSY_APP] = AccessLogMiddleware(
            inner_app(getattr(module, uvicorn_parts.BUSY_APP)), log=log, answer=answer
        )


def inner_app(app: App) -> App:
    """The application inside the AccessLogMiddleware middleware; `app` itself if it is not wrapped."""
    return app.inner if isinstance(app, AccessLogMiddleware) else app


def _print(line: str) -> None:
    try:
        os.write(1, line.encode() + b"\n")
    except OSError:
        pass  # no process reads the output, which must not fail a request


def _assign_request_id(scope: Scope) -> str:
    ids = [value for name, value in scope["headers"] if name == _FIELD]
    name = ids[0] if ids and _VALID_ID.fullmatch(ids[0]) else os.urandom(_ID_BYTES).hex().encode()
    if ids != [name]:
        scope["headers"] = [*(header for header in scope["headers"] if header[0] != _FIELD), (_FIELD, name)]
    text: str = name.decode()
    scope.setdefault("state", {})["request_id"] = text
    return text
