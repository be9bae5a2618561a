"""Answers `/health` in a thread of its own, even while the application is imported or its event loop is blocked."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import Future

from poolctl.http.http_server import HttpServer, ReceivedRequest, Responder, ServerLimits
from poolctl.http.messages import BadMessage
from poolctl.json_form import Table
from poolctl.units import format_duration
from poolctl.worker.serving.pool_server import PoolServer

_LIMITS = ServerLimits(head_bytes=8 * 1024, body_bytes=8 * 1024, keep_alive_seconds=60.0, connections=32)
_BACKLOG = 64
_TIMEOUT_SECONDS = 2.0  # the default timeout of probes
READY, ALIVE = "/health", "/health/live"


class HealthEndpoint:
    """Answers `/health` with 200 while the application is ready, and `/health/live` with 200 while it is alive.

    Otherwise the answer is 503 with the reason as its text. The reason is also logged when it changes,
    because kubelets drop the text. `probes` are the HTTP probes of `server`, by kind.
    """

    def __init__(
        self, server: str, listeners: Sequence[socket.socket], probes: Mapping[str, Table], expose: str
    ) -> None:
        self._server = server
        self._problems = {"ready": "", "alive": ""}  # as logged
        self._listeners = listeners
        self._probes = probes
        self._expose = expose
        self._application: ApplicationProbeTarget | None = None
        self._is_stopping = False
        self._started = "startup" not in probes

    def begin(self) -> None:
        """Start to answer requests for `/health` and `/health/live`, in a thread that ends with the process."""
        if self._listeners:
            threading.Thread(target=lambda: asyncio.run(self._serve()), name="health", daemon=True).start()

    def set_application(self, server: PoolServer) -> None:
        """Record that the application has started. Called within its event loop."""
        self._application = ApplicationProbeTarget(server, asyncio.get_running_loop())

    def report_stopping(self) -> None:
        """Answer 503 to `/health` from now on."""
        self._is_stopping = True

    @property
    def problem(self) -> str:
        """Why the application is not alive or not ready according to the last probe, or ""."""
        return next(
            (f"not {kind}: {problem}" for kind, problem in reversed(self._problems.items()) if problem), ""
        )

    async def _serve(self) -> None:
        server = HttpServer(self, _LIMITS, what="probes")
        for listener in self._listeners:
            server.listen(listener, _BACKLOG)
        await asyncio.get_running_loop().create_future()

    def check_client(self, sock: socket.socket) -> None:
        """Admit every client."""

    def error_response(self, error: BadMessage) -> tuple[int, str, bytes]:
        """Status, content type and body of the response to an invalid request."""
        return error.status, "text/plain", f"{error}\n".encode()

    async def handle(self, request: ReceivedRequest, response: Responder) -> None:
        """Answer with the application's health."""
        status, text = await self._answer(request.method, request.path)
        allowed = [("allow", "GET, HEAD")] if status == 405 else []
        await response.send(status, [("content-type", "text/plain"), *allowed], f"{text}\n".encode())

    async def _answer(self, method: str, path: str) -> tuple[int, str]:
        if path not in (READY, ALIVE):
            return 404, f"there are {READY} and {ALIVE}"
        if method not in ("GET", "HEAD"):
            return 405, "only GET and HEAD are answered"
        problem = await (self._readiness_problem() if path == READY else self._liveness_problem())
        return (503, problem) if problem else (200, "ok")

    async def _readiness_problem(self) -> str:
        """Why no requests should be sent to the application, or ""."""
        if self._is_stopping:
            return "the server is stopping"
        if self._application is None:
            return "the application is starting"
        problem = ""
        if not self._started:
            problem = await self._probe_problem("startup", self._application)
            self._started = not problem
        problem = problem or await self._probe_problem("readiness", self._application)
        self._log_change("ready", problem)
        return problem

    async def _liveness_problem(self) -> str:
        """Why the process should be restarted, or "". Always "" during startup and shutdown."""
        if self._is_stopping or self._application is None or not self._started:
            return ""
        problem = await self._probe_problem("liveness", self._application)
        self._log_change("alive", problem)
        return problem

    def _log_change(self, kind: str, problem: str) -> None:
        if problem != self._problems[kind] and not self._is_stopping:
            self._problems[kind] = problem
            text = f"not {kind}: {problem}" if problem else f"{kind} again"
            print(f"poolctl: {self._server}: {text}", file=sys.stderr, flush=True)

    async def _probe_problem(self, kind: str, application: ApplicationProbeTarget) -> str:
        """The problem that the probe of this kind finds, or ""; a timeout is a problem, too.

        Without such a probe, it is enough that the application's event loop runs.
        """
        values = self._probes.get(kind)
        if values is None:
            return await problem_within(application.wait_until_loop_runs(), _TIMEOUT_SECONDS)
        # Imported late, because it takes 1.5 MB.
        from poolctl.config import Probe
        from poolctl.probes.prober import HttpProbeRequest, RequestProber

        probe = Probe(**values)
        prober = RequestProber(
            HttpProbeRequest(probe, exposed_url=self._expose), application.connect, tls=False
        )
        result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        prober.start(lambda problem: None if result.done() else result.set_result(problem))
        try:
            return await problem_within(result, probe.timeout)
        finally:
            prober.close()


async def problem_within(problem: Awaitable[str], seconds: float) -> str:
    """Run a check with a time limit; returns its problem, or a timeout."""
    try:
        async with asyncio.timeout(seconds):
            return await problem
    except TimeoutError:
        return f"no answer within {format_duration(seconds)}"


class ApplicationProbeTarget:
    """A started application, for probes that run in another thread than its event loop."""

    def __init__(self, server: PoolServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop

    async def wait_until_loop_runs(self) -> str:
        """Wait until the application's event loop runs a callback; returns "", or the error if the loop is closed."""
        answered: Future[str] = Future()
        try:
            self._loop.call_soon_threadsafe(answered.set_result, "")
        except RuntimeError as error:
            return str(error)
        return await asyncio.shield(asyncio.wrap_future(answered))

    async def connect(self) -> socket.socket:
        """Connect to the application directly: its listeners may be full or require certificates. Raises OSError."""
        near_end, far_end = socket.socketpair()
        for end in (near_end, far_end):
            end.setblocking(False)
        try:
            self._loop.call_soon_threadsafe(
                self._server.answer_probe, {"kind": "http", "plain": True}, far_end
            )
        except RuntimeError as error:
            near_end.close()
            far_end.close()
            raise OSError(str(error)) from None
        return near_end
