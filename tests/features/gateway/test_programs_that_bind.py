"""Restarts of programs that open their address themselves: requests of the gateway wait for the next process."""

from __future__ import annotations

import os
import signal
import sys
from itertools import groupby
from typing import Any

import pytest

from tests.environments import need_gateway
from tests.http_get import get
from tests.integration.processes.test_reload import asked_all_the_time
from tests.ports import claim_port
from tests.real_pool import RealPool

pytestmark = [pytest.mark.slow, pytest.mark.integration]

# Answers with its pid. After SIGTERM it answers for LINGERS seconds, and a start takes LOADS seconds.
PROGRAM = """
import http.server, os, signal, threading, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # the response is sent at once

    def do_GET(self):
        text = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass

time.sleep(float(os.environ["LOADS"]))
server = http.server.ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler)
lingers = float(os.environ["LINGERS"])
signal.signal(15, lambda *_: threading.Timer(lingers, os._exit, [0]).start() if lingers else os._exit(0))
server.serve_forever()
"""


def start(pool: RealPool, kind: str, lingers: float = 0.0, loads: float = 0.0) -> int:
    """Start a pool with this program behind a gateway; returns the gateway's port."""
    need_gateway()
    pool.write("program.py", PROGRAM)
    port, own = claim_port(), claim_port()
    way = {
        "route": f'[gateway]\nbind = "127.0.0.1:{port}"\n[[route]]\nto = "a"\n',
        "stream": f'[[stream]]\nbind = "127.0.0.1:{port}"\nto = "a"\n',
    }[kind]
    pool.write(
        "pool.toml",
        f'{way}[[server]]\nname = "a"\nbind = "127.0.0.1:{own}"\nsocket = "program"\n'
        f'command = ["{sys.executable}", "program.py"]\nenv = {{ LINGERS = "{lingers}", LOADS = "{loads}" }}\n',
    )
    pool.ok("start")
    return port


def pid_of(pool: RealPool) -> str:
    (pid,) = pool.items()["a"]["pids"]
    return str(pid)


@pytest.mark.parametrize(
    ("kind", "lingers", "loads"),
    [
        ("route", 0.0, 0.5),
        pytest.param("route", 0.7, 0.0, marks=pytest.mark.capability),
        ("stream", 0.7, 0.5),
    ],
)
def test_restart_uses_the_process_before_as_long_as_it_serves_and_then_waits_for_the_next_one(
    real_pool: RealPool, until: Any, kind: str, lingers: float, loads: float
) -> None:
    port = start(real_pool, kind, lingers, loads)
    before = pid_of(real_pool)
    with asked_all_the_time(port) as answers:
        real_pool.ok("restart")
        after = pid_of(real_pool)
        until(lambda: answers[-1] == after)
    assert [each for each, _ in groupby(filter(str.isdigit, answers))] == [before, after]
    # A stream loses the connection that the program was serving when it exited, and one that it had not accepted yet.
    assert sum(each not in (before, after) for each in answers) <= 2 * (kind == "stream"), answers


@pytest.mark.parametrize("kind", ["route", "stream"])
def test_killed_program_is_waited_for(real_pool: RealPool, until: Any, kind: str) -> None:
    port = start(real_pool, kind, loads=0.3)
    before = pid_of(real_pool)
    with asked_all_the_time(port) as answers:
        os.kill(int(before), signal.SIGKILL)
        after = until(lambda: next((each for each in answers if each.isdigit() and each != before), ""))
    # The request that it was answering is lost.
    assert sum(each not in (before, after) for each in answers) <= 1, answers


def test_program_that_a_command_stops_is_not_waited_for(real_pool: RealPool, until: Any) -> None:
    port = start(real_pool, "route")
    real_pool.ok("stop", "a")
    assert get(port).status == 503
    real_pool.ok("start", "a")
    assert get(port).status == 200
