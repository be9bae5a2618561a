"""The pool as a service of systemd's: what it says on NOTIFY_SOCKET, and the sockets that it is given."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.http_get import get, refused
from tests.notify_socket import NotifySocket
from tests.processes import freeze
from tests.real_pool import RealPool
from tests.service_manager import run_with_socket

LATE = "\nimport pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\n"


@pytest.fixture
def systemd(pool: RealPool) -> Iterator[NotifySocket]:
    receiver = NotifySocket(pool.runtime)
    pool.env["NOTIFY_SOCKET"] = receiver.path
    yield receiver
    receiver.close()


@pytest.mark.capability
def test_ready_is_said_when_the_last_server_has_answered(pool: RealPool, systemd: NotifySocket) -> None:
    pool.write_hello("quick", "late")
    pool.write("slow.py", LATE + (pool.directory / "hello.py").read_text())
    text = (pool.directory / "pool.toml").read_text()
    pool.write("pool.toml", text[::-1].replace('"hello:app"'[::-1], '"slow:app"'[::-1], 1)[::-1])
    running = pool.spawn("run")
    assert systemd.await_line("STATUS=1 of 2 servers ready") == (
        "STATUS=1 of 2 servers ready; late is starting"
    )
    assert "READY=1" not in systemd.lines
    pool.write("go", "")
    systemd.await_line("READY=1")
    systemd.await_line("STATUS=2 servers ready")
    running.send_signal(signal.SIGTERM)
    systemd.await_line("STOPPING=1")
    running.communicate(timeout=60)
    assert running.returncode == 0


def test_a_server_that_fails_is_named_and_keeps_the_service_from_being_ready(
    pool: RealPool, systemd: NotifySocket
) -> None:
    pool.write_hello("good", "bad")
    pool.write("broken.py", "raise SystemExit(7)\n")
    text = (pool.directory / "pool.toml").read_text()
    text = text[::-1].replace('"hello:app"'[::-1], '"broken:app"'[::-1], 1)[::-1]
    pool.write("pool.toml", text + 'restart = "no"\n')
    pool.spawn("run")
    line = systemd.await_line("STATUS=1 of 2 servers ready; bad is failed: ")
    assert "7" in line
    assert "READY=1" not in systemd.lines
    pool.write("broken.py", "from hello import app\n")
    pool.ok("restart", "bad")
    systemd.await_line("READY=1")


def test_a_reload_is_announced_with_its_moment_and_its_end(pool: RealPool, systemd: NotifySocket) -> None:
    ports = pool.write_hello("web")
    pool.ok("start")
    systemd.await_line("READY=1")
    systemd.forget()
    pool.ok("reload", "--dry-run")
    assert not any(line.startswith("RELOADING") for line in systemd.lines)
    text = (pool.directory / "pool.toml").read_text()
    pool.write("pool.toml", f'{text}env = {{ A = "1" }}\n')
    pool.ok("reload")
    systemd.await_line("READY=1")
    (reloading,) = [said for said in systemd.messages if said.startswith("RELOADING=1\n")]
    assert reloading.splitlines()[1].startswith("MONOTONIC_USEC=")
    assert get(ports["web"]).status == 200
    pool.ok("stop")
    assert systemd.messages[-1].splitlines() == ["STOPPING=1", "STATUS=stopping"]


def test_under_systemd_a_hangup_reloads(pool: RealPool, systemd: NotifySocket) -> None:
    pool.write_hello("web")
    running = pool.spawn("run")
    systemd.await_line("STATUS=1 server ready")
    systemd.forget()
    more = pool.write_hello("web", "more")["more"]
    running.send_signal(signal.SIGHUP)
    systemd.await_line("STATUS=2 servers ready")
    assert get(more).status == 200
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)


def test_start_makes_the_keeper_the_main_process_and_ends(pool: RealPool, systemd: NotifySocket) -> None:
    pool.write_hello("web")
    pool.ok("start")
    assert systemd.await_line("MAINPID=") == f"MAINPID={pool.info()['keeper_pid']}"
    os.kill(pool.info()["keeper_pid"], signal.SIGTERM)
    systemd.await_line("STOPPING=1")


def test_a_start_by_a_script_of_a_service_leaves_the_main_process_alone(
    pool: RealPool, systemd: NotifySocket
) -> None:
    pool.write_hello("web")
    pool.ok("start", env={"SYSTEMD_EXEC_PID": "1"})
    systemd.await_line("READY=1")
    assert not any(line.startswith("MAINPID") for line in systemd.lines)


def test_the_watchdog_hears_the_supervisor_and_its_successor_but_none_that_hangs(
    pool: RealPool, systemd: NotifySocket, until: Any
) -> None:
    pool.write_hello("web")
    pool.ok("start", env={"WATCHDOG_USEC": "200000"})
    systemd.await_line("WATCHDOG=1", times=3)
    supervisor = pool.info()["supervisor_pid"]
    freeze(supervisor)
    systemd.forget()
    with pytest.raises(AssertionError):
        until(lambda: systemd.messages, timeout_seconds=0.5)
    os.kill(supervisor, signal.SIGKILL)
    systemd.await_line("WATCHDOG=1", times=2)
    until(lambda: pool.info()["supervisor_pid"] != supervisor)


def test_a_watchdog_of_another_process_is_not_ours(pool: RealPool, systemd: NotifySocket) -> None:
    pool.write_hello("web")
    pool.ok("start", env={"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"})
    systemd.await_line("STATUS=1 server ready")
    assert "WATCHDOG=1" not in systemd.lines


def test_workers_know_nothing_of_the_service(pool: RealPool, systemd: NotifySocket) -> None:
    ports = pool.write_hello("web")
    pool.write(
        "hello.py",
        (pool.directory / "hello.py").read_text().replace(
            'b"hello from " + str(scope["server"][1]).encode()',
            '",".join(k for k in __import__("os").environ if k.startswith(("NOTIFY", "WATCHDOG"))).encode()',
        ),
    )  # fmt: skip
    pool.ok("start", env={"WATCHDOG_USEC": "60000000"})
    assert get(ports["web"]).body == b""


@pytest.mark.parametrize("way", ["ours", "systemd-socket-activate"])
def test_sockets_of_the_service_are_served_by_number_and_name(
    pool: RealPool, systemd: NotifySocket, way: str, until: Any, free_port: Any
) -> None:
    pool.write_hello("web")
    bind = "fd:web" if way == "ours" else "fd:3"
    pool.write("pool.toml", f'[[server]]\nname = "web"\nbind = "{bind}"\napp = "hello:app"\n')
    port = free_port()
    if way == "ours":
        running = run_with_socket(pool, socket.create_server(("127.0.0.1", port)))
    else:
        running = run_activated(pool, port)
    with running:
        until(lambda: not refused(port) and get(port).status == 200)
        before = pool.items()["web"]["pids"]
        pool.ok("restart")
        assert pool.items()["web"]["pids"] != before
        assert get(port).status == 200


@contextlib.contextmanager
def run_activated(pool: RealPool, port: int) -> Iterator[None]:
    program = "/usr/bin/systemd-socket-activate"
    if not os.path.exists(program):
        pytest.skip(f"no {program}")
    argv = [program, "-l", f"127.0.0.1:{port}", "--setenv=NOTIFY_SOCKET"]
    argv += [f"--setenv={name}={value}" for name, value in pool.env.items()]
    running = subprocess.Popen([*argv, *pool.command(), "run"], cwd=pool.directory, env=pool.env)
    try:
        yield
    finally:
        running.terminate()
        running.wait(timeout=60)


def test_connections_at_an_inherited_socket_are_closed_while_their_server_cannot_start(
    pool: RealPool, until: Any
) -> None:
    pool.write_hello("web")
    pool.write("late.py", "import pathlib\nassert pathlib.Path('go').exists()\nfrom hello import app\n")
    restart = 'restart = { limit = 100, backoff = { initial = "1s", max = "1s" } }'
    pool.write("pool.toml", f'[[server]]\nname = "web"\nbind = "fd:web"\napp = "late:app"\n{restart}\n')
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with run_with_socket(pool, listener):
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(1) == b""
        pool.write("go", "")
        until(lambda: pool.items()["web"]["ready"])
        assert get(port).status == 200
