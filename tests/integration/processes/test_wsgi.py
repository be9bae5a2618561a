"""WSGI applications in workers: recognised, served with and without a2wsgi, and restarted under a request."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.configuration import server
from tests.deadline import wait_until
from tests.environments import without
from tests.http_get import get
from tests.real_pool import RealPool

SHOP = """
import os, pathlib, time

def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        pathlib.Path("entered").touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {environ['SCRIPT_NAME']} {environ['PATH_INFO']}".encode()]

def create_app(settings=None):
    return app

def decorated(*arguments):
    return app(*arguments)

async def asgi(scope, receive, send): ...
"""


def write(pool: RealPool, **servers: dict[str, Any]) -> dict[str, int]:
    """A pool of these servers, on ports by name."""
    pool.write("shop.py", SHOP)
    ports = pool.write_hello(*servers)
    tables = [
        server(name, **{"bind": f"127.0.0.1:{ports[name]}", "app": "shop:app", **keys})
        for name, keys in servers.items()
    ]
    pool.write("pool.toml", "\n".join(tables))
    return ports


def log(pool: RealPool, name: str) -> str:
    return pool.ok("logs", name, "-n", "all").stdout


@pytest.mark.capability
def test_wsgi_application_is_recognised_and_served_with_and_without_a2wsgi(
    real_pool: RealPool, tmp_path: Path
) -> None:
    own = without(tmp_path / "own", "a2wsgi")
    ports = write(
        real_pool,
        shop={"workers": 2, "http": {"root_path": "/shop"}},
        made={"app": "shop:create_app", "preload": True},
        own={"python": own},
        named={"app": "shop:decorated", "interface": "wsgi"},
    )
    validated = real_pool.ok("validate", "--import")
    assert validated.stdout == "4 servers, ok\n"
    assert "WSGI, served by a2wsgi: shop" in validated.stderr
    assert f"{own} has no a2wsgi" in validated.stderr
    assert f"{own} -m pip install a2wsgi" in validated.stderr
    real_pool.ok("start")
    found = {name: get(port, "/a").text.split()[1:] for name, port in ports.items()}
    assert found == {"shop": ["/shop", "/a"], "made": ["/a"], "own": ["/a"], "named": ["/a"]}
    wait_until(lambda: "install a2wsgi" in log(real_pool, "own"))
    assert log(real_pool, "own").count("a2wsgi: ") == 1
    assert "Deprecat" not in log(real_pool, "own")
    assert "a2wsgi" not in log(real_pool, "shop")
    wait_until(lambda: "set factory = true" in log(real_pool, "made"))


def test_restart_waits_for_a_running_request_in_its_thread(real_pool: RealPool) -> None:
    ports = write(real_pool, shop={"http": {"threads": 2}})
    real_pool.ok("start")
    (old,) = real_pool.items()["shop"]["pids"]
    with socket.create_connection(("127.0.0.1", ports["shop"]), 60) as slow:
        slow.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        wait_until((real_pool.directory / "entered").exists)
        real_pool.ok("restart", "--no-wait")
        wait_until(lambda: get(ports["shop"]).text.split()[0] != str(old))
        (real_pool.directory / "go").touch()
        answer = b"".join(iter(lambda: slow.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert f"{old} " in answer.decode()


@pytest.mark.slow
@pytest.mark.parametrize("command", [("serve", "shop"), ("run", "--debug", "shop")])
def test_wsgi_application_is_served_by_one_process(real_pool: RealPool, command: tuple[str, ...]) -> None:
    ports = write(real_pool, shop={})
    process = real_pool.spawn(*command)

    def answers() -> bool:
        try:
            return get(ports["shop"]).status == 200
        except OSError:
            assert process.poll() is None
            return False

    wait_until(answers)
    process.terminate()
    output, errors = process.communicate(timeout=60)
    assert "lifespan" not in output + errors


def test_interface_that_the_application_does_not_have_is_refused(real_pool: RealPool) -> None:
    write(real_pool, web={"interface": "asgi"}, other={"app": "shop:asgi", "interface": "wsgi"})
    validated = real_pool.run("validate", "--import")
    assert validated.code == 5
    started = real_pool.run("start")
    assert started.code == 1
    for text in (validated.stdout, started.stderr):
        assert "shop:app takes two arguments, so it is a WSGI application" in text
        assert "shop:asgi is a coroutine function, so it is an ASGI application" in text
