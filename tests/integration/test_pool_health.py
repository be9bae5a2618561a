"""Probes of a pool that a program holds: of servers in its own process, and of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poolctl import Pool, PoolStartError, ServerConfig, Status
from tests.deadline import wait_until
from tests.http_get import get
from tests.ports import claim_port

QUICK = {"interval": 0.05, "timeout": 20, "fall_count_ko": 2}
READINESS = {"readiness": {"http": "/health", **QUICK}}
APP = """
import os
from pathlib import Path

here = Path(__file__).parent

async def app(scope, receive, send):
    assert scope["type"] == "http"
    bad = scope["path"] == "/health" and ((here / "bad").exists() or (here / f"bad-{os.getpid()}").exists())
    await send({"type": "http.response.start", "status": 503 if bad else 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    # A process imports a module once: each test has one of its own.
    (tmp_path / f"{tmp_path.name}_app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def pool(python_pool: Pool) -> Pool:
    python_pool.store_new(ServerConfig(name="first", bind="127.0.0.1:auto", app="tests.asgi_apps:hello"))
    python_pool.start_sync()  # what the first process costs does not count into a server's start_timeout
    python_pool.clean()
    python_pool.join_sync()
    return python_pool


@pytest.fixture
def start_timeout(request: pytest.FixtureRequest) -> str:
    """Long enough for a process on a busy machine."""
    return "10s" if request.node.callspec.params["runner_of_any_kind"] == "processes" else "2s"


def config(directory: Path, **keys: Any) -> ServerConfig:
    keys = {"health": READINESS, "app_dir": str(directory)} | keys
    return ServerConfig(name="web", bind=f"127.0.0.1:{claim_port()}", app=f"{directory.name}_app:app", **keys)


@pytest.mark.heavy_variants
def test_a_server_starts_when_its_probe_passes_and_falls_and_rises_with_it(
    pool: Pool, directory: Path, start_timeout: str
) -> None:
    server = pool.store_new(config(directory, start_timeout=start_timeout))
    bad = directory / "bad"
    bad.touch()
    with pytest.raises(PoolStartError) as failed:
        server.start_sync()
    said = str(failed.value.exceptions[0])
    assert f"was not ready within {start_timeout}: readiness: GET /health: status 503" in said
    bad.unlink()
    server.start_sync()
    assert (server.health, server.ready, server.is_running) == (Status.OK, True, True)
    assert get(server.config.address.port).status == 200
    wait_until(lambda: server.monitor().latency is not None)
    running = server.monitor()
    assert (running.status, running.message, running.rises) == (Status.OK, "", 1)
    bad.touch()
    wait_until(lambda: server.health is Status.KO, what="it is ko")
    assert (server.ready, server.is_running) == (False, True)
    assert get(server.config.address.port).status == 200  # the last one goes on accepting
    fallen = server.monitor()
    assert (fallen.status, fallen.falls) == (Status.KO, 1)
    assert fallen.message == "readiness: GET /health: status 503"
    assert fallen.fall.total_seconds() > 0
    bad.unlink()
    wait_until(lambda: server.ready, what="it is well again")
    assert server.monitor().downtime.total_seconds() > 0
    assert pool.monitor_names() == [each.name for each in pool.monitor()] == ["web"]


@pytest.mark.heavy_variants
def test_a_restart_goes_on_with_the_old_one_until_the_new_one_passes(
    pool: Pool, directory: Path, start_timeout: str
) -> None:
    server = pool.store_new(config(directory, start_timeout=start_timeout))
    server.start_sync()
    (directory / "bad").touch()
    with pytest.raises(Exception, match="did not restart"):
        server.restart_sync()
    assert server.is_running
    assert get(server.config.address.port).status == 200
    (directory / "bad").unlink()
    server.restart_sync()
    assert server.ready
    assert get(server.config.address.port).status == 200
