"""Who can connect to the Unix sockets of a real gateway and of a stream, over changes of the file and kills."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from tests.environments import need_gateway
from tests.http_get import get
from tests.ports import claim_port
from tests.real_pool import HELLO_APP, RealPool

from .conftest import Until

pytestmark = pytest.mark.integration

FILE = """
[gateway]
bind = [{{ bind = "unix:{place}/g.sock"{mode} }}]
[[stream]]
bind = "unix:{place}/s.sock"
to = "web"
{mode_of_stream}
[[route]]
to = "web"
[[server]]
name = "web"
bind = "127.0.0.1:{port}"
app = "hello:app"
"""


def test_sockets_have_their_modes_and_follow_a_reload_and_a_successor(
    real_pool: RealPool, until: Until
) -> None:
    need_gateway()
    pool, port = real_pool, claim_port()
    sockets = [pool.runtime / "g.sock", pool.runtime / "s.sock"]

    def write(mode: str) -> None:
        text = FILE.format(
            place=pool.runtime,
            port=port,
            mode=mode and f', mode = "{mode}"',
            mode_of_stream=mode and f'mode = "{mode}"',
        )
        pool.write("pool.toml", text)

    def seen() -> list[tuple[str, int]]:
        return [(oct(stat.S_IMODE(each.stat().st_mode)), each.stat().st_ino) for each in sockets]

    pool.write("hello.py", HELLO_APP)
    write("")
    before = os.umask(0o077)
    try:
        pool.ok("start")
    finally:
        os.umask(before)
    inodes = [each.stat().st_ino for each in sockets]
    assert seen() == [("0o666", inode) for inode in inodes]
    kept = connect(sockets[0])
    assert asked(kept) == 200

    write("0600")
    assert "updated in place" in pool.ok("reload").stdout
    assert seen() == [("0o600", inode) for inode in inodes]
    assert asked(kept) == 200
    kept.close()

    for each in sockets:
        each.chmod(0o666)  # as if the supervisor had died before it narrowed them
    supervisor = pool.info()["supervisor_pid"]
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: pool.info()["supervisor_pid"] != supervisor)
    until(lambda: seen() == [("0o600", inode) for inode in inodes])
    assert [get(f"unix:{each}").status for each in sockets] == [200, 200]


def connect(path: Path) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    return connection


def asked(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/")
    response = connection.getresponse()
    response.read()
    return response.status
