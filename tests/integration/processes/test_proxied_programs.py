"""Programs that open a port of their own in each process, while HAProxy serves the server's port, in real pools."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import Any

import pytest

from tests.configuration import server
from tests.deadline import wait_until
from tests.environments import need_gateway
from tests.http_get import get
from tests.load.load import Load
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


def written(pool: RealPool, port: int, program: str = PROGRAM, **keys: Any) -> str:
    need_gateway()
    pool.write("program.py", program)
    command = [sys.executable, "program.py"]
    pool.write(
        "pool.toml", server("web", bind=f"127.0.0.1:{port}", command=command, socket="proxied", **keys)
    )
    return f"http://127.0.0.1:{port}"


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


def test_requests_wait_for_the_process_that_replaces_one_that_has_ended(
    pool: RealPool, free_port: Any
) -> None:
    url = written(pool, free_port())
    pool.ok("start")
    (pid,) = workers(pool)
    os.kill(pid, signal.SIGKILL)
    assert get(url).body.split()[0] != str(pid).encode()


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
    wait_until(lambda: pool.run("status").code == 0)
    assert {*workers(pool)} == before
    pool.ok("restart")
    assert get(url).status == 200
    summary = pool.ok("status", "-o", "json").json["summary"]
    (gateway,) = (each["pid"] for each in summary["processes"] if each["name"] == "gateway")
    os.kill(gateway, signal.SIGKILL)
    assert get(url).status == 200


def test_connections_of_another_protocol_are_forwarded(pool: RealPool, free_port: Any) -> None:
    port = free_port()
    written(pool, port, ECHO, forward="tcp")
    pool.ok("start")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(b"\x00\xffnot HTTP\r\n")
        assert client.recv(100) == b"\x00\xffnot HTTP\r\n"


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
    url = written(pool, free_port(), stolen, start_timeout="3s", restart="no")
    done = pool.run("start")
    assert done.code != 0
    assert "another process listens at its private port" in done.stderr
    began = time.monotonic()
    assert get(url).status == 503
    assert time.monotonic() - began < 20
