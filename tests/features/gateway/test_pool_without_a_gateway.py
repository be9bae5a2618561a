"""Contract §5: routes and backends of a pool without a gateway."""

from __future__ import annotations

import pytest

import poolctl
from poolctl.errors import PoolParamError
from tests.real_pool import RealPool

pytestmark = pytest.mark.integration


def test_without_a_gateway_routes_and_backends_are_empty_tables(
    real_pool: RealPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_pool.write_hello()
    for command in ("routes", "backends"):
        done = real_pool.run(command, "-o", "json")
        assert done.code == 6, "no supervisor"
        assert [error["code"] for error in done.json["errors"]] == [6]
    real_pool.ok("start")
    for command in ("routes", "backends"):
        document = real_pool.ok(command, "-o", "json").json
        assert (document["schema"], document["items"], document["errors"]) == (1, [], [])
        (header,) = real_pool.ok(command).stdout.splitlines()
        assert ("HOST" if command == "routes" else "BACKEND") in header.split()
        assert real_pool.ok(command, "-o", "jsonl").stdout == real_pool.ok(command, "-o", "name").stdout == ""
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(real_pool.runtime))
    client = poolctl.connect(real_pool.directory / "pool.toml")
    assert client.routes()["items"] == client.hosts()["items"] == []
    done = real_pool.run("backends", "disable", "hello")
    assert done.code == 4, "an order that changes nothing is not done"
    assert "the pool has no gateway" in done.stderr
    # Without the feature the supervisor says that it does not know the order.
    with pytest.raises(PoolParamError, match=r"the pool has no gateway|does not know 'register'"):
        client.register("hello", "http://127.0.0.1:1")
    assert client.health_info_simple() == {"web": "healthy"}
    assert client.health_info()["web"]["uptime_seconds"] > 0
    for wrong in ("soon", -1):
        with pytest.raises(PoolParamError):
            client.disable_host("hello", for_seconds=wrong)
