"""Serves WSGI applications (PEP 3333) by a2wsgi or, where that is not installed, by uvicorn's own middleware.

The middlewares pass requests to threads and responses back. Both omit parts of PEP 3333 and of what users of gunicorn
expect. This module adds them: the environ, the file of the body, the rules of `start_response`, and the end of a
response after its client has disconnected.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
import logging
import os
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any
from urllib.parse import unquote_to_bytes

from ...daemon_threads import complete
from ...installation import install_command
from . import uvicorn_parts
from .uvicorn_parts import HttpApp, Message, Receive, Scope, Send

logger = logging.getLogger("uvicorn.error")

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
WsgiApplication = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

_DISCONNECT = {"type": "http.disconnect"}
_WITHOUT_BODY = (204, 304)  # RFC 9110 §6.4.1
_COOKIE = b"cookie"

_request: contextvars.ContextVar[WsgiRequest] = contextvars.ContextVar("poolctl_wsgi_request")


class WsgiApp(HttpApp):
    """An ASGI application that serves a WSGI application, at most `threads` requests at once; further ones wait."""

    def __init__(self, app: WsgiApplication, threads: int) -> None:
        self._app = app
        with warnings.catch_warnings():
            # The warning of uvicorn's middleware: `_middleware_class` has logged a better one.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._middleware = _middleware_class()(_respond, workers=threads)
        self._middleware.executor = RequestThreads(threads)
        self._abandoned: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = WsgiRequest(self._app, scope, receive, send)
        _request.set(request)
        served = asyncio.ensure_future(self._middleware(request.scope, request.receive, request.send))
        reading = asyncio.ensure_future(request.read_ahead())
        try:
            # If this task is cancelled, the middleware goes on, because it cannot interrupt the application's thread.
            await asyncio.wait({served})
        except asyncio.CancelledError:
            request.abandon()
            self._abandoned.add(served)
            served.add_done_callback(self._forget)
            raise
        finally:
            reading.cancel()
        with contextlib.suppress(RequestAbandoned):
            served.result()
        if request.failure is not None:
            raise request.failure

    def _forget(self, served: asyncio.Future[None]) -> None:
        self._abandoned.discard(served)
        if not served.cancelled():
            served.exception()  # asyncio reports an exception that is not retrieved


def _middleware_class() -> Any:
    """a2wsgi's middleware or, with a warning, uvicorn's."""
    try:
        from a2wsgi import WSGIMiddleware
    except ImportError:
        logger.warning(
            "this WSGI application is served by uvicorn's own middleware, which is deprecated, and keeps whole "
            "requests in memory; install a2wsgi: %s",
            install_command(sys.executable, "a2wsgi"),
        )
        return uvicorn_parts.wsgi_middleware()
    return WSGIMiddleware


def _respond(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
    """The application that the middlewares call, in the context of the request."""
    try:
        yield from _request.get().respond(environ, start_response)
    except SystemExit as error:
        # In the event loop it would end the process, and with it the requests of all other threads.
        raise RuntimeError(f"the application called sys.exit({error.code!r})") from error


class RequestAbandoned(Exception):
    """Raised in the application's thread when no more of the response can be sent."""


class WsgiRequest:
    """One request of the WSGI application `app`; `respond` runs in a thread, all other methods in the event loop.

    One message is read ahead, because a disconnected client is only noticed by receiving.
    """

    def __init__(self, app: WsgiApplication, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = {**scope, "headers": list(_headers_for_wsgi(scope["headers"]))}
        self.gone = False  # no more of the response can be sent
        self.body_is_cut = False
        self.failure: Exception | None = None
        self._app = app
        self._receive = receive
        self._send = send
        self._messages: deque[Message] = deque()
        self._changed = asyncio.Event()
        self._response = WsgiResponse(self.check)

    async def read_ahead(self) -> None:
        """Receive messages until the client disconnects or the response is complete."""
        while (message := await self._receive())["type"] == "http.request":
            self._messages.append(message)
            self._changed.set()
            while self._messages and message.get("more_body", False):
                self._changed.clear()
                await self._changed.wait()
        self.abandon()

    async def receive(self) -> Message:
        while not self._messages:
            if self.gone:
                self.body_is_cut = True
                return _DISCONNECT
            self._changed.clear()
            await self._changed.wait()
        message = self._messages.popleft()
        self._changed.set()
        return message

    async def send(self, message: Message) -> None:
        # An error is raised later: in a2wsgi's task it would leave the thread waiting for ever.
        if self.gone:
            return
        if message["type"] == "http.response.start":
            message = {**message, "headers": self._response.headers}
        try:
            await self._send(message)
        except Exception as error:
            self.failure = error
            self.abandon()

    def abandon(self) -> None:
        """End the application's thread when it next sends or reads a part of the body."""
        self.gone = True
        self._changed.set()

    def check(self) -> None:
        """Raise RequestAbandoned if the request was abandoned."""
        if self.gone:
            raise RequestAbandoned

    def respond(self, environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        self.check()  # the client may have disconnected while the request waited for a thread
        self._complete_environ(environ)
        response = self._response
        response.inner_start = start_response
        chunks = self._app(environ, response.start)
        try:
            for chunk in chunks:
                yield from response.take_written()
                yield from response.parts(chunk)
            yield from response.take_written()
            response.begin()
        finally:
            if (close := getattr(chunks, "close", None)) is not None:
                try:
                    close()
                except Exception as error:
                    self.failure = error  # raised after the end of the response

    def _complete_environ(self, environ: Environ) -> None:
        raw = unquote_to_bytes(self.scope["raw_path"]).decode("latin-1")
        prefix = self.scope.get("root_path") or os.environ.get("SCRIPT_NAME", "")
        is_below = raw == prefix or raw.startswith(f"{prefix}/")
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = prefix, raw[len(prefix) :] if is_below else raw
        port = (self.scope.get("server") or ("", None))[1]
        environ["SERVER_PORT"] = str(port or (443 if environ["wsgi.url_scheme"] == "https" else 80))
        environ.setdefault("REMOTE_ADDR", "")  # the client of a Unix socket
        environ["asgi.scope"] = self.scope  # its `state` has the values of the pool's context
        environ["wsgi.errors"] = sys.stderr
        environ["wsgi.input"] = io.BufferedReader(RequestBody(environ["wsgi.input"], self))
        environ["wsgi.input_terminated"] = True


def _headers_for_wsgi(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """The headers without ambiguous names, and with a single Cookie.

    In an environ `X_Forwarded_For` and `X-Forwarded-For` have the same name, so a client could forge a proxy's header.
    HTTP/2 splits Cookie into several headers (RFC 9113 §8.2.3).
    """
    cookies = []
    for name, value in headers:
        if name == _COOKIE:
            cookies.append(value)
        elif b"_" not in name:
            yield name, value
    if cookies:
        yield _COOKIE, b"; ".join(cookies)


class WsgiResponse:
    """The response of one request, as PEP 3333 describes it: its head is sent with the first part of the body."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check  # raises an exception if no more of the response can be sent
        self.inner_start: Callable[..., Any] = lambda status, headers: None
        self.headers: list[tuple[bytes, bytes]] = []
        self._head: tuple[str, Headers] | None = None
        self._has_begun = False
        self._bytes_left: int | None = None  # None: not limited
        self._inner_write: Callable[[bytes], None] | None = None
        self._written: list[bytes] = []

    def start(self, status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], None]:
        """The application's `start_response`. With `exc_info` it replaces a head that has not been sent yet."""
        if exc_info:
            try:
                if self._has_begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # break the reference cycle with this frame
        elif self._head is not None:
            raise AssertionError("start_response was called twice")
        self._head = status, headers
        return self._write

    def begin(self) -> None:
        """Send the head, unless it has been sent."""
        self._check()
        if self._has_begun:
            return
        if self._head is None:
            raise AssertionError("the application returned without a call of start_response")
        status, headers = self._head
        code = int(status.split(None, 1)[0])
        encoded = [(name.strip().lower(), value.strip()) for name, value in headers]
        lengths = [int(value) for name, value in encoded if name == "content-length"]
        self._bytes_left = lengths[0] if lengths else None
        if code in _WITHOUT_BODY:
            self._bytes_left = 0
            # uvicorn would expect a body of this length.
            encoded = [header for header in encoded if header[0] != "content-length"]
        self.headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in encoded]
        self._has_begun = True
        self._inner_write = self.inner_start(f"{code} ", [])

    def parts(self, chunk: bytes) -> Iterator[bytes]:
        """Send the head if necessary, and yield the part of the chunk that belongs to the body."""
        self._check()
        if not chunk:
            return
        self.begin()
        if self._bytes_left is not None:
            chunk = chunk[: self._bytes_left]
            self._bytes_left -= len(chunk)
        if chunk:
            yield chunk

    def take_written(self) -> Iterator[bytes]:
        """The data passed to `write` since the last call, if the middleware has no `write`."""
        written, self._written = self._written, []
        return iter(written)

    def _write(self, chunk: bytes) -> None:
        for part in self.parts(chunk):
            if self._inner_write is None:
                self._written.append(part)
            else:
                self._inner_write(part)


class RequestBody(io.RawIOBase):
    """The body of a request, read from the file `source` of a middleware."""

    def __init__(self, source: Any, request: WsgiRequest) -> None:
        self._source = source
        self._request = request

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer`; returns the number of bytes. Raises ConnectionResetError if the rest will not arrive."""
        part = self._source.read(len(buffer))
        if not part and self._request.body_is_cut:
            raise ConnectionResetError("the client disconnected before the end of the request")
        buffer[: len(part)] = part
        return len(part)


class RequestThreads(Executor):
    """Runs calls in at most `count` threads, which are created when needed, each call in its caller's context.

    The threads are daemons: a request that hangs cannot keep the process from exiting. They end with this object.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._started = 0
        self._waiting = 0  # calls for which no thread was idle or could be created
        self._idle = threading.Semaphore(0)
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        weakref.finalize(self, self._calls.put, None).atexit = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn` in a thread. Raises RuntimeError if there is no thread and none can be started."""
        self._waiting += 1
        while self._waiting and self._idle.acquire(blocking=False):
            self._waiting -= 1
        if self._waiting and self._started < self._count:
            self._start_thread()
        future: Future[Any] = Future()
        call = partial(contextvars.copy_context().run, fn, *args, **kwargs)
        self._calls.put(partial(complete, future, call))
        return future

    def _start_thread(self) -> None:
        arguments = self._calls, self._idle
        try:
            threading.Thread(target=_perform_calls, args=arguments, name="wsgi", daemon=True).start()
            self._started += 1
            self._waiting -= 1
        except RuntimeError:
            if not self._started:
                self._waiting = 0
                raise


def _perform_calls(calls: SimpleQueue[Callable[[], None] | None], idle: threading.Semaphore) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # or the waiting thread would keep the request alive
        idle.release()
    calls.put(None)  # for the other threads
