"""Contract §2: the effects of the keys of `http`, `limits` and `log`, on one real pool."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real_pool import RealPool

TELL = """
import asyncio, json, logging, pathlib
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    if scope["path"] == "/held":
        pathlib.Path("held").touch()
        while not pathlib.Path("go").exists():
            await asyncio.sleep(0.01)
    logging.getLogger("uvicorn.error").info("asked for %s", scope["path"])
    told = {"client": scope["client"][0], "scheme": scope["scheme"], "root_path": scope["root_path"]}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})
"""
SERVERS = {
    "plain": "",
    "trusting": 'http = { proxy_headers = true, trusted_proxies = ["127.0.0.0/8"] }',
    "terse": 'http = { log_level = "warning" }',
    "wary": 'http = { proxy_headers = true, trusted_proxies = ["10.0.0.1"] }',
    "one": "http = { max_concurrency = 1 }",
    "brief": 'http = { keep_alive = "200ms", root_path = "/api" }\nlimits = { open_files = 64 }',
    "loud": 'http = { access_log = true }\nlog = { path = "loud.log", format = "json" }',
    "h11": 'http = { access_log = true, implementation = "h11", loop = "asyncio" }\npreload = true',
}


@pytest.fixture
def ports(real_pool: RealPool, free_port: Callable[[], int]) -> dict[str, int]:
    """The ports of the started servers."""
    real_pool.write("tell.py", TELL)
    ports = {name: free_port() for name in SERVERS}
    real_pool.write(
        "pool.toml",
        "".join(
            f'[[server]]\nname = "{name}"\nbind = "127.0.0.1:{ports[name]}"\napp = "tell:app"\n{lines}\n'
            for name, lines in SERVERS.items()
        ),
    )
    real_pool.ok("start")
    return ports


def ask(port: int, path: str = "/", *headers: str) -> tuple[int, dict[str, Any]]:
    """The status and the app's report of one request on its own connection."""
    lines = [f"GET {path} HTTP/1.1", "Host: a.test", "Connection: close", *headers]
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    body = answer[answer.find(b"{") : answer.rfind(b"}") + 1]
    return int(answer.split()[1]), json.loads(body or b"{}")


@contextlib.contextmanager
def idle_connection(port: int) -> Iterator[None]:
    """A connection that is kept after its response."""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
        yield


def test_keys_of_http_limits_and_log_take_effect(
    real_pool: RealPool, ports: dict[str, int], until: Any
) -> None:
    forwarded = ("X-Forwarded-For: 9.9.9.9", "X-Forwarded-Proto: https")
    found = {name: ask(ports[name], "/", *forwarded)[1] for name in ("plain", "trusting", "wary")}
    assert {name: (told["client"], told["scheme"]) for name, told in found.items()} == {
        "plain": ("127.0.0.1", "http"), "trusting": ("9.9.9.9", "https"), "wary": ("127.0.0.1", "http"),
    }  # fmt: skip
    assert ask(ports["brief"])[1]["root_path"] == "/api"

    with idle_connection(ports["one"]), idle_connection(ports["one"]):
        held = threading.Thread(target=ask, args=(ports["one"], "/held"))
        held.start()
        until((real_pool.directory / "held").exists)
        assert ask(ports["one"])[0] == 503, "above the limit"
        (real_pool.directory / "go").touch()
        held.join(60)
        assert not held.is_alive()
        until(lambda: ask(ports["one"])[0] == 200)

    with socket.create_connection(("127.0.0.1", ports["brief"]), 60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert b"".join(iter(lambda: connection.recv(65536), b"")).startswith(b"HTTP/1.1 200"), (
            "then it is closed"
        )
    (pid,) = real_pool.items()["brief"]["pids"]
    (line,) = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "open files" in line]
    assert line.split()[3] == "64"

    for name in ("loud", "h11", "plain"):
        assert ask(ports[name], "/seen?x=1")[0] == 200
    log = real_pool.directory / "loud.log"
    until(log.exists)
    until(lambda: "/seen?x=1" in log.read_text() and "/seen?x=1" in real_pool.ok("logs", "h11").stdout)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["name"] for line in lines} == {"loud"}
    (seen,) = [json.loads(line["line"]) for line in lines if '"/seen' in line["line"]]
    assert (seen["method"], seen["target"], seen["status"]) == ("GET", "/seen?x=1", 200)
    assert len(seen["request_id"]) == 32
    assert '"GET /seen?x=1 HTTP/1.1" 200 OK ' in real_pool.ok("logs", "h11").stdout

    assert ask(ports["terse"])[0] == 200
    until(lambda: "INFO:     asked for /seen\n" in real_pool.ok("logs", "plain", "--raw").stdout)
    plain = real_pool.ok("logs", "plain", "-n", "all").stdout
    assert "?x=1" not in plain, "no access log"
    assert plain.count("startup") == 1, "the worker's own line, and not uvicorn's"
    assert real_pool.ok("logs", "terse", "-n", "all").stdout == ""
