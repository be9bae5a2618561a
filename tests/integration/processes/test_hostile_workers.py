"""Applications that attack the pool which runs them as another user: they harm their own server and nothing else."""

from __future__ import annotations

import contextlib
import json
import socket
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests import downloads
from tests.http_get import get
from tests.integration.processes.test_both_killed import kill_both
from tests.integration.processes.test_statistics import stats
from tests.ports import claim_port
from tests.processes import descriptors, is_alive, processor_seconds
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow

# Its control socket is at descriptor 17. A request for /attack does what `attack` says; others get the pid.
HOSTILE = """
import array, os, socket, json
CONTROL = 17
async def app(scope, receive, send):
    assert scope["type"] == "http"
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

DESCRIPTORS = "def attack(control): flood(control, b'{\"id\": []}', 80, [1] * 250)\n"
EVENTS = (
    'def attack(control): flood(control, b\'{{"event": "tls", "error": "%s"}}\' % (b"x" * {size}), {count})\n'
)


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


def test_worker_that_sends_descriptors_is_cut_off_and_replaced(hostile: RealPool, until: Any) -> None:
    hostile.write("hostile.py", HOSTILE + DESCRIPTORS)
    hostile.ok("start")
    before = hostile.items()
    supervisor = hostile.info()["supervisor_pid"]
    held = len(descriptors(supervisor))
    with contextlib.suppress(OSError, HTTPException):  # it is killed while it attacks
        get(hostile.ports["bad"], "/attack")
    after = until(lambda: _replaced(hostile, before), what="the worker is replaced")
    assert after["good"]["pids"] == before["good"]["pids"]
    assert hostile.info()["supervisor_pid"] == supervisor
    until(lambda: len(descriptors(supervisor)) <= held + 2, what="descriptors are closed")
    ended = [each for each in _events(hostile, "bad") if each["event"] == "worker ended"]
    assert "sent" in ended[0]["message"], ended
    hostile.ok("stop")


def test_worker_that_sends_many_events_is_read_slowly_and_stays(hostile: RealPool) -> None:
    """As an ordinary one may, while its supervisor is held up."""
    hostile.write("hostile.py", HOSTILE + EVENTS.format(size=1, count=200))
    hostile.ok("start")
    before = hostile.items()
    assert get(hostile.ports["bad"], "/attack").status == 200
    hostile.ok("restart", "good")
    assert hostile.items()["bad"]["pids"] == before["bad"]["pids"]
    assert get(hostile.ports["bad"]).status == 200


def test_worker_that_floods_its_control_socket_holds_up_itself_only(hostile: RealPool) -> None:
    hostile.replace('app = "hostile:app"', 'app = "hostile:app"\nstop_timeout = "1s"')
    hostile.write("hostile.py", HOSTILE + EVENTS.format(size=9000, count=100_000))
    hostile.ok("start")
    supervisor = hostile.info()["supervisor_pid"]
    with socket.create_connection(("127.0.0.1", hostile.ports["bad"])) as client:
        client.sendall(b"GET /attack HTTP/1.1\r\nhost: a\r\n\r\n")
        used = processor_seconds(supervisor)
        client.settimeout(5)
        with contextlib.suppress(TimeoutError):
            assert client.recv(1) == b"", "it floods still"
        assert processor_seconds(supervisor) - used < 2.5
        assert get(hostile.ports["good"]).status == 200
        hostile.ok("restart", "good")
    assert hostile.info()["supervisor_pid"] == supervisor
    log = Path(next(hostile.runtime.glob("*/supervisor.log")))
    assert log.stat().st_size < 300_000, log.read_text()[-2000:]
    hostile.ok("stop")


# What it writes into its page of counts; 31 slots are those of requests, latencies and connections.
FORGED_FIGURES = """
import fcntl, struct
def attack(control):
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if "poolctl-tally" in os.readlink(f"/proc/self/fd/{fd}"):
                os.pwrite(fd, struct.pack("31Q", *[1 << 63] * 31), 8)
        except OSError:
            pass
"""


def test_worker_that_forges_its_figures_leaves_those_of_other_servers_alone(
    hostile: RealPool, until: Any
) -> None:
    port = claim_port()
    text = (hostile.directory / "pool.toml").read_text()
    # With a dashboard the history of figures is kept.
    hostile.write("pool.toml", f'{text}\n[dashboard]\nbind = "127.0.0.1:{port}"\n')
    hostile.write("hostile.py", HOSTILE + FORGED_FIGURES)
    hostile.ok("start")
    for server, path in (("good", "/"), ("bad", "/"), ("bad", "/attack")):
        assert get(hostile.ports[server], path).status == 200
    until(lambda: stats(hostile, "bad")["requests_total"] > 1 << 60)
    hostile.ok("restart", "bad")
    hostile.replace_supervisor()
    until(lambda: hostile.items()["good"]["ready"])
    until(
        lambda: get(hostile.ports["good"]).status == 200 and stats(hostile, "good")["requests_per_second"] > 0
    )
    assert 2 <= stats(hostile, "good")["requests_total"] < 1000
    log = Path(next(hostile.runtime.glob("*/supervisor.log")))
    assert "Error" not in log.read_text(), log.read_text()[-2000:]
    hostile.ok("stop")


def _replaced(pool: RealPool, before: dict[str, Any]) -> dict[str, Any] | None:
    now = pool.items()
    return now if now["bad"]["ready"] and now["bad"]["pids"] != before["bad"]["pids"] else None


def _events(pool: RealPool, server: str) -> list[dict[str, Any]]:
    lines = pool.ok("events", server, "-o", "json", "-n", "all").stdout.splitlines()
    return [json.loads(line) for line in lines]


# Its zygote names other processes than those that it forks.
FORGER = """
import os, subprocess, sys
def victim():
    return int(open("victim").read())
def stranger():
    shell = ["sh", "-c", "sleep 60 & echo $!; wait"]
    return int(subprocess.Popen(shell, stdout=subprocess.PIPE).stdout.readline())
frame = sys._getframe()
while frame is not None and "serve_forks" not in frame.f_globals:
    frame = frame.f_back
if frame is not None:
    wire = frame.f_globals["serve_forks"].__globals__["wire"]
    send = wire.send
    def forge(sock, message, *rest, **options):
        return send(sock, {**message, "pid": FORGED} if "pid" in message else message, *rest, **options)
    wire.send = forge
from hello import app
"""


@pytest.mark.parametrize(
    ("forged", "error"),
    [
        ("victim()", "another process of the pool"),
        pytest.param("-1", "an invalid 'pid': -1", marks=pytest.mark.heavy),
        pytest.param("stranger()", "not a process of the pool", marks=pytest.mark.heavy),
    ],
)
def test_preloaded_application_that_names_another_process_as_its_worker_harms_no_other(
    hostile: RealPool, until: Any, forged: str, error: str
) -> None:
    text = (hostile.directory / "pool.toml").read_text()
    keys = 'user = "nobody"\npreload = true\nrestart = "no"'
    hostile.write("pool.toml", text.replace('user = "nobody"', keys))
    hostile.write("hostile.py", FORGER.replace("FORGED", forged))
    hostile.ok("start", "good")
    (good,) = hostile.items()["good"]["pids"]
    supervisor = hostile.info()["supervisor_pid"]
    hostile.write("victim", str(good))
    said = hostile.run("start", "bad").stderr
    until(lambda: hostile.items()["bad"]["state"] == "failed")
    assert error in said + str(_events(hostile, "bad"))
    hostile.ok("stop", "bad")
    assert is_alive(good)
    assert hostile.items()["good"]["pids"] == [good]
    assert hostile.info()["supervisor_pid"] == supervisor
    hostile.ok("stop")
    until(lambda: not hostile.processes())


@pytest.mark.heavy
@pytest.mark.parametrize("command", ["start", "stop"])
def test_worker_of_another_user_that_does_not_end_is_ended(
    hostile: RealPool, until: Any, command: str
) -> None:
    hostile.write(
        "hostile.py", downloads.APP.replace('pathlib.Path("blocked").touch()', 'print("blocked", flush=True)')
    )
    hostile.ok("start")
    (bad,) = hostile.items()["bad"]["pids"]
    with socket.create_connection(("127.0.0.1", hostile.ports["bad"])) as client:
        client.sendall(b"GET /block HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: "blocked" in hostile.ok("logs", "bad").stdout)
        kill_both(hostile, until)
        assert is_alive(bad)
        assert f"bad: pid {bad} had to be killed" in hostile.ok(command).stderr
    assert not is_alive(bad)
    hostile.ok("stop")
    until(lambda: not hostile.processes())


def test_workers_of_another_user_get_a_pair_that_the_one_before_has_never_had(hostile: RealPool) -> None:
    hostile.write("hostile.py", HOSTILE)
    hostile.ok("start")

    def sockets() -> set[str]:
        (pid,) = hostile.items()["bad"]["pids"]
        return {target for target in descriptors(pid).values() if target.startswith("socket:")}

    first = sockets()
    hostile.ok("restart", "bad")
    second = sockets()
    assert len(first & second) == 3, "the listener and the pair"
    text = (hostile.directory / "pool.toml").read_text()
    hostile.write("pool.toml", text.replace('user = "nobody"', 'user = "daemon"'))
    hostile.ok("reload")
    assert len(second & sockets()) == 1, "the listener"
    hostile.ok("stop")
