"""Applications that attack the pool which runs them as another user: they harm their own server and nothing else."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.http_get import get
from tests.processes import descriptors
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow

# Its control socket is at descriptor 17. A request for /attack does what `attack` says; others get the pid.
HOSTILE = """
import array, os, socket, json
CONTROL = 17
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    control = socket.socket(fileno=os.dup(CONTROL))
    if scope["path"] == "/attack":
        attack(control)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
def flood(control, message, times, fds=()):
    control.setblocking(True)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    for _ in range(times):
        control.sendmsg([message], rights)
"""

ATTACKS = {
    "descriptors": "def attack(control): flood(control, b'{\"id\": []}', 80, [1] * 250)",
    "words": "def attack(control): flood(control, b'no message', 1000)",
    "deep": "def attack(control): flood(control, b'[' * 60000, 1000)",
    "types": 'def attack(control): flood(control, b\'{"event": ["ready"], "id": {}}\', 1000)',
    "events": 'def attack(control): flood(control, b\'{"event": "tls", "error": "%s"}\' % (b"x" * 9000), 100000)',
    "unread": "def attack(control): flood(control, b'{}', 100000)",
}


@pytest.fixture
def hostile(pool: RealPool) -> RealPool:
    """A pool in which `bad` runs as nobody, in a directory that others may enter, and `good` as root."""
    pool.open_to_all()
    ports = pool.write_hello("good", "bad")
    text = (pool.directory / "pool.toml").read_text()
    bad = 'app = "hostile:app"\nuser = "nobody"\n'
    pool.write("pool.toml", text[::-1].replace('app = "hello:app"\n'[::-1], bad[::-1], 1)[::-1])
    pool.write("hostile.py", HOSTILE)
    assert ports
    return pool


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_worker_that_floods_its_control_socket_is_cut_off_and_replaced(
    hostile: RealPool, until: Any, attack: str
) -> None:
    hostile.write("hostile.py", HOSTILE + ATTACKS[attack] + "\n")
    hostile.ok("start")
    before = hostile.items()
    supervisor = hostile.info()["supervisor_pid"]
    held = len(descriptors(supervisor))
    with contextlib.suppress(OSError):  # it is killed while it attacks
        get(hostile.ports["bad"], "/attack")
    after = until(lambda: _replaced(hostile, before), what="the worker is replaced")
    assert after["good"]["pids"] == before["good"]["pids"]
    assert hostile.info()["supervisor_pid"] == supervisor
    until(lambda: len(descriptors(supervisor)) <= held + 2, what="descriptors are closed")
    ended = [each for each in _events(hostile, "bad") if each["event"] == "worker ended"]
    assert "sent" in ended[0]["message"], ended
    log = Path(next(hostile.runtime.glob("*/supervisor.log")))
    assert log.stat().st_size < 20_000, log.read_text()[-2000:]
    hostile.ok("stop")


def _replaced(pool: RealPool, before: dict[str, Any]) -> dict[str, Any] | None:
    now = pool.items()
    return now if now["bad"]["ready"] and now["bad"]["pids"] != before["bad"]["pids"] else None


def _events(pool: RealPool, server: str) -> list[dict[str, Any]]:
    lines = pool.ok("events", server, "-o", "json", "-n", "all").stdout.splitlines()
    return [json.loads(line) for line in lines]
