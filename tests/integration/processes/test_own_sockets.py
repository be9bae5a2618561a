"""Programs that open their listening socket themselves, at the address that the pool gives them."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest

from tests.configuration import server
from tests.deadline import wait_until
from tests.http_get import get
from tests.programs import program
from tests.real_pool import RealPool

# Listens at $PORT, or at another variable, and takes no descriptor.
PROGRAM = """
import http.server, os, sys

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"own")

    def log_message(self, *_):
        pass

variable = sys.argv[1] if sys.argv[1:] else "PORT"
http.server.HTTPServer((os.environ["HOST"], int(os.environ[variable])), Answer).serve_forever()
"""

GIVEN = """
import socket

listener = socket.socket(fileno=3)
while True:
    client, _ = listener.accept()
    with client:
        client.recv(4096)
        client.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\ngiven")
"""


@pytest.mark.heavy
def test_program_that_is_given_its_port_in_env_opens_its_socket_itself(
    pool: RealPool, free_port: Any
) -> None:
    port = free_port()
    pool.write("own.py", PROGRAM)
    command = [sys.executable, "own.py", "LISTEN_AT"]
    pool.write(
        "pool.toml",
        server("web", bind=f"127.0.0.1:{port}", command=command, env={"LISTEN_AT": "{port}", "A": "{prot}"}),
    )
    started = pool.ok("start")
    assert get(f"http://127.0.0.1:{port}").body == b"own"
    assert "web: env.A: {prot} is no placeholder, and is passed on as it is; write {port}" in started.stderr
    said = 'write socket = "program" to accept that'
    assert said in started.stderr
    assert said not in pool.ok("start").stderr
    pool.ok("stop")
    assert said not in pool.ok("start").stderr, "it was said for this state of the file"
    pool.append("# changed\n")
    pool.ok("stop")
    assert said in pool.ok("start").stderr
    assert said in pool.ok("validate").stderr


NODE = """
require("node:http").createServer((request, response) => response.end("own"))
    .listen(process.env.PORT, process.env.HOST)
"""
SAID = "opens 127.0.0.1:{} itself, and was started again without the pool's socket; write socket = "


@pytest.mark.parametrize("kind", ["python", "node"])
def test_program_that_reads_port_is_started_again_without_the_pools_socket_and_that_is_said_once(
    pool: RealPool, free_port: Any, kind: str
) -> None:
    port = free_port()
    pool.write("own.py", PROGRAM)
    pool.write("own.js", NODE)
    command = [sys.executable, "own.py"] if kind == "python" else [program("node"), "own.js"]
    pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", command=command))
    said = SAID.format(port)
    assert said in pool.ok("start").stderr
    assert get(f"http://127.0.0.1:{port}").body == b"own"
    (item,) = pool.ok("show", "-o", "json").json["items"]
    assert (item["ready"], item["restarts"], item["failure"], item["config"]["socket"]) == (
        True,
        0,
        None,
        "program",
    )
    assert pool.ok("events", "-o", "json").stdout.count(said) == 1
    assert "nothing to do" in pool.ok("reload", "--dry-run").stdout
    assert said not in pool.ok("restart").stderr
    assert get(f"http://127.0.0.1:{port}").body == b"own"
    os.kill(pool.info()["supervisor_pid"], signal.SIGKILL)
    wait_until(pool.is_ready)
    assert "nothing to do" in pool.ok("reload", "--dry-run").stdout
    pool.ok("stop")
    assert said not in pool.ok("start").stderr, "it is remembered after a stop too"
    assert pool.ok("events", "-o", "json").stdout.count(said) == 1


@pytest.mark.heavy
def test_another_command_is_given_the_pools_socket_again(pool: RealPool, free_port: Any) -> None:
    bind = f"127.0.0.1:{free_port()}"
    pool.write("own.py", PROGRAM)
    pool.write("pool.toml", server("web", bind=bind, command=[sys.executable, "own.py"]))
    pool.ok("start")
    pool.write("given.py", GIVEN)
    pool.write("pool.toml", server("web", bind=bind, command=[sys.executable, "given.py"]))
    pool.ok("reload")
    assert get(f"http://{bind}").body == b"given"
    assert pool.ok("show", "-o", "json").json["items"][0]["config"]["socket"] == "pool"


@pytest.mark.heavy
def test_program_that_finds_another_address_in_use_is_given_the_pools_socket_again(
    pool: RealPool, free_port: Any
) -> None:
    bind = f"127.0.0.1:{free_port()}"
    pool.write("taken.py", "import sys; sys.exit('OSError: [Errno 98] Address already in use')")
    pool.write("pool.toml", server("web", bind=bind, command=[sys.executable, "taken.py"], restart="no"))
    done = pool.run("start")
    assert done.code == 1
    assert (
        "exited with status 1 before it was ready: OSError: [Errno 98] Address already in use" in done.stderr
    )
    assert "opens " not in done.stderr
    item = pool.ok("show", "-o", "json").json["items"][0]
    assert (item["state"], item["config"]["socket"]) == ("failed", "pool")


@pytest.mark.heavy
def test_failure_of_node_that_opens_its_own_socket_names_the_pool_as_the_holder_of_the_address(
    pool: RealPool, free_port: Any
) -> None:
    bind = f"127.0.0.1:{free_port()}"
    pool.write("own.js", NODE)
    keys = {"command": [program("node"), "own.js"], "socket": "pool", "restart": "no"}
    pool.write("pool.toml", server("web", bind=bind, **keys))
    done = pool.run("start")
    assert done.code == 1
    assert f"exited with status 1 before it was ready: address {bind} is in use (by this pool)" in done.stderr
    assert 'or write socket = "program" to let it open its own' in done.stderr
    assert "Node.js v" not in done.stderr


# A child with a session of its own, which the end of the program leaves behind, keeps the listening socket.
LEAVES_ITS_SOCKET = """
import os, socket, subprocess, sys

listener = socket.create_server((os.environ["HOST"], int(os.environ["PORT"])))
subprocess.Popen(["sleep", "600"], pass_fds=[listener.fileno()], start_new_session=True)
while True:
    client, _ = listener.accept()
    with client:
        client.recv(4096)
        client.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nown")
"""


def test_program_is_not_ready_by_the_socket_that_an_earlier_one_has_left(
    pool: RealPool, free_port: Any
) -> None:
    bind = f"127.0.0.1:{free_port()}"
    pool.write("own.py", LEAVES_ITS_SOCKET)
    command = [sys.executable, "own.py"]
    pool.write("pool.toml", server("web", bind=bind, command=command, socket="program"))
    pool.ok("start")
    assert get(f"http://{bind}").body == b"own"
    done = pool.run("restart")
    assert done.code == 1, str(done)
    assert f"web: exited with status 1 before it was ready: address {bind} is in use" in done.stderr
    assert pool.items()["web"]["ready"] is False
