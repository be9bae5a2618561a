"""Programs that open a port of their own in each process, while HAProxy serves the server's port, in real pools."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from tests.configuration import server
from tests.deadline import wait_until
from tests.environments import need_gateway
from tests.http_get import get
from tests.load import Load, Report
from tests.programs import program
from tests.real_pool import RealPool

# Listens at $PORT a moment after its start, as a program does that has much to import.
PROGRAM = """
import http.server, os, time

class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        said = {name.lower(): value for name, value in self.headers.items()}
        body = f"{os.getpid()} {said.get('x-forwarded-for')} {said.get('x-forwarded-proto')}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

time.sleep(0.3)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Answer).serve_forever()
"""

# Echoes what a connection sends, and speaks no HTTP.
ECHO = """
import os, socketserver

class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(4096):
            self.request.sendall(data)

class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

Server(("127.0.0.1", int(os.environ["PORT"])), Echo).serve_forever()
"""


NODE = """
const http = require("http");
http.createServer((request, response) => response.end("hello")).listen(process.env.PORT, process.env.HOST);
"""

WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]
"""

COMMAND = (sys.executable, "program.py")
# Each with its command.
PROGRAMS = {
    "node": (NODE, ("node", "program.py")),
    "gunicorn": (WSGI, (sys.executable, "-m", "gunicorn", "-b", "{bind}", "program:app")),
    "a slow starter": (PROGRAM.replace("time.sleep(0.3)", "time.sleep(5)"), COMMAND),
    "an echo": (ECHO, COMMAND),
}


def written(
    pool: RealPool, port: int, text: str = PROGRAM, command: Sequence[str] = COMMAND, **keys: Any
) -> str:
    need_gateway()
    pool.write("program.py", text)
    pool.write(
        "pool.toml", server("web", bind=f"127.0.0.1:{port}", command=[*command], socket="proxied", **keys)
    )
    return f"http://127.0.0.1:{port}"


class EchoClients:
    """Clients of an echo, each of which connects, says some lines and hears them again, until the block ends."""

    def __init__(self, port: int, count: int = 4) -> None:
        self.port = port
        self._outcomes: list[str] = []  # why a conversation failed, "" for a complete one
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._talk) for _ in range(count)]

    def __enter__(self) -> EchoClients:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join()

    @property
    def report(self) -> Report:
        """The conversations so far."""
        failures = [each for each in self._outcomes if each]
        complete = len(self._outcomes) - len(failures)
        return Report(complete=complete, dropped=len(failures), failures=failures)

    def _talk(self) -> None:
        while not self._over.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=60) as client:
                    for number in range(5):
                        client.sendall(said := b"\0line %d\n" % number)
                        if (heard := client.recv(100)) != said:
                            raise ConnectionError(f"{heard!r} instead of {said!r}")
                self._outcomes.append("")
            except OSError as error:
                self._outcomes.append(str(error) or repr(error))


def workers(pool: RealPool) -> list[int]:
    return list(pool.items()["web"]["pids"])


@pytest.mark.capability
def test_requests_are_spread_over_processes_and_none_fails_in_a_restart(
    pool: RealPool, free_port: Any
) -> None:
    port = free_port()
    url = written(pool, port, workers=2)
    pool.ok("start")
    answers = [get(url).body.decode().split() for _ in range(20)]
    assert {int(pid) for pid, *_ in answers} == {*workers(pool)}
    assert {tuple(rest) for _, *rest in answers} == {("127.0.0.1", "http")}
    before = workers(pool)
    with Load([port], "new_connection", connections=4, echo=False) as load:
        pool.ok("restart")
    assert load.report.failed == 0
    assert load.report.complete > 0
    assert not {*before} & {*workers(pool)}


@pytest.mark.parametrize("mode", ["keep_alive", "new_connection"])
def test_no_request_fails_in_restarts_reloads_and_changes_of_size(
    pool: RealPool, free_port: Any, mode: str
) -> None:
    port = free_port()
    written(pool, port)
    pool.ok("start")
    with Load([port], mode, connections=6, echo=False) as load:
        for _ in range(3):
            pool.ok("restart")
        pool.ok("scale", "web", "3")
        pool.ok("scale", "web", "1")
        written(pool, port, env={"CHANGED": "1"})
        pool.ok("reload")
    assert load.report.failed == 0, load.report


def test_restart_lets_a_program_that_ends_at_once_complete_its_responses(
    pool: RealPool, free_port: Any
) -> None:
    port = free_port()
    written(pool, port, PROGRAM.replace("self.wfile", "time.sleep(0.5)\n        self.wfile"))
    pool.ok("start")
    with Load([port], "new_connection", connections=4, echo=False) as load:
        for _ in range(2):
            pool.ok("restart")
    assert load.report.failed == 0, load.report


def test_requests_wait_when_all_processes_end_at_once(pool: RealPool, free_port: Any) -> None:
    port = free_port()
    written(pool, port, workers=2)
    pool.ok("start")
    before = workers(pool)
    with Load([port], "new_connection", connections=4, echo=False) as load:
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len({*workers(pool)} - {*before}) == 2)
    # The processes may have been answering one request of each connection.
    assert load.report.failed <= 4, load.report


def test_first_request_starts_a_sleeping_program_and_waits_for_it(pool: RealPool, free_port: Any) -> None:
    url = written(pool, free_port(), scale={"min": 0})
    pool.ok("start")
    assert workers(pool) == []
    assert get(url).status == 200
    assert len(workers(pool)) == 1


def test_supervisor_and_haproxy_may_be_killed(pool: RealPool, free_port: Any) -> None:
    url = written(pool, free_port(), workers=2)
    pool.ok("start")
    before = {*workers(pool)}
    os.kill(pool.info()["supervisor_pid"], signal.SIGKILL)
    assert get(url).status == 200
    wait_until(pool.is_ready)
    assert {*workers(pool)} == before
    pool.ok("restart")
    assert get(url).status == 200
    summary = pool.ok("status", "-o", "json").json["summary"]
    (gateway,) = (each["pid"] for each in summary["processes"] if each["name"] == "gateway")
    os.kill(gateway, signal.SIGKILL)
    assert get(url).status == 200


def test_stopped_server_refuses_at_its_own_address_and_a_route_to_it_answers_503(
    pool: RealPool, free_port: Any
) -> None:
    url, gateway = written(pool, free_port(), workers=2), free_port()
    routed = f"http://127.0.0.1:{gateway}"
    text = (pool.directory / "pool.toml").read_text()
    pool.write("pool.toml", f'[gateway]\nbind = "127.0.0.1:{gateway}"\n[[route]]\nto = "web"\n{text}')
    pool.ok("start")
    for stop, start in (("stop", "start"), ("disable", "enable")):
        assert (get(url).status, get(routed).status) == (200, 200)
        pool.ok(stop, "web")
        with pytest.raises(ConnectionRefusedError):
            get(url)
        assert get(routed).status == 503
        pool.ok(start, "web")
    assert (get(url).status, get(routed).status) == (200, 200)


def test_connections_of_another_protocol_are_forwarded(pool: RealPool, free_port: Any) -> None:
    port = free_port()
    written(pool, port, ECHO, forward="tcp")
    pool.ok("start")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(b"\x00\xffnot HTTP\r\n")
        assert client.recv(100) == b"\x00\xffnot HTTP\r\n"


@pytest.mark.heavy
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PROGRAMS)
def test_no_change_fails_a_request_to_programs_of_every_kind(
    pool: RealPool, free_port: Any, name: str
) -> None:
    if name == "node":
        program("node")
    port = free_port()
    text, command = PROGRAMS[name]
    forward = "tcp" if name == "an echo" else "http"
    written(pool, port, text, command, forward=forward, workers=2)
    pool.ok("start")
    clients = clients_of(name, port)
    with ExitStack() as stack:
        for each in clients:
            stack.enter_context(each)
        for _ in range(20):
            pool.ok("restart")
        for size in ("4", "1", "2"):
            pool.ok("scale", "web", size)
        written(pool, port, text, command, forward=forward, workers=2, env={"CHANGED": "1"})
        pool.ok("reload")
    written(pool, port, text, command, forward=forward, scale={"min": 0})
    pool.ok("reload")
    pool.ok("stop", "web")
    pool.ok("start", "web")
    assert workers(pool) == []
    waking = clients_of(name, port)
    with ExitStack() as stack:
        for each in waking:
            stack.enter_context(each)
        wait_until(lambda: workers(pool))
    for each in (*clients, *waking):
        assert each.report.complete > 0
        assert each.report.failed == 0, each.report


def clients_of(name: str, port: int) -> Sequence[Load | EchoClients]:
    """Clients of one of PROGRAMS."""
    if name == "an echo":
        return [EchoClients(port)]
    return [Load([port], each, pause=0.002, echo=False) for each in ("keep_alive", "new_connection")]


def test_process_whose_port_another_program_has_taken_gets_no_request(pool: RealPool, free_port: Any) -> None:
    """Another process listens there, which the program has started, but which is no descendant of it any more."""
    stolen = """
import os, subprocess, sys, time

thief = \"\"\"
import http.server, os, sys
if os.fork():
    os._exit(0)
os.setsid()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
\"\"\"
subprocess.run([sys.executable, "-c", thief, os.environ["PORT"]])
time.sleep(60)
"""
    url = written(pool, free_port(), stolen, start_timeout="10s", restart="no")
    done = pool.run("start")
    assert done.code != 0
    assert "another process listens at its private port" in done.stderr
    with pytest.raises(ConnectionRefusedError):
        get(url)
