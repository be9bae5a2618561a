"""Two pools: the gateway of one reports a request, and the other one, its operator, wakes the server."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from tests.features.gateway.conftest import Until
from tests.http_get import get
from tests.ports import claim_port
from tests.real_pool import RealPool

OPERATOR = """
[operator]
bind = "unix:operator.sock"
namespace = "shop"
"""
CLIENT = """
[pool]
name = "shop"
[gateway]
bind = "127.0.0.1:{port}"
[[route]]
alias = "users"
to = "http://127.0.0.1:1"
[operator]
url = "unix:{socket}"
"""


@pytest.mark.capability
def test_request_for_a_sleeping_server_of_another_pool_wakes_it(
    real_pool: RealPool, tmp_path: Path, until: Until
) -> None:
    # Nothing but the report leads from one pool to the other: the route's target refuses connections.
    real_pool.write_hello("users", extra='scale = { min = 0, idle = "100ms" }')
    text = (real_pool.directory / "pool.toml").read_text()
    real_pool.write("pool.toml", text + OPERATOR)
    real_pool.ok("start")
    socket = real_pool.directory / "operator.sock"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    until(lambda: real_pool.items()["users"]["state"] == "sleeping")

    port = claim_port()
    (tmp_path / "gateway").mkdir()
    gateway = RealPool(tmp_path / "gateway", real_pool.runtime)
    try:
        gateway.write("pool.toml", CLIENT.format(port=port, socket=socket))
        gateway.ok("start")
        assert get(port, "/").status == 503
        reported = until(lambda: [each for each in events(real_pool) if each["event"] == "requests reported"])
        assert [(each["server"], each["requests"], each["workers"]) for each in reported] == [("users", 1, 1)]
        until(lambda: "wake" in {each["kind"] for each in events(real_pool)})
    finally:
        gateway.run("stop")


def events(pool: RealPool) -> list[dict[str, object]]:
    return [json.loads(line) for line in pool.ok("events", "-o", "json").stdout.splitlines()]
