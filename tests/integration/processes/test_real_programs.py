"""Servers of other people under load: ready when they accept, and restarted without losing a request."""

from __future__ import annotations

from typing import Any

import pytest

from tests.configuration import server
from tests.deadline import wait_until
from tests.load import Load
from tests.programs import program
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow

SLOW_WSGI = """
import time

def app(environ, start_response):
    time.sleep(0.2)
    start_response("200 OK", [("content-length", "2")])
    return [b"ok"]
"""


def restart_under_load(pool: RealPool, where: int | str, clients: int, **options: Any) -> None:
    """Restarts once while clients never pause; all requests are answered."""
    with Load([where], "new_connection", connections=clients, echo=False, **options) as load:
        pool.ok("restart")
        before = load.look().complete
        wait_until(lambda: load.look().complete > before)
    assert not load.report.failed, load.report


# A question waits longer behind the clients than it may take to be answered.
HEALTH = {"readiness": {"http": "/", "timeout": "700ms"}}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("arguments", "clients", "keys"),
    [
        (["--workers", "2"], 8, {}),
        (["--workers", "1"], 5, {"health": HEALTH}),
        (["--workers", "4"], 16, {}),
        (["--workers", "1", "--threads", "2"], 8, {}),
    ],
    ids=["2 workers", "1 worker with a probe", "4 workers", "threads"],
)
def test_restarting_a_saturated_gunicorn_loses_no_request(
    pool: RealPool, free_port: Any, arguments: list[str], clients: int, keys: dict[str, Any]
) -> None:
    port = free_port()
    pool.write("slow.py", SLOW_WSGI)
    command = [program("gunicorn"), *arguments, "slow:app"]
    pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", command=command, **keys))
    pool.ok("start")
    restart_under_load(pool, port, clients)


NODE = """
const server = require("node:http").createServer((request, response) => setTimeout(() => response.end("ok"), 20))
server.listen({ fd: 3 })
process.on("SIGTERM", () => server.close())
"""

# nginx takes the sockets that its variable names, as it does before its own upgrade. SIGTERM would cut open requests.
NGINX = """
daemon off; pid nginx.pid; error_log stderr;
events {}
http {
    access_log off;
    server { listen 127.0.0.1:%d; location / { return 200 "ok"; } }
}
"""
GRACEFUL_NGINX = 'trap "kill -QUIT \\$pid" TERM; NGINX="{fd};" nginx -p . -c nginx.conf & pid=$!; wait; wait'


def test_restarting_node_under_load_loses_no_request(pool: RealPool, free_port: Any) -> None:
    port = free_port()
    pool.write("app.js", NODE)
    pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", command=[program("node"), "app.js"]))
    pool.ok("start")
    restart_under_load(pool, port, 8)


def test_restarting_nginx_on_the_pools_socket_under_load_loses_no_request(
    pool: RealPool, free_port: Any
) -> None:
    port = free_port()
    pool.write("nginx.conf", NGINX % port)
    command = ["/bin/sh", "-c", GRACEFUL_NGINX.replace("nginx -p", f"{program('nginx')} -p")]
    pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", command=command))
    pool.ok("start")
    restart_under_load(pool, port, 4, pause=0.01)


def test_restarting_a_program_with_one_blocking_worker_that_binds_by_itself_succeeds_under_load(
    pool: RealPool, free_port: Any
) -> None:
    port = free_port()
    pool.write("index.php", "<?php usleep(100000); echo 'ok';")
    command = [program("php"), "-S", "{host}:{port}", "index.php"]
    pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", command=command))
    pool.ok("start")
    with Load([port], "new_connection", connections=8, echo=False) as load:
        pool.ok("restart")
        before = load.look().complete
        wait_until(lambda: load.look().complete > before)
    assert not load.report.unanswered, load.report
