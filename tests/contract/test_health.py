"""Contract §2 and §4: probes decide on health and readiness; a failing liveness probe triggers recovery."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.real_pool import RealPool

APP = """
import pathlib
HERE = pathlib.Path(__file__).parent
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    broken = (HERE / scope["path"].strip("/")).exists()
    await send({"type": "http.response.start", "status": 503 if broken else 204 if scope["path"] == "/odd" else 200,
                "headers": []})
    await send({"type": "http.response.body", "body": b"" if scope["path"] == "/odd" else b"version 42"})
"""
QUICK = 'interval = "100ms", timeout = "20s", fall_count_warn = 1, fall_count_ko = 3'
# The readiness of each server; the files unready-NAME and dead-NAME make probes fail.
PROBES = {
    "http": f'readiness = {{ http = "/unready-http", {QUICK} }}',
    "body": f'readiness = {{ http = "/unready-body", body = "version [0-9]+", {QUICK} }}',
    "status": f'readiness = {{ http = "/odd", status = "204", {QUICK} }}',
    "tcp": f"startup = {{ tcp = true, {QUICK} }}, readiness = {{ tcp = true, {QUICK} }}",
    "exec": 'readiness = { exec = ["sh", "-c", "! test -e unready-{name}"], interval = 0.3, timeout = 20, '
    "fall_count_ko = 1000 }",  # stays at warn
    "live": f'liveness = {{ http = "/dead-live", {QUICK} }}',
}


@pytest.fixture
def pool(real_pool: RealPool, free_port: Callable[[], int]) -> RealPool:
    """Servers named after their probes, and `path` with the short form."""
    real_pool.write("probed.py", APP)
    tables = {
        **{name: f"health = {{ {probes} }}" for name, probes in PROBES.items()},
        "path": 'health = "/x"',
    }
    real_pool.ports = {name: free_port() for name in tables}
    real_pool.write(
        "pool.toml",
        "".join(
            f'[[server]]\nname = "{name}"\nbind = "127.0.0.1:{real_pool.ports[name]}"\napp = "probed:app"\n{line}\n'
            for name, line in tables.items()
        ),
    )
    return real_pool


def health(pool: RealPool, name: str) -> tuple[str, bool, str]:
    item = pool.items(name)[name]
    return item["state"], item["ready"], item["health"]


def test_every_kind_of_probe_decides_on_health_and_readiness(
    pool: RealPool, until: Any, http_get: Any
) -> None:
    pool.ok("start")
    pool.ok("wait", "--for", "healthy", "--timeout", "40")
    # A probe of the short form may time out on a busy machine: then that server is at warn for one more interval.
    well = {("running", True, "ok")}
    until(lambda: {(each["state"], each["ready"], each["health"]) for each in pool.items().values()} == well)
    pids = {name: item["pids"] for name, item in pool.items().items()}
    for name in ("http", "body"):
        (pool.directory / f"unready-{name}").touch()
    until(lambda: health(pool, "http") == health(pool, "body") == ("running", False, "ko"))
    assert pool.ok("list", "--health", "ko", "-o", "name").stdout.split() == ["http", "body"]
    status = pool.run("status", "-o", "json")
    assert status.code == 3
    assert {error["name"] for error in status.json["errors"]} == {"http", "body"}
    assert http_get(pool.ports["http"], "/x").status == 200, "out of rotation, and it answers who asks it"
    for name in ("http", "body"):
        (pool.directory / f"unready-{name}").unlink()
    pool.ok("wait", "--for", "healthy", "--timeout", "40")
    pool.ok("status")
    assert {name: item["pids"] for name, item in pool.items().items()} == pids, "readiness restarts nothing"

    (pool.directory / "unready-exec").touch()
    until(lambda: health(pool, "exec")[2] == "warn")
    assert health(pool, "exec")[1] is True, "warn is ready"

    (pool.directory / "dead-live").touch()
    until(lambda: pool.items("live")["live"]["pids"] not in ([], pids["live"]))
    (pool.directory / "dead-live").unlink()
    # Written down some milliseconds after they happen.
    lines = until(lambda: pool.ok("events", "--kind", "recovery", "-o", "json").stdout.splitlines())
    events = [json.loads(line) for line in lines]
    assert events[0]["server"] == "live"
    until(lambda: health(pool, "live") == ("running", True, "ok"))


def test_the_defaults_of_probes_and_recovery_are_the_contracts(pool: RealPool) -> None:
    items = {item["name"]: item["config"] for item in pool.ok("show", "-o", "json").json["items"]}
    defaults = {
        "interval": 5.0, "timeout": 2.0, "fall_count_warn": 1, "fall_count_ko": 3, "rise_count_warn": 1,
        "rise_count_ko": 1, "status": "200-399",
    }  # fmt: skip
    readiness = items["path"]["health"]["readiness"]
    assert readiness["http"] == "/x"
    assert {key: readiness[key] for key in defaults} == defaults
    assert items["path"]["recovery"]["strategy"] == "restart"
    assert items["exec"]["health"]["readiness"]["interval"] == 0.3
