"""`poolctl serve`: one server as one process, as a container runs it."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import certificate
from tests.configuration import server
from tests.http_get import Reply, get
from tests.real_pool import HELLO_APP, RealPool

pytestmark = pytest.mark.integration

HEALTH = "127.0.0.1:{}".format
# The import waits for a file; so does the answer to /slow. /check answers what is in a file.
APP = """
import asyncio, os, pathlib, time

while not os.path.exists("imported"):
    time.sleep(0.01)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    status = 200
    if scope["path"] == "/slow":
        pathlib.Path("asked").touch()
        while not os.path.exists("answer"):
            await asyncio.sleep(0.01)
    if scope["path"] == "/block":
        pathlib.Path("asked").touch()
        while not os.path.exists("answer"):
            time.sleep(0.01)
    if scope["path"].startswith("/check"):
        status = int(pathlib.Path(scope["path"][1:]).read_text())
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""


class Served:
    """A server that is served, with its health address."""

    def __init__(self, pool: RealPool, port: int, health: int, *args: str) -> None:
        self.pool, self.port, self.health_port = pool, port, health
        self.process: subprocess.Popen[str] = pool.spawn("serve", "web", "--health", HEALTH(health), *args)

    def health(self, path: str = "/health") -> tuple[int, str]:
        """The status and the text; (0, "") while nothing listens."""
        try:
            reply = get(self.health_port, path)
        except ConnectionRefusedError:
            return 0, ""
        return reply.status, reply.text.strip()

    def touch(self, name: str, text: str = "") -> None:
        (self.pool.directory / name).write_text(text)

    def is_asked(self) -> bool:
        return (self.pool.directory / "asked").exists()

    def get_later(self, path: str, replies: list[Reply]) -> threading.Thread:
        thread = threading.Thread(target=lambda: replies.append(get(self.port, path)))
        thread.start()
        return thread


@pytest.fixture
def serve(real_pool: RealPool, free_port: Any) -> Any:
    """`serve(*arguments, **keys)`: serves APP, imported unless `waits`."""

    def begin(*args: str, waits: bool = False, text: str = APP, **keys: Any) -> Served:
        port, health = free_port(), free_port()
        real_pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", app="application:app", **keys))
        real_pool.write("application.py", text)
        if not waits:
            real_pool.write("imported", "")
        return Served(real_pool, port, health, *args)

    return begin


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


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_after_the_delay_it_drains(serve: Any, until: Any) -> None:
    web = serve("--stop-delay", "50ms", drain_timeout="10m", stop_timeout="100ms")
    until(lambda: web.health() == (200, "ok"))
    replies: list[Reply] = []
    asking = web.get_later("/slow", replies)
    until(web.is_asked)
    web.process.send_signal(signal.SIGTERM)
    until(lambda: refuses(web.port))
    with pytest.raises(subprocess.TimeoutExpired):  # it would end if this were a stop
        web.process.wait(1)
    web.touch("answer")
    asking.join(60)
    assert [reply.status for reply in replies] == [200]
    assert web.process.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_the_import_ends_it(serve: Any, until: Any, number: signal.Signals) -> None:
    web = serve(waits=True)
    until(lambda: web.health()[0] == 503)
    web.process.send_signal(number)
    assert web.process.wait(60) == 0


FAILING = HELLO_APP.replace(
    '"type": kind + ".complete"', '"type": "lifespan.startup.failed", "message": "no database"'
)
MISSING = "cannot import 'application:app': ModuleNotFoundError: No module named 'missing_library'"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import missing_library", MISSING),
        ("app = 5", "application:app is no ASGI application but 5"),
        (FAILING, "the application did not start"),
    ],
    ids=["import", "attribute", "lifespan"],
)
def test_last_line_is_the_reason_for_a_failed_start(serve: Any, text: str, reason: str) -> None:
    web = serve(text=text)
    _, output = web.process.communicate(timeout=60)
    assert web.process.returncode == 1, output
    assert output.splitlines()[-1] == f"poolctl: web: {reason}"


def test_probes_of_the_server_decide(serve: Any, until: Any) -> None:
    health = {
        "startup": {"http": "/check-startup"},
        "readiness": {"http": "/check-readiness", "status": "200-299"},
        "liveness": {"http": "/check-liveness"},
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


def test_blocked_event_loop_is_neither_ready_nor_alive(serve: Any, until: Any) -> None:
    web = serve()
    until(lambda: web.health() == (200, "ok"))
    asking = web.get_later("/block", [])
    until(web.is_asked)
    assert web.health() == (503, "no answer within 2s")
    assert web.health("/health/live") == (503, "no answer within 2s")
    web.touch("answer")
    asking.join(60)
    assert web.health() == (200, "ok")


def test_probe_needs_no_certificate_of_a_server_with_tls(serve: Any, until: Any, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    web = serve(tls={"cert": str(cert), "key": str(key)}, health="/check")
    web.touch("check", "200")
    until(lambda: web.health() == (200, "ok"))
    assert get(f"https://127.0.0.1:{web.port}").status == 200
    web.touch("check", "503")
    assert web.health() == (503, "GET /check: status 503")


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


def test_command_becomes_the_process(real_pool: RealPool, until: Any, free_port: Any) -> None:
    bound, port = free_port(), free_port()
    program = real_pool.write(
        "program.py",
        """
        import os, socket
        listener = socket.socket(fileno=3)
        while True:
            connection, _ = listener.accept()
            connection.recv(4096)
            body = str(os.getpid()).encode()
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))
            connection.close()
        """,
    )
    table = server("it", bind=f"127.0.0.1:{bound}", command=["python3", str(program)])
    real_pool.write("pool.toml", table)
    process = real_pool.spawn("serve", "--listen", f"127.0.0.1:{port}")
    until(lambda: not refuses(port))
    assert get(port).text == str(process.pid)
    assert refuses(bound)
    for option in (["--health", ":0"], ["--stop-delay", "1s"]):
        done = real_pool.run("serve", *option)
        assert (done.code, f"{option[0]} needs an app, and it is a command" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 2, "serve runs one server, and 2 are selected"),
        (["nothing"], 4, "nothing"),
        (["a", "--listen", "elsewhere"], 2, "--listen: "),
        (["a", "--health", "elsewhere"], 2, "--health: "),
        (["a", "--stop-delay", "long"], 2, "--stop-delay: "),
    ],
)
def test_impossible_command_is_refused_with_the_reason(
    real_pool: RealPool, args: list[str], code: int, words: str
) -> None:
    real_pool.write_hello("a", "b")
    done = real_pool.run("serve", *args)
    assert (done.code, words in done.stderr) == (code, True), str(done)


def test_port_in_use_is_named(real_pool: RealPool) -> None:
    real_pool.write_hello("web")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = real_pool.run("serve", "--health", f"127.0.0.1:{port}")
    assert done.code == 1
    assert "--health: " in done.stderr
    assert str(port) in done.stderr
