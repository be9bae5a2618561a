"""Programs that open their listening socket themselves, at the address that the pool gives them."""

from __future__ import annotations

import sys
from typing import Any

from tests.configuration import server
from tests.http_get import get
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
    assert 'write socket = "program" to accept that' in started.stderr


def test_program_that_is_said_to_open_its_socket_itself_does(pool: RealPool, free_port: Any) -> None:
    port = free_port()
    pool.write("own.py", PROGRAM)
    bind, command = f"127.0.0.1:{port}", [sys.executable, "own.py"]
    pool.write("pool.toml", server("web", bind=bind, command=command, socket="program"))
    assert "socket" not in pool.ok("start").stderr
    assert get(f"http://{bind}").body == b"own"
    pool.ok("restart")
    assert get(f"http://{bind}").body == b"own"
