"""Sticky cookies of a server whose processes open their own ports: each names one process, or its successor."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest

from tests.environments import need_gateway
from tests.http_get import Reply, get
from tests.ports import claim_port
from tests.real_pool import RealPool

pytestmark = [pytest.mark.slow, pytest.mark.integration]

PROGRAM = """
import http.server, os

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        text = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def cookie_of(reply: Reply) -> str:
    return reply.headers.get("set-cookie", "").partition(";")[0]


@pytest.mark.capability
def test_client_stays_at_its_process_and_goes_to_another_one_when_that_ends(
    real_pool: RealPool, until: Any
) -> None:
    need_gateway()
    port, own = claim_port(), claim_port()
    real_pool.write("program.py", PROGRAM)
    real_pool.write(
        "pool.toml",
        f'[gateway]\nbind = "127.0.0.1:{port}"\n[[route]]\nto = "web"\npolicy = "sticky"\nsticky = "at"\n'
        f'[[server]]\nname = "web"\nbind = "127.0.0.1:{own}"\nsocket = "proxied"\nworkers = 2\n'
        f'command = ["{sys.executable}", "program.py"]\n',
    )
    real_pool.ok("start")

    def ask(cookie: str) -> Reply:
        reply = get(port, headers={"Cookie": cookie})
        assert reply.status == 200
        return reply

    def haproxy() -> list[int]:
        return [pid for pid, command in real_pool.processes().items() if "haproxy -D " in command]

    replies = [get(port) for _ in range(6)]
    found = {cookie_of(each): each.text for each in replies}
    assert len(found) == len({*found.values()}) == 2
    assert all(ask(cookie).text == pid for cookie, pid in [*found.items()] * 3)
    before = haproxy()
    # One process ends: its clients get the cookie of the other one.
    (one, pid), (other, other_pid) = found.items()
    os.kill(int(pid), signal.SIGKILL)
    moved = ask(one)
    if moved.text == other_pid:
        assert cookie_of(moved) == other
    until(lambda: ask(one).text not in (pid, other_pid))
    assert ask(other).text == other_pid
    # All are replaced: a cookie leads to one of the successors.
    real_pool.ok("restart")
    successors = {cookie: ask(cookie).text for cookie in found}
    assert len({*successors.values()}) == 2
    assert not {*successors.values()} & {pid, other_pid}
    assert all(ask(cookie).text == pid for cookie, pid in [*successors.items()] * 3)
    assert haproxy() == before
