"""The control socket's server: commands over HTTP, JSON lines out, peer credentials checked."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from poolctl.config import OPEN_FILES_RESERVE
from poolctl.control.answers import ErrorEntry, ProgressLine, Result
from poolctl.control.pool_paths import BACKLOG
from poolctl.exit_codes import FAILED
from poolctl.http.http_server import HttpServer, ReceivedRequest, Responder, ServerLimits
from poolctl.http.messages import BadMessage
from poolctl.json_form import Table, to_json
from poolctl.platform import peer_credentials

MAX_BODY_BYTES = 4 * 1024 * 1024
# Disconnect clients that have stopped reading, such as a suspended `events -f`, above this backlog.
MAX_UNREAD_BYTES = 64 * 1024 * 1024
REQUEST_SECONDS = 10.0
_GRACE_SECONDS = 1.0

logger = logging.getLogger("poolctl.supervisor")

Progress = Callable[[ProgressLine], None]
Attach = Callable[[int], None]


def refuse_attachment(fd: int) -> None:
    """Refuse to attach a descriptor, for a request that did not come over a Unix socket. Raises BadMessage."""
    raise BadMessage("this client takes no descriptors")


@dataclass(frozen=True, slots=True)
class Request:
    """A verb with its arguments, and its sender. `attach` sends a descriptor, which the caller still owns."""

    verb: str
    body: Table
    pid: int
    uid: int
    attach: Attach = refuse_attachment


Handler = Callable[[Request, Progress], Awaitable[object]]


class DescriptorReserve:
    """Reserves `count` descriptors for commands: this process can open the last `count` only inside a `with` block.

    Blocks may be nested. Nothing is reserved if the hard limit of open files is at most twice `count`.
    """

    def __init__(self, count: int = OPEN_FILES_RESERVE) -> None:
        self._count = count
        self._users = 0
        self._set_limit()

    def __enter__(self) -> None:
        self._users += 1
        self._set_limit()

    def __exit__(self, *raised: object) -> None:
        self._users -= 1
        self._set_limit()

    def _set_limit(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = hard if self._users else hard - self._count
        if hard > 2 * self._count and soft != wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class ControlServer:
    """Answers `POST /v1/VERB` (a JSON body) and `GET /v1/VERB` with JSON lines: progress, then the result.

    `handle` is awaited for each request, with a function that sends a progress line. It is cancelled when the client
    disconnects. If it raises ConnectionError, the connection is closed without an answer. While a connection is open,
    commands may use the descriptors in `reserve`.
    """

    def __init__(self, handle: Handler, reserve: DescriptorReserve | None = None) -> None:
        self._handle = handle
        limits = ServerLimits(
            body_bytes=MAX_BODY_BYTES, request_seconds=REQUEST_SECONDS, unread_bytes=MAX_UNREAD_BYTES
        )
        self._server = HttpServer(self, limits, what="commands", watch=True, reserve=reserve)

    def replace_listener(self, listener: socket.socket) -> None:
        """Accept from this listener instead; the server owns it from now on."""
        self._server.stop_accepting()
        self._server.listen(listener, BACKLOG)

    async def close(self) -> None:
        """Stop accepting, and wait at most a second until current requests are finished."""
        await self._server.drain_requests(_GRACE_SECONDS)

    def check_client(self, sock: socket.socket) -> None:
        """Raise BadMessage unless the client's user is the pool's own user or root."""
        _, uid, _ = peer_credentials(sock)
        if uid not in (0, os.geteuid()):
            raise BadMessage(f"this pool belongs to uid {os.geteuid()}", 403)

    def error_response(self, error: BadMessage) -> tuple[int, str, bytes]:
        """Status, content type and JSON body of the response to an invalid request."""
        is_http_error = error.status in (403, 404, 411, 413)
        status, message = (error.status, str(error)) if is_http_error else (400, f"not a request: {error}")
        return status, "application/json", json.dumps({"error": message}).encode() + b"\n"

    async def handle(self, received: ReceivedRequest, response: Responder) -> None:
        """Perform the verb that the request names, and answer with its result."""
        try:
            pid, uid, _ = peer_credentials(received.sock)
            request = Request(
                _verb(received),
                _document(received.body),
                pid,
                uid,
                lambda fd: response.send_with_descriptor(received.sock, fd, b"\n"),  # lines may be empty
            )
        except BadMessage as bad:
            await response.send(
                bad.status,
                [("content-type", "application/json")],
                json.dumps({"error": str(bad)}).encode() + b"\n",
            )
            return
        response.begin(200, [("content-type", "application/x-ndjson")])

        def line(document: Table) -> None:
            response.write(json.dumps(document, separators=(",", ":")).encode() + b"\n")

        answer = await self._answer(request, lambda interim: line(to_json(interim)))
        line({"result": to_json(answer)})
        await response.finish()

    async def _answer(self, request: Request, progress: Progress) -> object:
        try:
            return await self._handle(request, progress)
        except ConnectionError:
            raise
        except Exception:
            logger.exception("a request could not be answered")
            message = "the supervisor failed at this command; its log says why"
            error = ErrorEntry(code=FAILED, error="ErrorInternal", message=message, hint="see supervisor.log")
            return Result(errors=(error,), exit_code=FAILED)


def _verb(received: ReceivedRequest) -> str:
    path = received.path
    if not path.startswith("/v1/") or received.method not in ("GET", "POST"):
        raise BadMessage(f"there is no {path}; try GET /v1/list", 404)
    verb = path.removeprefix("/v1/")
    return "list" if verb == "servers" else verb


# The JSON types of options, by name; each option may also be null, its default.
_OPTION_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("all", "auto", "check", "counts", "deps", "dry_run", "errors", "files", "follow", "force", "idle", "kill",
         "progress", "reveal", "routes", "saves", "wait"), (bool,)
    ),
    **dict.fromkeys(("after", "lines", "protocol", "requests", "workers"), (int,)),
    "timeout": (int, float),
    "for": (str, int, float),  # a state, or seconds
    **dict.fromkeys(("env", "headers", "server"), (dict,)),
    **dict.fromkeys(
        ("base_dir", "build", "depth", "host", "method", "name", "namespace", "op", "path", "python", "service",
         "since", "to", "version"), (str,)
    ),
    **dict.fromkeys(("hosts", "keeper", "kind", "receivers", "supervisor"), (list,)),
}  # fmt: skip
_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string",
               dict: "an object", list: "a list of strings"}  # fmt: skip


def _check_types(document: Table) -> None:
    """Raise BadMessage for a selector or options of the wrong types."""
    for name in ("selector", "options"):
        if not isinstance(document.get(name) or {}, dict):
            raise BadMessage(f"{name} must be an object")
    for name, value in (document.get("selector") or {}).items():
        if not isinstance(value, (list, bool)) and value is not None:
            raise BadMessage(f"{name} of the selector must be a list of strings")
    for name, value in (document.get("options") or {}).items():
        types = _OPTION_TYPES.get(name)
        if types is None or value is None:
            continue
        is_valid = isinstance(value, types) and (types == (bool,) or not isinstance(value, bool))
        elements = value if isinstance(value, list) else []
        if not is_valid or not all(isinstance(element, str) for element in elements):
            raise BadMessage(f"the option {name} must be {_TYPE_NAMES[types[-1]]}")


def _document(body: bytes) -> Table:
    if not body:
        return {}
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadMessage("the body must be a JSON object")
    _check_types(document)
    return document
