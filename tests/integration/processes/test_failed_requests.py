"""What a worker's log has by default: requests that failed, and breakpoints that cannot stop."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.ports import claim_port
from tests.real_pool import RealPool

APP = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    status = 200
    if scope["path"] == "/stop":
        breakpoint()
    elif scope["path"] != "/":
        status = int(scope["path"][1:])
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})
"""
SERVERS = {
    "usual": 'health = "/503"',
    "named": "http = { request_id = true }",
    "silent": "http = { access_log = false }",
    "all": "http = { access_log = true }\npreload = true",
}


def write(pool: RealPool) -> dict[str, int]:
    pool.write("fails.py", APP)
    ports = {name: claim_port() for name in SERVERS}
    pool.write(
        "pool.toml",
        "".join(
            f'[[server]]\nname = "{name}"\nbind = "127.0.0.1:{ports[name]}"\napp = "fails:app"\n{lines}\n'
            for name, lines in SERVERS.items()
        ),
    )
    return ports


def lines_of(pool: RealPool, name: str) -> list[str]:
    """What the server has written by now."""
    paths = pool.runtime.glob(f"[!@]*/state/logs/{name}.log")
    return [line for path in paths for line in path.read_text().splitlines()]


def test_failed_requests_are_in_the_log_by_default(real_pool: RealPool, http_get: Any, until: Any) -> None:
    ports = write(real_pool)
    real_pool.ok("start", "--no-wait")  # `usual` never becomes ready: its probes are answered with 503
    names = [name for name in SERVERS if name != "usual"]
    real_pool.ok("wait", *names, "--timeout", "45s")
    for name in names:
        assert http_get(ports[name], "/").status == 200
        assert http_get(ports[name], "/502").status == 502
    until(lambda: any(" 502 " in line for line in lines_of(real_pool, "named")))
    until(lambda: any(" 502 " in line for line in lines_of(real_pool, "all")))
    (line,) = [line for line in lines_of(real_pool, "named") if "HTTP/1.1" in line]
    assert re.search(
        r'ERROR:    127\.0\.0\.1:\d+ - "GET /502 HTTP/1\.1" 502 Bad Gateway \d+\.\dms \w{32}$', line
    )
    assert len([line for line in lines_of(real_pool, "all") if "INFO: " in line and "HTTP/1.1" in line]) == 2
    for name in ("silent", "usual"):
        assert not any("HTTP/1.1" in line for line in lines_of(real_pool, name)), name
    assert (
        real_pool.ok("show", "named", "-o", "json").json["items"][0]["config"]["http"]["access_log"]
        == "errors"
    )


@pytest.mark.heavy_variants
@pytest.mark.parametrize("name", ["named", "all"])  # without and with preload
def test_breakpoint_in_a_worker_names_the_way_to_stop_there(
    real_pool: RealPool, http_get: Any, until: Any, name: str
) -> None:
    port = write(real_pool)[name]
    real_pool.ok("start", name)
    assert http_get(port, "/stop").status == 200
    said = f"fails.py:6 does not stop here, without a terminal: poolctl run --debug {name}"
    until(lambda: any(said in line for line in lines_of(real_pool, name)))
