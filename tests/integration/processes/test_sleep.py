"""Servers without a process while nobody asks for them: whoever asks is served, and nobody else wakes them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import textwrap
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests import leaving_clients
from tests.certificates import certificate
from tests.deadline import wait_until
from tests.http_get import get
from tests.leaving_clients import connect
from tests.load import Load, apps
from tests.ports import claim_port
from tests.processes import freeze
from tests.real_pool import HELLO_APP, RealPool

pytestmark = pytest.mark.slow

SLEEPS = "scale = { min = 0, idle = 0.2 }"
STAYS_UP = "scale = { min = 0 }"
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Until = Callable[..., Any]


def write(pool: RealPool, extra: str) -> int:
    """The port of a pool of one server, whose name is the port's too."""
    pool.write("hello.py", HELLO_APP)
    port = claim_port()
    bind = f'name = "web-{port}"\nbind = "127.0.0.1:{port}"'
    pool.write("pool.toml", f'[[server]]\n{bind}\napp = "hello:app"\n{extra}\n')
    return port


def item(pool: RealPool) -> dict[str, Any]:
    """The only server's."""
    (found,) = pool.items().values()
    return found


def state(pool: RealPool) -> str:
    return str(item(pool)["state"])


def sent_away(sock: socket.socket) -> bool:
    """Whether the connection is closed, with what was sent on it unread (then it is a reset)."""
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:
        return True


def test_a_server_that_may_sleep_starts_asleep_and_is_woken_by_a_request(pool: RealPool) -> None:
    port = pool.write_hello(extra=STAYS_UP)["web"]
    assert pool.ok("start").stdout.startswith("0 servers ready (1 sleeping)\n")
    item = pool.items()["web"]
    assert (item["state"], item["ready"], item["pids"]) == ("sleeping", False, [])
    assert pool.ok("status", "-o", "json").json["summary"]["states"] == {"sleeping": 1}
    assert pool.ok("wait", "--for", "sleeping").code == 0
    assert pool.ok("wait", "--timeout", "40s").stdout == "0 servers ready (1 sleeping)\n"
    assert pool.ok("wait", "--for", "healthy", "--timeout", "40s").stdout.startswith("0 servers healthy (1")
    assert get(port).text == f"hello from {port}"
    item = pool.items()["web"]
    assert (item["state"], item["ready"], len(item["pids"])) == ("running", True, 1)


@pytest.mark.capability
def test_server_falls_asleep_again_without_traffic_and_has_no_process(shared_pool: RealPool) -> None:
    port = write(shared_pool, SLEEPS)
    shared_pool.write("hello.py", "import os\n" + HELLO_APP.replace('scope["server"][1]', "os.getpid()"))
    shared_pool.start_or_reload()
    pid = int(get(port).text.removeprefix("hello from "))
    shared_pool.ok("wait", "--for", "sleeping", "--timeout", "40s")
    assert item(shared_pool)["pids"] == []
    assert not os.path.exists(f"/proc/{pid}")
    assert get(port).status == 200
    assert item(shared_pool)["restarts"] == 0


def test_connection_without_a_request_wakes_no_server(shared_pool: RealPool) -> None:
    port = write(shared_pool, STAYS_UP)
    shared_pool.start_or_reload()
    for first_bytes in (b"", b"GET / HT", b"\x16\x03\x01"):
        connect(port, first_bytes).close()
    with connect(port, b"not HTTP at all\r\n") as noise:
        assert noise.recv(1000).startswith(b"HTTP/1.1 400 ")
    with connect(port) as silent:
        assert state(shared_pool) == "sleeping"
        silent.sendall(REQUEST)
        assert silent.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert state(shared_pool) == "running"


def test_every_connection_made_while_it_slept_is_served(shared_pool: RealPool) -> None:
    port = write(shared_pool, STAYS_UP)
    shared_pool.start_or_reload()
    clients = [connect(port) for _ in range(30)]
    for client in clients:
        client.sendall(REQUEST)
    assert {client.recv(12) for client in clients} == {b"HTTP/1.1 200"}
    for client in clients:
        client.close()


@pytest.mark.parametrize("bind", ["localhost:{port}", ":{port}", "unix:./web.sock"])
def test_every_kind_of_address_wakes(shared_pool: RealPool, bind: str) -> None:
    port = write(shared_pool, SLEEPS)
    shared_pool.replace(f"127.0.0.1:{port}", bind.format(port=port))
    shared_pool.start_or_reload()
    where = f"unix:{shared_pool.directory}/web.sock" if bind.startswith("unix:") else f"localhost:{port}"
    for _ in range(2):
        shared_pool.ok("wait", "--for", "sleeping", "--timeout", "40s")
        assert get(where).status == 200


def test_a_server_with_tls_wakes_at_a_client_hello(shared_pool: RealPool) -> None:
    cert, key = certificate(shared_pool.directory)
    tls = f'tls = {{ cert = "{cert}", key = "{key}" }}\n{STAYS_UP}'
    port = write(shared_pool, tls)
    shared_pool.start_or_reload()
    with connect(port, REQUEST) as plain:
        assert sent_away(plain)
    assert state(shared_pool) == "sleeping"
    assert get(f"https://localhost:{port}").status == 200


@pytest.mark.heavy_variants
@pytest.mark.parametrize("bind", ["127.0.0.1:{port}", "unix:./web.sock"])
def test_request_whose_client_leaves_during_the_wake_is_not_executed(
    shared_pool: RealPool, until: Until, bind: str
) -> None:
    port = write(shared_pool, STAYS_UP)
    shared_pool.write("hello.py", leaving_clients.APP)
    shared_pool.replace(f"127.0.0.1:{port}", bind.format(port=port))
    shared_pool.start_or_reload()
    where = f"{shared_pool.directory}/web.sock" if bind.startswith("unix:") else port
    held = leaving_clients.post(where, "/held")
    until(lambda: state(shared_pool) == "starting")
    # The activator has held the first one; the others wait in the backlog.
    held.close()
    waiting = [
        (leave, leaving_clients.post(where, f"/{leave.__name__}")) for leave in leaving_clients.WAYS_TO_LEAVE
    ]
    for leave, client in waiting:
        leave(client)
    with leaving_clients.post(where, "/stays") as stays:
        shared_pool.write("go", "")
        assert stays.recv(12) == b"HTTP/1.1 200"
    for _, client in waiting:
        client.close()
    shared_pool.ok("stop")
    assert (shared_pool.directory / "requests").read_text() == "/stays\n"


def test_program_is_woken_by_any_connection(shared_pool: RealPool, until: Until) -> None:
    port = claim_port()
    server = """
        import http.server, socket

        handler = http.server.SimpleHTTPRequestHandler
        server = http.server.HTTPServer(("127.0.0.1", 0), handler, bind_and_activate=False)
        server.socket = socket.socket(fileno=3)
        server.serve_forever()
    """
    shared_pool.write("program.py", server)
    shared_pool.write(
        "pool.toml",
        f"""
        [[server]]
        name = "program"
        bind = "127.0.0.1:{port}"
        command = ["python3", "program.py"]
        scale = {{ min = 0 }}
        """,
    )
    shared_pool.start_or_reload()
    assert state(shared_pool) == "sleeping"
    assert get(port, "/program.py").status == 200
    until(lambda: state(shared_pool) == "running")


def test_dependencies_wake_first_and_stay_awake_as_long(pool: RealPool) -> None:
    ports = pool.write_hello("db", "web", extra=SLEEPS)
    path = pool.directory / "pool.toml"
    db, web = path.read_text().split("[[server]]")[1:]
    web = f'{web.replace(SLEEPS, STAYS_UP)}\ndepends_on = ["db"]\n'
    path.write_text("\n[[server]]".join(["", db, web]))
    pool.ok("start")
    assert {item["state"] for item in pool.items().values()} == {"sleeping"}
    assert get(ports["web"]).status == 200
    time.sleep(0.4)  # nobody asks the database for anything for longer than its idle time, and it is needed
    items = pool.items()
    assert {item["state"] for item in items.values()} == {"running"}
    assert items["db"]["uptime_seconds"] > items["web"]["uptime_seconds"]
    pool.ok("stop", "web")
    pool.ok("wait", "db", "--for", "sleeping", "--timeout", "40s")


@pytest.mark.parametrize("command", ["restart", "stop", "start"])
def test_commands_wake_no_server(shared_pool: RealPool, command: str) -> None:
    name = f"to-{command}"
    port = shared_pool.write_hello(name, f"{name}-other", extra=STAYS_UP)[name]
    shared_pool.start_or_reload()
    silent = connect(port)
    shared_pool.ok(command, name)
    item = shared_pool.items()[name]
    assert (item["pids"], item["restarts"]) == ([], 0)
    if command == "stop":
        assert item["state"] == "stopped"
        assert silent.recv(10) == b""
        with pytest.raises(ConnectionRefusedError):
            connect(port)
        shared_pool.ok("start", name)
    else:
        assert item["state"] == "sleeping"
        silent.sendall(REQUEST)
        assert silent.recv(12) == b"HTTP/1.1 200"
    silent.close()
    assert get(port).status == 200


@pytest.mark.heavy
def test_connection_that_waits_for_a_failed_wake_is_closed_and_the_reason_reported(pool: RealPool) -> None:
    port = pool.write_hello(extra=STAYS_UP + "\nrestart = { limit = 1, backoff = { initial = 0.05 } }")["web"]
    pool.ok("start")
    pool.write("hello.py", "raise RuntimeError('not today')\n")
    with connect(port, REQUEST) as client:
        assert sent_away(client)
    wait_until(lambda: state(pool) == "failed")
    wait_until(lambda: "not today" in pool.run("status").stdout + pool.run("logs").stdout)
    pool.write("hello.py", "async def app(scope, receive, send): raise SystemExit\n")
    assert pool.ok("start").stdout.startswith("0 servers ready (1 sleeping)\n")


@pytest.mark.heavy
@pytest.mark.parametrize("victim", ["supervisor_pid", "keeper_pid"])
def test_next_supervisor_goes_on_watching_and_loses_no_connection(
    pool: RealPool, until: Until, victim: str
) -> None:
    port = pool.write_hello(extra=SLEEPS)["web"]
    pool.ok("start")
    silent = connect(port)
    begun = connect(port, b"GET / HT")
    # On disk: a supervisor that is killed may lose the events of its last 20 ms.
    until(
        lambda: any('"after": "sleeping"' in each.read_text() for each in pool.runtime.rglob("events.jsonl"))
    )
    before = pool.info()
    os.kill(before[victim], signal.SIGKILL)
    until(lambda: pool.info()["supervisor_pid"] != before["supervisor_pid"])
    assert state(pool) == "sleeping"
    begun.sendall(b"TP/1.1\r\nHost: x\r\n\r\n")
    assert begun.recv(12) == b"HTTP/1.1 200"
    silent.sendall(REQUEST)
    assert silent.recv(12) == b"HTTP/1.1 200"
    for client in (silent, begun):
        client.close()
    pool.ok("wait", "--for", "sleeping", "--timeout", "40s")
    assert get(port).status == 200
    slept = [line for line in pool.ok("events").stdout.splitlines() if "starting → sleeping" in line]
    assert len(slept) == 1, "it slept on under the other supervisor"


def test_reload_wakes_no_server_and_changes_the_idle_time_of_running_ones(pool: RealPool) -> None:
    ports = pool.write_hello("awake", "asleep", extra=STAYS_UP)
    pool.ok("start")
    assert get(ports["awake"]).status == 200
    (pid,) = pool.items()["awake"]["pids"]
    pool.replace(STAYS_UP, "scale = { min = 0, idle = 600 }\nenv = { A = 'b' }", 2)
    pool.replace("env = { A = 'b' }", "", 1)
    items = {item["name"]: item for item in pool.ok("reload", "-o", "json").json["items"]}
    assert (items["awake"]["pids"], items["asleep"]["state"]) == ([pid], "sleeping")
    pool.replace("idle = 600", "idle = 0.2")
    pool.ok("reload")
    pool.ok("wait", "--for", "sleeping", "--timeout", "40s")
    assert get(ports["asleep"]).status == 200


@pytest.mark.parametrize(
    ("mode", "enough"),
    [
        ("keep_alive", 80),
        *(
            pytest.param(*each, marks=pytest.mark.heavy)
            for each in (("new_connection", 80), ("pipelined", 640))
        ),
    ],
)
def test_no_request_is_lost_at_whatever_moment_it_comes(pool: RealPool, mode: str, enough: int) -> None:
    shutil.copy(apps.__file__, pool.directory / "hello.py")
    # Two clients with a pause of about the idle time: now they come before the server sleeps, now after, now just then.
    ports = [claim_port() for _ in range(2)]
    server = """
        [[server]]
        name = "s{port}"
        bind = "127.0.0.1:{port}"
        app = "hello:app"
        scale = {{ min = 0, idle = 0.03 }}
    """
    pool.write("pool.toml", "".join(textwrap.dedent(server).format(port=port) for port in ports))
    pool.ok("start")

    def slept() -> int:
        return min(item["generation"] - 1 for item in pool.ok("show", "-o", "json").json["items"])

    with Load(ports, mode, connections=4, pause=0.031) as load:
        # On a busy machine what is enough may have come before a server has slept at all.
        wait_until(lambda: load.look().complete >= enough and slept() > 1, timeout_seconds=50)
    assert load.report.failed == 0, load.report
    assert load.report.complete >= enough
    assert slept() > 1, "it never came to it"


@pytest.mark.heavy
def test_next_supervisor_learns_which_workers_are_idle(pool: RealPool) -> None:
    port = pool.write_hello(extra=SLEEPS)["web"]
    pool.ok("start")
    assert get(port).status == 200
    supervisor = pool.info()["supervisor_pid"]
    freeze(supervisor)
    time.sleep(0.4)  # longer than its idle time: what the worker says of it is heard by the successor
    os.kill(supervisor, signal.SIGKILL)
    pool.ok("wait", "--for", "sleeping", "--timeout", "40s")
