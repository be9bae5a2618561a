"""Contract §2: the effects of a server's keys, on real processes."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from poolctl.exit_codes import NO_SUPERVISOR
from tests.certificates import certificate
from tests.http_get import refused
from tests.ports import claim_port
from tests.real_pool import RealPool, pool_in

Serve = Callable[..., int]

TELL = """
import json, os
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    told = {"pid": os.getpid(), "cwd": os.getcwd(), "env": dict(os.environ), "scheme": scope["scheme"],
            "root_path": scope.get("root_path")}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})
"""

# A program other than an ASGI application: it answers on descriptor 3, or binds the given port.
PROGRAM = """
import json, os, socket, sys
if "bind" in sys.argv:
    s = socket.create_server((sys.argv[2], int(sys.argv[3])), reuse_port=False)
else:
    s = socket.socket(fileno=3)
s.setblocking(True)
while True:
    c, _ = s.accept()
    c.recv(65536)
    fds = sorted(map(int, os.listdir("/proc/self/fd")))
    body = json.dumps({"pid": os.getpid(), "argv": sys.argv[1:], "env": dict(os.environ), "fds": fds}).encode()
    c.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    c.close()
"""


@pytest.fixture
def serve(real_pool: RealPool) -> Serve:
    """Write a pool of one server with these lines; returns its port."""
    return partial(write_server, real_pool)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPool]:
    """One pool for all tests that do not depend on how the server was started."""
    with pool_in(tmp_path_factory.mktemp("pool")) as shared:
        yield shared


@pytest.fixture
def run(pool: RealPool) -> Serve:
    """Like `serve`, in the shared pool: a reload starts the server and stops the previous test's."""

    def write_and_start(*lines: str, **options: str) -> int:
        port = write_server(pool, *lines, **options)
        if pool.run("reload").code == NO_SUPERVISOR:
            pool.ok("start")
        assert pool.items()["web"]["ready"]
        return port

    return write_and_start


def write_server(
    pool: RealPool,
    *lines: str,
    app: str = "tell:app",
    tell: str = TELL,
    program: str = PROGRAM,
    more: str = "",
) -> int:
    pool.write("tell.py", tell)
    pool.write("program.py", program)
    port = claim_port()
    what = [] if any(line.startswith("command") for line in lines) else [f'app = "{app}"']
    text = "\n".join(['[[server]]\nname = "web"', f'bind = "127.0.0.1:{port}"', *what, *lines])
    pool.write("pool.toml", f"{text}\n{more}")
    return port


def command(*words: str) -> str:
    return "command = " + str([sys.executable, "program.py", *words])


def test_the_environment_comes_from_start_env_file_and_env(
    real_pool: RealPool, serve: Any, http_get: Any
) -> None:
    real_pool.write("one.env", "A=one\nB=one\nC=one\n")
    real_pool.write(
        "two.env", "# a comment\nB=two\nexport C='two'\nE=${A}-${C}-${FROM_START}-${GONE:-gone}\n"
    )
    real_pool.write("raw.env", "F=${A}\n")
    port = serve(
        'env_file = ["one.env", "two.env", { path = "raw.env", expand = false }]',
        'env = { C = "env", D = "${FROM_START}" }',
    )
    real_pool.ok("start", env={"FROM_START": "here"})
    told = http_get(port).json()
    env = told["env"]
    assert {name: env[name] for name in ("A", "B", "C", "D", "E", "F", "FROM_START")} == {
        "A": "one", "B": "two", "C": "env", "D": "here", "E": "one-env-here-gone", "F": "${A}", "FROM_START": "here",
    }  # fmt: skip
    assert told["cwd"] == str(real_pool.directory)


@pytest.mark.slow
def test_cwd_and_app_dir_are_relative_to_the_file(real_pool: RealPool, serve: Any, http_get: Any) -> None:
    real_pool.write("sub/dir/only_here.py", TELL)
    (real_pool.directory / "work").mkdir()
    port = serve('cwd = "work"', 'app_dir = "sub/dir"')
    real_pool.replace("tell:app", "only_here:app")
    real_pool.ok("-c", f"{real_pool.directory}/pool.toml", "start", cwd=Path("/"))
    assert http_get(port).json()["cwd"] == str(real_pool.directory / "work")


def test_a_factory_and_a_dotted_attribute(run: Serve, http_get: Any) -> None:
    tell = TELL + "\nclass api:\n    class v1:\n        make = staticmethod(lambda: app)\n"
    port = run("factory = true", app="tell:api.v1.make", tell=tell)
    assert http_get(port).status == 200


@pytest.mark.slow
def test_both_loops_and_both_parsers(real_pool: RealPool, free_port: Any, http_get: Any) -> None:
    pytest.importorskip("httptools")
    pytest.importorskip("uvloop")
    ports = {(loop, parser): free_port() for loop in ("asyncio", "uvloop") for parser in ("h11", "httptools")}
    real_pool.write("tell.py", TELL)
    real_pool.write(
        "pool.toml",
        "".join(
            f'[[server]]\nname = "{loop}-{parser}"\nbind = "127.0.0.1:{port}"\napp = "tell:app"\n'
            f'http = {{ loop = "{loop}", implementation = "{parser}", root_path = "/{loop}/{parser}" }}\n'
            for (loop, parser), port in ports.items()
        ),
    )
    real_pool.ok("start")
    for (loop, parser), port in ports.items():
        assert http_get(port).json()["root_path"] == f"/{loop}/{parser}"


def test_a_program_gets_the_socket_as_descriptor_3(pool: RealPool, run: Serve, http_get: Any) -> None:
    port = run(command("{fd}", "{name}"))
    told = http_get(port).json()
    env = told["env"]
    assert told["argv"] == ["3", "web"]
    assert (env["LISTEN_FDS"], env["LISTEN_PID"]) == ("1", str(told["pid"]))
    assert (env["HOST"], env["PORT"]) == ("127.0.0.1", str(port))
    assert "NOTIFY_SOCKET" not in env
    assert {*told["fds"]} <= {*range(6)}, "its socket, the connection, the listing"
    assert (pool.items()["web"]["pids"], os.getsid(told["pid"])) == ([told["pid"]], told["pid"])
    pool.ok("restart")
    assert http_get(port).json()["pid"] != told["pid"]


@pytest.mark.slow
def test_a_program_that_is_given_the_port_binds_it_itself(
    real_pool: RealPool, serve: Any, http_get: Any
) -> None:
    port = serve(command("bind", "{host}", "{port}"))
    done = real_pool.ok("validate")
    assert "overlap" in done.stdout + done.stderr, "it says that a restart cannot overlap"
    real_pool.ok("start")
    told = http_get(port).json()
    assert told["argv"] == ["bind", "127.0.0.1", str(port)]
    assert (told["env"]["HOST"], told["env"]["PORT"]) == ("127.0.0.1", str(port))
    real_pool.ok("restart")
    again = http_get(port).json()["pid"]
    real_pool.append('\nenv = { CHANGED = "1" }\n')
    real_pool.ok("reload")
    assert len({told["pid"], again, http_get(port).json()["pid"]}) == 3


@pytest.mark.parametrize(("policy", "state"), [("on-failure", "stopped"), ("always", "running")])
def test_a_server_that_ends_with_0_by_itself(
    pool: RealPool, run: Serve, until: Any, policy: str, state: str
) -> None:
    program = (
        "import pathlib, socket\ns = socket.socket(fileno=3)\ns.setblocking(True)\n"
        "while s.accept()[0].recv(9) != b'end': pass\n"
    )
    port = run(command(), f'restart = "{policy}"', program=program)
    before = pool.items()["web"]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"end")
    until(lambda: (item := pool.items()["web"])["state"] == state and item["pids"] != before["pids"])
    until(lambda: refused(port) is (state == "stopped"))
    assert pool.items()["web"]["restarts"] == before["restarts"] + (state == "running")


# Its worker ends like an application whose background task calls sys.exit.
LEAVE = f"""
import asyncio, sys
async def leave():
    sys.exit(0)
{TELL}
    if scope["path"] == "/leave":
        asyncio.ensure_future(leave())
"""


@pytest.mark.capability
def test_worker_that_exits_is_replaced_and_leaves_the_others(
    pool: RealPool, run: Serve, until: Any, http_get: Any
) -> None:
    port = run("workers = 3", tell=LEAVE)
    before = pool.items()["web"]
    left = http_get(port, "/leave").json()["pid"]
    others = {*before["pids"]} - {left}
    until(lambda: left not in pool.items()["web"]["pids"])
    assert all(http_get(port, "/").status == 200 for _ in range(10))
    until(lambda: len(pool.items()["web"]["pids"]) == 3)
    item = pool.items()["web"]
    assert (others < {*item["pids"]}, item["restarts"]) == (True, before["restarts"] + 1)


@pytest.mark.parametrize("policy", ["no", "on-failure"])
def test_worker_that_ends_with_0_is_not_replaced_and_the_others_serve_until_the_last_has_ended(
    pool: RealPool, run: Serve, until: Any, http_get: Any, policy: str
) -> None:
    port = run("workers = 2", f'restart = "{policy}"', tell=LEAVE)
    left = http_get(port, "/leave").json()["pid"]
    until(lambda: left not in pool.items()["web"]["pids"])
    item = pool.items()["web"]
    assert (item["state"], item["ready"], item["health"], len(item["pids"])) == ("running", True, "warn", 1)
    assert pool.run("status").code == 0
    assert http_get(port, "/leave").status == 200
    until(lambda: pool.items()["web"]["state"] == "stopped")
    until(lambda: refused(port))


# It listens on the pool's socket, and ends when it has a connection.
FAILING = "import select, socket, sys\nselect.select([socket.socket(fileno=3)], [], [])\nsys.exit(1)\n"


@pytest.mark.capability
def test_clients_of_a_server_that_cannot_start_are_let_go(
    real_pool: RealPool, serve: Serve, until: Any
) -> None:
    port = serve(command(), 'restart.backoff = { initial = "1s", max = "1s" }', program=FAILING)
    real_pool.run("start", "--no-wait")
    until(lambda: not refused(port))  # the probe that has found it open ends it
    until(lambda: refused(port) and real_pool.items()["web"]["state"] == "backoff")
    until(lambda: not refused(port))
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.settimeout(60)
        assert client.recv(1) == b""
    assert real_pool.run("status").code == 3


def test_server_whose_worker_dies_soon_after_it_was_ready_again_and_again_is_flapping(
    pool: RealPool, run: Serve, until: Any, http_get: Any
) -> None:
    port = run('restart.backoff = { initial = "10ms" }', tell=LEAVE)
    for flapping in (None, True):
        left = http_get(port, "/leave").json()["pid"]
        until(lambda left=left: (item := pool.items()["web"])["ready"] and item["pids"] != [left])
        assert pool.items()["web"].get("flapping") is flapping
    assert pool.items()["web"]["health"] == "warn"
    status = pool.ok("status", "-o", "json")
    assert any("died within a minute" in warning for warning in status.json["warnings"])
    assert "flapping" in pool.ok("show", "web").stdout


def test_program_without_a_port_is_not_ready_before_it_has_run_for_its_time(
    real_pool: RealPool, until: Any
) -> None:
    text = '[[server]]\nname = "queue"\nready_after = "{}"\ncommand = ["sleep", "600"]\n'
    real_pool.write("pool.toml", text.format("1h"))
    real_pool.ok("start", "--no-wait")
    until(lambda: real_pool.items()["queue"]["pids"])
    assert real_pool.items()["queue"]["state"] == "starting"
    real_pool.ok("stop")
    real_pool.write("pool.toml", text.format("10ms"))
    real_pool.ok("start")
    assert real_pool.items()["queue"]["ready"]


def test_program_with_an_open_input_runs_where_one_without_ends_at_once(real_pool: RealPool) -> None:
    real_pool.write(
        "pool.toml",
        """
        [[server]]
        name = "ends"
        job = true
        command = ["cat"]

        [[server]]
        name = "stays"
        command = ["cat"]
        stdin = "open"
        ready_after = "100ms"
        """,
    )
    real_pool.ok("start")
    items = real_pool.items()
    assert (items["ends"]["state"], items["stays"]["state"]) == ("completed", "running")
    assert real_pool.ok("show", "stays", "-o", "json").json["items"][0]["config"]["stdin"] == "open"


def test_output_goes_to_the_named_file_and_old_ones_are_kept(pool: RealPool, run: Serve, until: Any) -> None:
    tell = TELL + "\nfor n in range(400): print('x' * 50, flush=True)\n"
    run('log = { path = "out/web.log", max_size = "4KiB", keep = 2 }', tell=tell)
    directory = pool.directory / "out"

    def sizes() -> dict[str, int]:
        found = {}
        for path in directory.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # it is being rotated
                found[path.name] = path.stat().st_size
        return found

    until(lambda: sizes().keys() == {"web.log", "web.log.1", "web.log.2"})
    assert all(size <= 4096 for size in sizes().values())


def tls_lines(directory: Path) -> str:
    """The lines of a server with a new certificate in this directory."""
    cert, key = certificate(directory)
    return f'tls = {{ cert = "{cert.name}", key = "{key.name}" }}'


def test_tls_true_takes_the_default(pool: RealPool, run: Serve, http_get: Any) -> None:
    default = tls_lines(pool.directory).replace("tls", "[defaults]\ntls", 1)
    port = run("tls = true", more=f"{default}\n")
    assert http_get(f"https://127.0.0.1:{port}").json()["scheme"] == "https"


@pytest.mark.slow
def test_a_key_of_another_certificate_is_a_problem(real_pool: RealPool, serve: Any) -> None:
    lines = tls_lines(real_pool.directory)
    key = (real_pool.directory / "localhost.key").read_text()
    certificate(real_pool.directory)
    (real_pool.directory / "localhost.key").write_text(key)
    serve(lines)
    done = real_pool.run("validate")
    assert done.code == 5, str(done)
    assert "localhost.key" in done.stdout + done.stderr
