"""The health address of a served app, from its import to its end."""

from __future__ import annotations

import asyncio
import http.client
import os
import shlex
import signal
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.config import Probe
from poolctl.features.serve._health import ApplicationProbeTarget, HealthEndpoint, problem_within
from poolctl.http.messages import BadMessage
from tests.certificates import certificate
from tests.configuration import server
from tests.features.serve.conftest import APP
from tests.features.serve.test_serve import refuses
from tests.http_get import Reply, get
from tests.processes import children
from tests.real_pool import RealPool


@pytest.mark.integration
@pytest.mark.capability
def test_health_is_known_from_the_import_to_the_end_and_no_request_is_lost(serve: Any, until: Any) -> None:
    web = serve("--stop-delay", "10m", waits=True)
    until(lambda: web.health() == (503, "the application is starting"))
    assert web.health("/health/live") == (200, "ok"), "a start that takes long is limited elsewhere"
    web.touch("imported")
    until(lambda: web.health() == (200, "ok"))
    assert get(web.port).text == str(web.process.pid), "one process"
    replies: list[Reply] = []
    asking = web.get_later("/slow", replies)
    until(web.is_asked)
    kept = http.client.HTTPConnection("127.0.0.1", web.port, timeout=60)
    kept.request("GET", "/")
    assert kept.getresponse().read() == str(web.process.pid).encode()
    web.process.send_signal(signal.SIGTERM)
    until(lambda: web.health() == (503, "the server is stopping"))
    assert get(web.port).status == 200, "it serves on until the delay is over"
    kept.request("GET", "/")
    assert kept.getresponse().read() == str(web.process.pid).encode()
    assert web.health("/health/live") == (200, "ok")
    web.process.send_signal(signal.SIGTERM)  # ends the delay
    until(lambda: refuses(web.port))
    web.touch("answer")
    asking.join(60)
    assert [reply.status for reply in replies] == [200], "what was in progress is completed"
    assert web.process.wait(60) == 0
    kept.close()


@pytest.mark.integration
def test_probes_of_the_server_decide(serve: Any, until: Any) -> None:
    health = {
        "startup": {"http": "/check-startup", "timeout": 60},
        "readiness": {"http": "/check-readiness", "timeout": 60, "status": "200-299"},
        "liveness": {"http": "/check-liveness", "timeout": 60},
    }
    web = serve(health=health, waits=True)
    for kind, status in (("startup", 500), ("readiness", 404), ("liveness", 500)):
        web.touch(f"check-{kind}", str(status))
    web.touch("imported")
    until(lambda: web.health() == (503, "GET /check-startup: status 500"))
    assert web.health("/health/live") == (200, "ok"), "the other probes begin after the startup probe"
    web.touch("check-startup", "200")
    assert web.health() == (503, "GET /check-readiness: status 404")
    web.touch("check-startup", "500")
    web.touch("check-readiness", "204")
    assert web.health() == (200, "ok"), "the startup probe has to succeed once"
    assert web.health("/health/live") == (503, "GET /check-liveness: status 500")
    web.touch("check-liveness", "200")
    assert web.health("/health/live") == (200, "ok")


@pytest.mark.integration
def test_blocked_event_loop_is_neither_ready_nor_alive(serve: Any, until: Any) -> None:
    web = serve()
    until(lambda: web.health() == (200, "ok"))
    asking = web.get_later("/block", [])
    until(web.is_asked)
    assert web.health() == (503, "no answer within 2s")
    assert web.health("/health/live") == (503, "no answer within 2s")
    web.touch("answer")
    asking.join(60)
    until(lambda: web.health() == (200, "ok"))


@pytest.mark.integration
def test_probe_needs_no_certificate_of_a_server_with_tls(serve: Any, until: Any, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    web = serve(tls={"cert": str(cert), "key": str(key)}, health="/check")
    web.touch("check", "200")
    until(lambda: web.health() == (200, "ok"))
    assert get(f"https://127.0.0.1:{web.port}").status == 200
    web.touch("check", "503")
    until(lambda: web.health() == (503, "GET /check: status 503"))


@pytest.mark.integration
def test_other_paths_and_methods_are_refused(serve: Any, until: Any) -> None:
    web = serve()
    until(lambda: web.health()[0])
    assert web.health("/") == (404, "there are /health and /health/live")
    connection = http.client.HTTPConnection("127.0.0.1", web.health_port, timeout=60)
    connection.request("POST", "/health")
    reply = connection.getresponse()
    assert (reply.status, reply.getheader("allow")) == (405, "GET, HEAD")
    assert reply.read() == b"only GET and HEAD are answered\n"
    connection.close()


class Answered:
    """What a request has been answered with."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, list[tuple[str, str]], bytes]] = []

    async def send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.sent.append((status, headers, body))


async def asked(health: HealthEndpoint, path: str = "/health", method: str = "GET") -> tuple[int, str]:
    answered: Any = Answered()
    await health.handle(SimpleNamespace(method=method, path=path), answered)  # type: ignore[arg-type]
    ((status, headers, body),) = answered.sent
    allowed = [("allow", "GET, HEAD")] if status == 405 else []
    assert headers == [("content-type", "text/plain"), *allowed]
    assert body.endswith(b"\n")
    return status, body.decode()[:-1]


class Answering:
    """An application that answers probes with these statuses by their paths."""

    def __init__(self, **statuses: int) -> None:
        self.statuses = statuses
        self.asked: list[str] = []

    def answer_probe(self, question: object, sock: socket.socket) -> None:
        assert question == {"kind": "http", "plain": True}
        asyncio.get_running_loop().create_task(self._answer(sock))

    async def _answer(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        self.asked.append(path)
        status = self.statuses[path.strip("/")]
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()


PROBES = {kind: Probe(http=f"/{kind}", timeout=60).to_dict() for kind in ("startup", "readiness", "liveness")}
START, READY, LIVE = "/startup", "/readiness", "/liveness"


async def test_app_without_probes_is_healthy_while_its_event_loop_answers() -> None:
    health = HealthEndpoint("web", [], {}, "http://a")
    assert await asked(health) == (503, "the application is starting")
    assert await asked(health, "/health/live") == (200, "ok")
    health.set_application(Answering())  # type: ignore[arg-type]
    assert await asked(health) == (200, "ok")
    assert await asked(health, "/health", "HEAD") == (200, "ok")
    assert await asked(health, "/health/live") == (200, "ok")
    health.report_stopping()
    assert await asked(health) == (503, "the server is stopping")
    assert await asked(health, "/health/live") == (200, "ok")


@pytest.mark.parametrize("path", ["/", "/health/", "/healthy", "/health/live/x"])
async def test_other_path_is_404_and_another_method_405(path: str) -> None:
    health = HealthEndpoint("web", [], {}, "http://a")
    assert await asked(health, path) == (404, "there are /health and /health/live")
    assert await asked(health, "/health", "POST") == (405, "only GET and HEAD are answered")
    assert health.error_response(BadMessage("too long", status=431)) == (431, "text/plain", b"too long\n")


async def test_other_probes_begin_once_the_startup_probe_has_succeeded() -> None:
    health = HealthEndpoint("web", [], PROBES, "http://a")
    app = Answering(startup=500, readiness=404, liveness=500)
    health.set_application(app)  # type: ignore[arg-type]
    assert await asked(health) == (503, "GET /startup: status 500")
    assert await asked(health, "/health/live") == (200, "ok")
    assert app.asked == [START]
    app.statuses["startup"] = 204
    assert await asked(health) == (503, "GET /readiness: status 404")
    assert await asked(health, "/health/live") == (503, "GET /liveness: status 500")
    assert app.asked == [START, START, READY, LIVE]
    app.statuses |= {"startup": 500, "readiness": 399, "liveness": 200}
    assert await asked(health) == (200, "ok")
    assert await asked(health, "/health/live") == (200, "ok")
    assert app.asked[4:] == [READY, LIVE]
    health.report_stopping()
    assert await asked(health, "/health/live") == (200, "ok")
    assert app.asked[6:] == []


async def test_check_that_takes_too_long_says_for_how_long() -> None:
    async def forever() -> str:
        await asyncio.Event().wait()
        return ""

    assert await problem_within(forever(), 0.01) == "no answer within 10ms"


async def test_application_whose_event_loop_has_ended_is_not_healthy() -> None:
    ended = asyncio.new_event_loop()
    ended.close()
    application = ApplicationProbeTarget(Answering(), ended)  # type: ignore[arg-type]
    assert await application.wait_until_loop_runs() == "Event loop is closed"
    with pytest.raises(OSError, match="Event loop is closed"):
        await application.connect()


async def test_connection_to_the_application_blocks_neither_event_loop() -> None:
    taken: list[socket.socket] = []
    server: Any = SimpleNamespace(answer_probe=lambda question, sock: taken.append(sock))
    with await ApplicationProbeTarget(server, asyncio.get_running_loop()).connect() as ours:
        await asyncio.sleep(0)
        (theirs,) = taken
        with theirs:
            assert (ours.getblocking(), theirs.getblocking()) == (False, False)
            ours.send(b"GET")
            assert theirs.recv(9) == b"GET"


@pytest.mark.integration
@pytest.mark.capability
def test_reason_is_logged_once_for_each_change(serve: Any, until: Any) -> None:
    health = {
        "readiness": {"http": "/check-ready", "timeout": 60},
        "liveness": {"http": "/check-live", "timeout": 60},
    }
    web = serve(health=health, waits=True)
    web.touch("check-live", "200")
    web.touch("check-ready", "400")
    web.touch("imported")
    refused = f"GET /check-ready: status 400 to the host 127.0.0.1:{web.port}"
    for status, answer in (
        (400, refused),
        (200, "ok"),
        (500, "GET /check-ready: status 500"),
    ):
        web.touch("check-ready", str(status))
        until(lambda answer=answer: web.health()[1] == answer)
        assert [web.health()[1] for _ in range(3)] == [answer] * 3
    web.touch("check-live", "500")
    assert web.health("/health/live") == web.health("/health/live") == (503, "GET /check-live: status 500")
    web.process.terminate()
    _, output = web.process.communicate(timeout=60)
    assert [line for line in output.splitlines() if line.startswith("poolctl: ")] == [
        f"poolctl: web: not ready: {refused}",
        "poolctl: web: ready again",
        "poolctl: web: not ready: GET /check-ready: status 500",
        "poolctl: web: not alive: GET /check-live: status 500",
    ]


IN_A_CONTAINER = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && touch /dev/termination-log"


@pytest.mark.integration
def test_last_reason_is_the_termination_message_after_an_end_in_order(
    real_pool: RealPool, until: Any, free_port: Any
) -> None:
    if (
        os.geteuid()
        or subprocess.run(["unshare", "-m", "sh", "-c", IN_A_CONTAINER], capture_output=True).returncode
    ):
        pytest.skip("a file in /dev needs root, and a namespace of mounts")
    port, health = free_port(), free_port()
    real_pool.write("application.py", APP)
    real_pool.write("imported", "")
    real_pool.write("check", "400")
    keys = {"app": "application:app", "health": "/check", "drain_timeout": 1}
    real_pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", **keys))
    command = shlex.join([*real_pool.command(), "serve", "--health", f"127.0.0.1:{health}"])
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"{IN_A_CONTAINER} && {command}; echo $?; cat /dev/termination-log"],
        cwd=real_pool.directory, env=real_pool.env, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    reason = f"GET /check: status 400 to the host 127.0.0.1:{port}"
    until(lambda: not refuses(health) and get(health, "/health").text.strip() == reason)
    (pid,) = children(process.pid)
    os.kill(pid, signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == f"0\nnot ready: {reason}"
