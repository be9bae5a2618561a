"""Probes of real workers: who is ready, who accepts, and what is said of it."""

from __future__ import annotations

import json
import os
import signal
import ssl
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from poolctl import connect
from tests.certificates import certificate
from tests.deadline import wait_until
from tests.ports import claim_port
from tests.real_pool import RealPool

APP = """
import asyncio, os

async def app(scope, receive, send):
    assert scope["type"] == "http"
    pid = os.getpid()
    if scope["path"] == "/health":
        bad = os.path.exists("bad") or os.path.exists(f"bad-{pid}")
        status, said = (503, "no") if bad else (200, scope["scheme"])
        with open("asked", "a") as file:
            file.write(f"{pid}\\n")
    else:
        status, said = 200, str(pid)
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": said.encode()})
"""
QUICK = 'interval = "100ms", timeout = "20s", fall_count_ko = 2'
READINESS = f'health = {{ readiness = {{ http = "/health", {QUICK} }} }}\n'


def write(pool: RealPool, *lines: str, bind: str | None = None) -> int:
    """The port of a pool of one server, whose name is the port's too: each test has another one."""
    port = claim_port()
    pool.write("told.py", APP)
    head = f'[[server]]\nname = "web-{port}"\nbind = "{bind or f"127.0.0.1:{port}"}"\n'
    app = "" if any(line.startswith("command") for line in lines) else 'app = "told:app"\n'
    pool.write("pool.toml", head + app + "\n".join(lines))
    return port


def item(pool: RealPool) -> dict[str, Any]:
    """The only server's."""
    (found,) = pool.items().values()
    return found


def health(pool: RealPool, expected: str) -> dict[str, Any]:
    def is_so() -> dict[str, Any] | None:
        found = item(pool)
        return found if found["health"] == expected else None

    found: dict[str, Any] = wait_until(is_so, what=f"health {expected}")
    return found


def answerer(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as reply:
        return int(reply.read())


def resting(pool: RealPool) -> set[int]:
    """The pids of the workers that leave the accepting to others; who answers a few requests is up to the kernel."""
    (found,) = json.loads(pool.ok("show", "-o", "json").stdout)["items"]
    return {worker["pid"] for worker in found["worker_list"] if worker["resting"]}


def flag(pool: RealPool, name: str = "bad") -> Path:
    return pool.directory / name


def test_health_falls_and_rises_and_every_observer_is_notified(
    pool: RealPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(pool.runtime))
    name = f"web-{write(pool, READINESS)}"
    pool.ok("start")
    assert pool.run("status").code == 0
    flag(pool).touch()
    found = health(pool, "ko")
    assert (found["state"], found["ready"]) == ("running", False)
    done = pool.run("status")
    assert (done.code, "readiness: GET /health: status 503" in done.stderr + done.stdout) == (3, True)
    assert pool.run("list", "--health", "ko", "-o", "name").stdout == f"{name}\n"
    assert pool.run("list", "--health", "ok").code == 4
    assert pool.run("wait", "--for", "healthy", "--timeout", "0.3").code == 124
    done = pool.run("start", name)
    assert (done.code, "status 503" in done.stderr) == (1, True)
    (monitor,) = connect(pool.directory / "pool.toml").monitor()
    assert (monitor.name, monitor.status, monitor.falls) == (name, "ko", 1)
    assert monitor.message == "readiness: GET /health: status 503"
    assert monitor.latency is not None
    assert monitor.uptime.total_seconds() > 0
    flag(pool).unlink()
    pool.ok("wait", "--for", "healthy", "--timeout", "40")
    assert pool.run("status").code == 0


def test_a_worker_that_is_ko_leaves_the_accepting_to_the_others_until_it_is_the_last(
    shared_pool: RealPool,
) -> None:
    port = write(shared_pool, READINESS, "workers = 2")
    shared_pool.start_or_reload()
    one, other = item(shared_pool)["pids"]
    flag(shared_pool, f"bad-{one}").touch()
    assert health(shared_pool, "warn")["ready"]
    wait_until(lambda: {answerer(port) for _ in range(12)} == {other}, what="one is at rest")
    flag(shared_pool, f"bad-{other}").touch()
    assert not health(shared_pool, "ko")["ready"]
    assert answerer(port) == other
    flag(shared_pool, f"bad-{one}").unlink()
    assert health(shared_pool, "warn")["ready"]
    wait_until(lambda: {answerer(port) for _ in range(12)} == {one}, what="they have changed places")
    flag(shared_pool, f"bad-{other}").unlink()
    health(shared_pool, "ok")
    wait_until(lambda: {answerer(port) for _ in range(12)} == {one, other}, what="both accept")


@pytest.mark.heavy
def test_probes_and_drains_go_on_under_the_next_supervisor(pool: RealPool) -> None:
    port = write(pool, READINESS, "workers = 2")
    pool.ok("start")
    one, other = item(pool)["pids"]
    flag(pool, f"bad-{one}").touch()
    wait_until(lambda: resting(pool) == {one}, what="one is at rest")
    assert {answerer(port) for _ in range(12)} == {other}
    pool.replace_supervisor()
    found = health(pool, "warn")
    assert found["pids"] == [one, other]
    assert {answerer(port) for _ in range(12)} == {other}
    flag(pool, f"bad-{one}").unlink()
    health(pool, "ok")
    wait_until(lambda: {answerer(port) for _ in range(12)} == {one, other}, what="both accept")
    flag(pool).touch()
    health(pool, "ko")


@pytest.mark.heavy
@pytest.mark.parametrize("killed", ["supervisor_pid", "keeper_pid"])
def test_a_worker_that_has_not_passed_yet_has_to_under_another_supervisor_too(
    pool: RealPool, killed: str
) -> None:
    port = write(pool, READINESS)
    flag(pool).touch()
    pool.ok("start", "--no-wait")
    wait_until(lambda: flag(pool, "asked").exists(), what="it has been asked")
    (pid,) = item(pool)["pids"]
    before = pool.info()
    os.kill(before[killed], signal.SIGKILL)
    wait_until(lambda: pool.info()["supervisor_pid"] != before["supervisor_pid"])
    found = item(pool)
    assert (found["state"], found["ready"], found["pids"]) == ("starting", False, [pid])
    flag(pool).unlink()
    pool.ok("wait", "--timeout", "40")
    assert answerer(port) == pid


def test_changed_probes_apply_to_what_runs(shared_pool: RealPool) -> None:
    write(shared_pool)
    shared_pool.start_or_reload()
    pids = item(shared_pool)["pids"]
    flag(shared_pool).touch()
    text = (shared_pool.directory / "pool.toml").read_text()
    for probe, expected in (
        (READINESS, "ko"), (READINESS.replace("/health", "/"), "ok"), (READINESS, "ko"), ("", "ok"),
    ):  # fmt: skip
        shared_pool.write("pool.toml", text + probe)
        shared_pool.ok("reload")
        found = health(shared_pool, expected)
        assert (found["pids"], found["ready"]) == (pids, expected == "ok")


def test_a_scaled_server_has_its_new_workers_probed(shared_pool: RealPool) -> None:
    port = write(shared_pool, READINESS)
    shared_pool.start_or_reload()
    shared_pool.ok("scale", item(shared_pool)["name"], "3")
    pids = item(shared_pool)["pids"]
    flag(shared_pool, f"bad-{pids[2]}").touch()
    health(shared_pool, "warn")
    wait_until(lambda: resting(shared_pool) == {pids[2]}, what="it is at rest")
    assert pids[2] not in {answerer(port) for _ in range(12)}
    shared_pool.ok("scale", item(shared_pool)["name"], "1")
    health(shared_pool, "ok")
    wait_until(lambda: {answerer(port) for _ in range(12)} == {pids[0]}, what="the others have left")


def test_a_probed_server_falls_asleep_and_is_not_woken(pool: RealPool) -> None:
    port = write(pool, READINESS, 'scale = { min = 0, idle = "300ms" }')
    pool.ok("start")
    assert not flag(pool, "asked").exists()
    assert item(pool)["state"] == "sleeping"
    pid = answerer(port)
    wait_until(lambda: item(pool)["state"] == "sleeping", what="it sleeps though it is probed")
    asked = flag(pool, "asked").read_text()
    assert asked.startswith(f"{pid}\n")
    pool.ok("wait", "--for", "ready")  # as for `start`, a sleeping server is ready
    assert flag(pool, "asked").read_text() == asked
    assert item(pool)["health"] == "unknown"
    assert pool.run("status").code == 0


def test_a_startup_probe_comes_before_the_others_and_counts_into_start_timeout(pool: RealPool) -> None:
    probes = f'startup = {{ exec = ["test", "-e", "up"], {QUICK} }}, liveness = {{ tcp = true, {QUICK} }}'
    write(pool, f"health = {{ {probes} }}", 'start_timeout = "5s"', 'restart = "no"')
    done = pool.run("start")
    assert (done.code, "startup: test: exited with status 1" in done.stderr) == (1, True), done
    assert (item(pool)["state"], item(pool)["health"]) == ("failed", "ko")
    flag(pool, "up").touch()
    pool.replace('"5s"', '"60s"')
    pool.ok("reload")
    pool.ok("start")
    assert health(pool, "ok")["ready"]


@pytest.mark.heavy
def test_tls_server_is_probed_in_tls_even_if_it_wants_client_certificates(pool: RealPool) -> None:
    cert, key = certificate(pool.directory)
    secure = f'cert = "{cert}", key = "{key}"'
    probe = f'health = {{ readiness = {{ http = "/health", body = "^https$", {QUICK} }} }}\n'
    port = write(pool, probe, f"tls = {{ {secure} }}")
    pool.ok("start")
    context = ssl.create_default_context(cafile=str(cert))
    with urllib.request.urlopen(f"https://localhost:{port}/", timeout=60, context=context) as reply:
        assert reply.status == 200
    flag(pool).touch()
    health(pool, "ko")
    pool.ok("stop")
    flag(pool).unlink()
    write(pool, probe, f'tls = {{ {secure}, ca = "{cert}", client_auth = "required" }}')
    pool.ok("start")
    assert health(pool, "ok")["ready"]


def test_a_server_on_a_unix_socket_is_asked_like_any_other(shared_pool: RealPool) -> None:
    write(shared_pool, READINESS, bind="unix:web.sock")
    shared_pool.start_or_reload()
    flag(shared_pool).touch()
    health(shared_pool, "ko")


@pytest.mark.heavy_variants
@pytest.mark.parametrize(
    ("probe", "binds_itself"),
    [
        ('http = "/"', True),
        ("tcp = true", False),
        pytest.param('http = "/"', False, marks=pytest.mark.heavy),
        pytest.param("tcp = true", True, marks=pytest.mark.heavy),
    ],
)
def test_a_program_is_asked_over_its_port(shared_pool: RealPool, probe: str, binds_itself: bool) -> None:
    shared_pool.write(
        "program.py",
        """
        import os, socket, sys, threading

        where = sys.argv[1]
        listener = socket.socket(fileno=3) if where == "fd" else socket.create_server(("127.0.0.1", int(where)))
        listener.setblocking(True)

        def watch():
            while not os.path.exists("bad"):
                threading.Event().wait(0.01)
            os.kill(os.getpid(), 19)  # it accepts nothing more, and the port is still bound

        threading.Thread(target=watch, daemon=True).start()
        while True:
            sock, _ = listener.accept()
            if sock.recv(1000):
                sock.sendall(b"HTTP/1.1 200 OK\\r\\nconnection: close\\r\\n\\r\\nhello")
            sock.close()
        """,
    )
    timing = 'interval = "100ms", timeout = "3s", fall_count_ko = 1'
    command = f'command = ["python3", "program.py", "{"{port}" if binds_itself else "fd"}"]'
    write(
        shared_pool, command, f"health = {{ readiness = {{ {probe}, {timing} }} }}", 'stop_timeout = "500ms"'
    )
    shared_pool.start_or_reload()
    health(shared_pool, "ok")
    if "http" in probe:  # a connection is made by the kernel, whatever the program does
        flag(shared_pool).touch()
        assert not health(shared_pool, "ko")["ready"]
        os.kill(item(shared_pool)["pids"][0], signal.SIGCONT)


def test_output_of_a_probe_command_is_shown(shared_pool: RealPool) -> None:
    shared_pool.write("probe.sh", 'echo "$POOLCTL_NAME $PORT"; echo "the disk is full" >&2; test ! -e bad\n')
    port = write(shared_pool, f'health = {{ readiness = {{ exec = ["sh", "probe.sh"], {QUICK} }} }}')
    shared_pool.start_or_reload()
    flag(shared_pool).touch()
    health(shared_pool, "ko")
    assert "sh: exited with status 1: the disk is full" in shared_pool.ok("show", "-o", "json").stdout
    assert port


@pytest.mark.heavy
def test_a_late_answer_is_none_and_a_program_that_hangs_is_killed_with_its_children(
    shared_pool: RealPool,
) -> None:
    shared_pool.write("probe.sh", "if test -e bad; then sleep 1000 & echo $! >sleeper; wait; fi\n")
    timing = 'interval = "100ms", timeout = "1s", fall_count_ko = 1'
    write(shared_pool, f'health = {{ readiness = {{ exec = ["sh", "probe.sh"], {timing} }} }}')
    shared_pool.start_or_reload()
    flag(shared_pool).touch()
    health(shared_pool, "ko")
    said = flag(shared_pool, "sleeper")
    # One that was killed at once has not come to say it; the next one will.
    sleeper = int(wait_until(lambda: said.exists() and said.read_text(), what="a child"))
    flag(shared_pool).unlink()
    health(shared_pool, "ok")
    wait_until(lambda: not Path(f"/proc/{sleeper}").exists(), what="its child is gone")
