"""No supervisor can be started: sleeping servers keep their sockets, and commands say what is wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http_get import get, refused
from tests.integration.processes.test_both_killed import kill_both
from tests.processes import descriptors, freeze, is_alive, stat
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow

SLEEPY = 'scale = { min = 0, idle = "1m" }'
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@contextlib.contextmanager
def request_to(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(REQUEST)
        yield sock


class Broken:
    """Supervisors of this pool that are started while `file` is there end at once."""

    def __init__(self, pool: RealPool) -> None:
        self.file = pool.runtime / "broken"
        hook = pool.write(
            "hook/sitecustomize.py",
            f"""
            import os, sys
            if os.path.exists({str(self.file)!r}) and "supervisor" in sys.orig_argv:
                os.write(2, b"this supervisor is broken\\n")
                os._exit(1)
            """,
        )
        pool.env["PYTHONPATH"] = str(hook.parent)
        self._logs = pool.runtime

    def deaths(self) -> int:
        (log,) = self._logs.glob("[!@]*/supervisor.log")
        return log.read_text().count("this supervisor is broken")


def test_connections_to_a_sleeping_server_wait_for_a_supervisor_and_are_served(
    pool: RealPool, until: Any
) -> None:
    broken = Broken(pool)
    ports = pool.write_hello("sleepy", "other", extra=SLEEPY)
    pool.ok("start")
    info = pool.info()
    with socket.create_connection(("127.0.0.1", ports["sleepy"]), timeout=60) as before:
        # A supervisor that is killed between the accept and the keeper's copy takes the connection with it.
        until(lambda: is_held(before, info["keeper_pid"]))
        broken.file.touch()
        os.kill(info["supervisor_pid"], signal.SIGKILL)
        until(lambda: broken.deaths() >= 3)
        with request_to(ports["sleepy"]) as during:
            # So often that the next supervisor does nothing by itself.
            until(lambda: broken.deaths() >= 5)
            broken.file.unlink()
            before.sendall(REQUEST)
            assert during.recv(12) == b"HTTP/1.1 200"
            assert before.recv(12) == b"HTTP/1.1 200"
    assert is_alive(info["keeper_pid"])
    items = pool.items()
    assert {name: item["state"] for name, item in items.items()} == {"sleepy": "running", "other": "sleeping"}
    assert "calm" in pool.ok("status", "-o", "json").json["summary"]
    assert get(ports["other"]).status == 200


@pytest.mark.heavy
def test_a_start_after_the_death_of_both_lets_servers_sleep_and_wake_as_before(
    pool: RealPool, until: Any
) -> None:
    ports = pool.write_hello("sleepy", "stopped", extra=SLEEPY)
    pool.ok("start")
    pool.ok("stop", "stopped")
    kill_both(pool, until)
    until(lambda: refused(ports["sleepy"]))  # their helpers end a moment later
    pool.ok("start", "sleepy")
    assert {name: item["state"] for name, item in pool.items().items()} == {
        "sleepy": "sleeping",
        "stopped": "stopped",
    }
    assert get(ports["sleepy"]).status == 200


@pytest.mark.heavy
def test_a_connection_that_the_accept_helper_has_for_a_dead_supervisor_is_served_by_the_next(
    pool: RealPool, until: Any
) -> None:
    port = pool.write_hello("sleepy", extra=f'{SLEEPY}\nhttp = {{ keep_alive = "1m" }}')["sleepy"]
    pool.replace('"1m" }', '"0.3s" }', 1)
    pool.ok("start")
    assert get(port).status == 200  # from here on it shares its listener with an application
    until(lambda: pool.items()["sleepy"]["state"] == "sleeping")
    supervisor = pool.info()["supervisor_pid"]
    (helper,) = [pid for pid, line in pool.processes().items() if line.endswith(" acceptor")]
    freeze(helper)
    with request_to(port) as client:
        # It is asked to accept; no supervisor is there to receive its answer.
        until(lambda: waits_for_others(supervisor))
        freeze(supervisor)
        os.kill(helper, signal.SIGCONT)
        until(lambda: stat(helper).state == "S")
        os.kill(supervisor, signal.SIGKILL)
        assert client.recv(12) == b"HTTP/1.1 200"


def is_held(client: socket.socket, pid: int) -> bool:
    """Whether the process has the other end of this connection (proc_net_tcp(5))."""
    ends = [f":{port:04X}" for _, port in (client.getpeername(), client.getsockname())]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    inodes = [row[9] for row in rows if [row[1][-5:], row[2][-5:]] == ends]
    return f"socket:[{''.join(inodes)}]" in descriptors(pid).values()


def waits_for_others(pid: int) -> bool:
    """Whether the process sleeps: it has done what it had to do."""
    time.sleep(0.2)
    return stat(pid).state == "S"
