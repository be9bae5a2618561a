"""Probes a worker: `http` by a request, `tcp` by a connection or (an app) an echoed byte, `exec` by a program."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from functools import cache, partial
from typing import Protocol
from urllib.parse import quote, urlsplit

from poolctl.config import Probe, ServerConfig, masked_text
from poolctl.errors import ServerError
from poolctl.http.messages import BadMessage, ResponseReader, request_head
from poolctl.listeners.sock_diag import is_accepted, wait_until_accepted
from poolctl.runners.output_tail import OutputTail
from poolctl.runners.runner_protocol import Placement, Runner
from poolctl.runners.withheld_variables import environment_for_programs
from poolctl.runners.worker_spec import (
    give_output_to_user,
    probe_argument_vector,
    program_environment,
    user_ids,
)
from poolctl.selection.regular_expressions import (
    SLOW,
    BadExpression,
    Expression,
    SlowExpression,
    is_plain,
    run_in_turn,
)
from poolctl.units import format_duration

# Called once with the result of a probe: the problem (`Unsent` if the worker did not cause it), or "".
OnResult = Callable[[str], None]
# Makes a new connection, which the caller closes. Raises OSError.
Connect = Callable[[], Awaitable[socket.socket]]

_CONNECTION_CLOSED = "it closed the connection"
_CLOSED_PROBLEMS = frozenset((_CONNECTION_CLOSED, os.strerror(errno.ECONNRESET), os.strerror(errno.EPIPE)))
_RESOURCE_ERRORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Unsent(str):
    """The reason why this machine could not send a probe, such as its limit of processes: no fault of the worker."""


def _connection_problem(error: OSError) -> str:
    problem = f"no connection: {error.strerror or error}"
    return Unsent(problem) if error.errno in _RESOURCE_ERRORS else problem


class ProbeConnection(asyncio.Protocol):
    """A connection for one probe at a time, over TLS with a `context`. Closing it closes `sock`.

    `replies` counts the replies received. A `closed` connection cannot be reused. Needs a running event loop.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None = None) -> None:
        self._sock = sock
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None
        self._reply: Reply | None = None
        self._on_result: OnResult | None = None
        self.replies = 0
        self.replying = False  # a part of the current reply has arrived
        self.closed = False
        self._opening = asyncio.ensure_future(self._try_connect(context))
        self._opening.add_done_callback(self._close_unless_connected)

    def send(self, request: Request, on_result: OnResult) -> None:
        """Send the request, at once or when connected. `on_result` gets the problem, or "". One request at a time."""
        self._request, self._reply, self._on_result = request, request.new_reply(), on_result
        self.replying = False
        if self._transport is not None:
            self._transport.write(self._reply.payload)

    def is_accepted(self) -> bool | None:
        """Whether the worker has accepted the connection; None if the kernel does not report it."""
        return is_accepted(self._sock)

    def close(self) -> None:
        """Close the connection. The result of an unfinished request is not reported."""
        self._on_result = None
        if not self.closed:
            self.closed = True
            self._opening.cancel()
            if self._transport is not None:
                self._transport.abort()

    async def _try_connect(self, context: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        is_unix = self._sock.family == socket.AF_UNIX
        connect = loop.create_unix_connection if is_unix else loop.create_connection
        name = None if context is None else ""
        try:
            await connect(lambda: self, sock=self._sock, ssl=context, server_hostname=name)
        except ssl.SSLError as error:
            self._fail(f"TLS: {error.reason or error}")
        except OSError as error:
            self._fail(error.strerror or str(error) or _CONNECTION_CLOSED)

    def _close_unless_connected(self, opening: asyncio.Task[None]) -> None:
        if self._transport is None:
            self._sock.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        if self.closed:
            transport.abort()
        elif self._reply is not None:
            transport.write(self._reply.payload)

    def data_received(self, data: bytes) -> None:
        if self._reply is None:
            self._fail("it sent data without a request")
            return
        self.replying = True
        try:
            if self._reply.feed(data):
                self._complete()
        except BadMessage as error:
            self._fail(f"the response is not valid HTTP: {error}")

    def eof_received(self) -> None:
        if self._reply is not None and self._reply.record_disconnect():
            self._complete()
        self._fail(_CONNECTION_CLOSED)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(getattr(exc, "strerror", None) or _CONNECTION_CLOSED)

    def _complete(self) -> None:
        request, reply, on_result = self._request, self._reply, self._on_result
        assert request is not None
        assert reply is not None
        self._request = self._reply = self._on_result = None
        self.replies += 1
        if not reply.reusable:
            self.close()
        if on_result is not None:
            request.judge(reply, on_result)

    def _fail(self, problem: str) -> None:
        on_result = self._on_result
        self.close()
        if on_result is not None:
            on_result(problem)


@cache
def unverified_context() -> ssl.SSLContext:
    """A TLS context that accepts any certificate, because the connection itself identifies the worker."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


# After this many unanswered probes, each on a new connection, no more are sent until the last is answered.
_MAX_UNANSWERED = 3


class Prober(Protocol):
    """Sends a probe of one kind to one worker each time `start` is called."""

    def start(self, on_result: OnResult) -> None:
        """Begin a probe; `on_result` is called once, with the problem or with ""."""

    def cancel(self) -> None:
        """Stop waiting for the result: `on_result` will not be called."""

    def queued(self) -> bool:
        """Whether the probe's connection still waits to be accepted; False if that is unknown."""

    def close(self) -> None:
        """Cancel the probe in progress, and close the connection. Called when no more probes are to be sent."""


class RequestProber:
    """Probes by a request over a connection that stays open if the worker allows it."""

    def __init__(self, request: Request, connect: Connect, *, tls: bool) -> None:
        self._request = request
        self._connect = connect
        self._tls = tls
        self._connection: ProbeConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._on_result: OnResult | None = None
        self._unanswered = 0
        self._is_abandoned = False  # the caller has cancelled the request, but its connection stays open

    def start(self, on_result: OnResult) -> None:
        self._on_result = on_result
        connection = self._connection
        if self._is_abandoned:
            return
        if connection is None or connection.closed:
            self._connecting = asyncio.ensure_future(self._open_and_send())
        else:
            reused = connection.replies > 0
            connection.send(self._request, lambda problem: self._on_reply(connection, problem, reused=reused))

    def cancel(self) -> None:
        """Stop waiting for the result, and close the connection.

        From the third unanswered probe in a row on, the connection stays open, and no probe is sent until the worker
        answers on it or closes it.
        """
        self._on_result = None
        if self._connecting is not None:
            self._connecting.cancel()
        elif self._connection is not None and not self._is_abandoned:
            self._unanswered += 1
            if self._unanswered < _MAX_UNANSWERED:
                self._connection.close()
                self._connection = None
            else:
                self._is_abandoned = True

    def queued(self) -> bool:
        if self._connecting is not None:
            return True
        connection = self._connection
        return connection is not None and not connection.closed and connection.is_accepted() is False

    def close(self) -> None:
        self.cancel()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _open_and_send(self) -> None:
        try:
            sock = await self._connect()
        except OSError as error:
            self._connecting = None
            self._report(_connection_problem(error))
            return
        self._connecting = None
        context = unverified_context() if self._tls else None
        connection = self._connection = ProbeConnection(sock, context)
        connection.send(self._request, lambda problem: self._on_reply(connection, problem, reused=False))

    def _on_reply(self, connection: ProbeConnection, problem: str, *, reused: bool) -> None:
        if connection is not self._connection:
            return  # the caller cancelled before the reply was judged
        self._is_abandoned = False
        if connection.replies:
            self._unanswered = 0
        is_cut_off = problem and connection.closed and not connection.replying
        if is_cut_off and reused and self._on_result is not None:
            # The worker closed an idle connection while the request was on its way, which is not a failure.
            self._connecting = asyncio.ensure_future(self._open_and_send())
            return
        self._report(problem)

    def _report(self, problem: str) -> None:
        on_result, self._on_result = self._on_result, None
        if on_result is not None:
            on_result(problem)


class AcceptProber:
    """Probes by opening a connection, and closes it as soon as the program has accepted it.

    If the program did not accept it in time, the next probe waits for the same connection: a hung program is not
    flooded.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._task: asyncio.Task[None] | None = None
        self._sock: socket.socket | None = None

    def start(self, on_result: OnResult) -> None:
        self._task = asyncio.get_running_loop().create_task(self._connect_and_report(on_result))

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def queued(self) -> bool:
        if self._sock is None:
            return self._task is not None and not self._task.done()
        return is_accepted(self._sock) is False

    def close(self) -> None:
        self.cancel()
        if self._task is not None and not self._task.done():
            # The event loop watches the descriptor until the task has ended.
            self._task.add_done_callback(lambda _: self._close_socket())
        else:
            self._close_socket()

    async def _connect_and_report(self, on_result: OnResult) -> None:
        try:
            if self._sock is None:
                self._sock = await self._connect()
            await wait_until_accepted(self._sock)
            problem = ""
        except OSError as error:
            problem = _connection_problem(error)
        self._close_socket()
        on_result(problem)

    def _close_socket(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


class ProgramProber:
    """Probes by running a program as the server's user, with the environment variables `values` added."""

    def __init__(self, argv: list[str], server: ServerConfig, values: dict[str, str]) -> None:
        self._argv = argv
        self._server = server
        self._values = values
        self._process: subprocess.Popen[bytes] | None = None
        self._output: OutputTail | None = None
        self._pidfd = -1
        self._on_result: OnResult | None = None

    def start(self, on_result: OnResult) -> None:
        if self._process is not None:
            on_result(f"{self._argv[0]}: still running after SIGKILL")
            return
        self._on_result = on_result
        try:
            self._output = OutputTail()
            self._process = self._spawn(self._output.writer)
            self._pidfd = os.pidfd_open(self._process.pid)
        except ServerError as error:
            self._finish(f"{self._argv[0]}: {error}")
            return
        except OSError as error:
            if self._process is not None:
                self._process.kill()
            problem = f"{self._argv[0]}: {error.strerror or error}"
            # EAGAIN of fork(2): the limit of processes.
            lacks_resources = error.errno in (errno.EAGAIN, *_RESOURCE_ERRORS)
            self._finish(Unsent(problem) if lacks_resources else problem)
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    def _spawn(self, output: int) -> subprocess.Popen[bytes]:
        server = self._server
        user = user_ids(server)
        give_output_to_user(output, server)
        return subprocess.Popen(
            self._argv,
            cwd=server.cwd,
            env={**environment_for_programs(), **program_environment(server), **self._values},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            user=None if user is None else user[0],
            group=None if user is None else user[1],
            extra_groups=None if user is None else _groups(server, user[1]),
        )

    def cancel(self) -> None:
        """Stop waiting, and kill the program's process group."""
        self._on_result = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it may have become root
                os.killpg(self._process.pid, signal.SIGKILL)

    def queued(self) -> bool:
        return False

    def close(self) -> None:
        self.cancel()

    def _ended(self) -> None:
        assert self._process is not None
        assert self._output is not None
        status = self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the rest of its group
        self._finish("" if not status else _exit_problem(self._argv[0], status, self._output.last_line()))

    def _finish(self, problem: str) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
        if self._output is not None:
            self._output.close()
        self._process, self._pidfd, self._output = None, -1, None
        on_result, self._on_result = self._on_result, None
        if on_result is not None:
            on_result(problem)


def _exit_problem(program: str, status: int, output: str) -> str:
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
    return f"{program}: {how}{f': {masked_text(output)}' if output else ''}"


def _groups(server: ServerConfig, gid: int) -> list[int]:
    assert server.user is not None
    name, _, group = server.user.partition(":")
    return [gid] if group else os.getgrouplist(name, gid)


def make_prober(
    probe: Probe,
    server: ServerConfig,
    runner: Runner,
    placement: Placement,
    env: dict[str, str],
    exact: Callable[[], bool] = lambda: False,
) -> Prober:
    """The prober that runs `probe` on the worker `placement`. `env` is added to the environment of a program.

    While `exact` returns True, only this worker may answer, not another one that shares the listener.
    """

    def connect(kind: str, plain: bool) -> Awaitable[socket.socket]:
        return runner.connect_for_probe(placement, kind, plain, exact=exact())

    if probe.exec is not None:
        return ProgramProber(probe_argument_vector(server, probe.exec), server, env)
    if probe.http is not None:
        request = HttpProbeRequest(probe, exposed_url=server.expose, reusable=not server.command)
        return _request_prober(request, server, partial(connect, "http"))
    assert probe.tcp, f"another kind of probe: {probe!r}"
    if server.command:
        return AcceptProber(partial(connect, "echo", True))
    return RequestProber(EchoExchange(), partial(connect, "echo", True), tls=False)


def _request_prober(
    request: HttpProbeRequest, server: ServerConfig, connect: Callable[[bool], Awaitable[socket.socket]]
) -> RequestProber:
    # poolctl has no client certificate: servers that require one are probed without TLS.
    requires_certificate = not server.command and getattr(server.tls, "client_auth", "none") == "required"
    tls = speaks_tls(server) and not requires_certificate
    return RequestProber(request, partial(connect, not tls), tls=tls)


MAX_BODY_BYTES = 1024 * 1024  # a longer body is cut off, and the connection is closed
# The pause after a regular expression has timed out, because the application controls the matched body.
_SLOW_PAUSE_SECONDS = 60.0
_UNQUOTED = "/?&=%:@!$'()*+,;~-._"


class HttpProbeRequest:
    """An HTTP request to send as a probe, and the rules that judge its response.

    `exposed_url` is the server's public address, for the Host header. Unless `reusable`, the request asks the server to
    close the connection after the response.
    """

    __slots__ = (
        "_body",
        "_expression",
        "_host",
        "_judging",
        "_label",
        "_plain",
        "_request",
        "_slow_until",
        "_statuses",
    )

    def __init__(self, probe: Probe, *, exposed_url: str, reusable: bool = True) -> None:
        assert probe.http is not None
        self._label = f"{probe.method} {probe.http}"
        self._statuses = statuses(probe.status)
        self._body = probe.body
        self._plain = probe.body is not None and is_plain(probe.body)
        self._expression: Expression | None = None
        self._judging: asyncio.Future[None] | None = None
        self._slow_until = 0.0
        fields = _request_header_fields(probe, exposed_url, reusable=reusable)
        self._host = fields["Host"]
        self._request = request_head(probe.method, quote(probe.http, safe=_UNQUOTED), fields.items())

    def new_reply(self) -> ResponseReader:
        return ResponseReader(self._request, max_body_bytes=MAX_BODY_BYTES)

    def judge(self, reply: Reply, on_result: OnResult) -> None:
        """Judge the response, and call `on_result` with the problem, or with "" for a right response.

        If a regular expression has to be matched, `on_result` is called after `judge` has returned.
        """
        finding = f"{self._label}: status {reply.status}"
        if reply.status not in self._statuses:
            # Django, Rails and others answer 400 to a host that is not in their configuration.
            on_result(f"{finding} to the host {self._host}" if reply.status == 400 else finding)
        elif self._body is None:
            on_result("")
        elif self._plain:
            matches = self._body in reply.body.decode(errors="replace")
            on_result("" if matches else self._mismatch(finding))
        elif asyncio.get_running_loop().time() < self._slow_until:
            on_result(f"{finding}, body: {SLOW}")
        else:
            self._judging = asyncio.ensure_future(self._judge_body(reply.body, finding, on_result))

    async def _judge_body(self, body: bytes, finding: str, on_result: OnResult) -> None:
        try:
            matches = await run_in_turn(self._body_matches, body)
        except BadExpression as bad:
            if isinstance(bad, SlowExpression):
                self._slow_until = asyncio.get_running_loop().time() + _SLOW_PAUSE_SECONDS
            on_result(f"{finding}, body: {bad}")
        else:
            on_result("" if matches else self._mismatch(finding))

    def _body_matches(self, body: bytes) -> bool:
        assert self._body is not None
        self._expression = self._expression or Expression(self._body)
        return self._expression.is_found(body.decode(errors="replace"))

    def _mismatch(self, finding: str) -> str:
        return f"{finding}, and a body without {self._body!r}"


class StatusRequest(HttpProbeRequest):
    """A GET that reads only the head of the response, because the body may be long or endless."""

    def __init__(self, path: str, *, exposed_url: str) -> None:
        super().__init__(Probe(http=path), exposed_url=exposed_url, reusable=False)
        self.answer = 0

    def new_reply(self) -> ResponseReader:
        return _HeadReader(self._request)

    def judge(self, reply: Reply, on_result: OnResult) -> None:
        self.answer = reply.status
        on_result("")


class _HeadReader(ResponseReader):
    def feed(self, data: bytes) -> bool:
        super().feed(data)
        return self.head is not None


async def ask_for_status(
    path: str, server: ServerConfig, runner: Runner, placement: Placement, limit_seconds: float
) -> tuple[str, bool | None]:
    """Request `path` once; returns the answer in words, and whether the worker's code works (None if unknown).

    Status 500, a closed connection, or no answer within the limit means broken code. Any other status is taken as
    deliberate, such as the 503 of a maintenance page.
    """
    request = StatusRequest(path, exposed_url=server.expose)
    prober = _request_prober(
        request, server, lambda plain: runner.connect_for_probe(placement, "http", plain)
    )
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    prober.start(answer.set_result)
    try:
        async with asyncio.timeout(limit_seconds):
            problem = await answer
    except TimeoutError:
        return f"nothing within {format_duration(limit_seconds)}", False
    finally:
        prober.close()
    if problem:
        return problem, False if problem in _CLOSED_PROBLEMS else None
    return str(request.answer), request.answer != 500


class EchoExchange:
    """A probe's request and reply in one object: a single byte, which the worker echoes without the application."""

    payload = b"?"
    status = 0
    body = b""
    reusable = True

    def new_reply(self) -> EchoExchange:
        return self

    def judge(self, reply: Reply, on_result: OnResult) -> None:
        on_result("")

    def feed(self, data: bytes) -> bool:
        """Process received data. Returns True, because the first byte completes the reply."""
        return True

    def record_disconnect(self) -> bool:
        return False


Request = HttpProbeRequest | EchoExchange
Reply = ResponseReader | EchoExchange


def statuses(text: str) -> frozenset[int]:
    """The set of statuses in a list such as "200-299,404"."""
    numbers: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        numbers.update(range(int(low), int(high or low) + 1))
    return frozenset(numbers)


def speaks_tls(server: ServerConfig) -> bool:
    """Whether the server uses TLS. For a program this is known only from its `expose` URL."""
    if server.command:
        return server.expose.startswith("https:")
    return bool(server.tls)


def _request_header_fields(probe: Probe, exposed_url: str, *, reusable: bool) -> dict[str, str]:
    # The host name that clients use, for applications that check it.
    host = urlsplit(exposed_url).netloc.rpartition("@")[2] or "localhost"
    fields = {"Host": host, "User-Agent": "poolctl", "Accept": "*/*"}
    if not reusable:
        # A program that serves one client at a time must not wait for the next probe.
        fields["Connection"] = "close"
    names = {name.lower(): name for name in fields}
    for name, value in probe.headers.items():
        fields[names.get(name.lower(), name)] = value
    if probe.method not in ("GET", "HEAD", "OPTIONS"):
        fields["Content-Length"] = "0"
    return fields
