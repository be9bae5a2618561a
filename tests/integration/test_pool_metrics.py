"""The metrics of a pool that a program holds: of servers in its own process, and of processes."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from poolctl import Pool, PoolStartError, ServerConfig
from poolctl.runners.embedded_runner import ProcessRunner
from tests.deadline import wait_until
from tests.http_get import get
from tests.ports import claim_port
from tests.real_pool import RealPool

Samples = dict[tuple[str, ...], float]


@pytest.fixture
def pool(python_pool: Pool) -> Pool:
    return python_pool


def config(name: str, **keys: Any) -> ServerConfig:
    bind = f"127.0.0.1:{claim_port()}"
    return ServerConfig(**{"name": name, "bind": bind, "app": "tests.asgi_apps:hello"} | keys)


def samples(text: str) -> Samples:
    """By the name of the sample, and the values of its labels."""
    families = text_string_to_metric_families(text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_metrics_follow_a_server_through_start_stop_and_failure(pool: Pool) -> None:
    web = pool.store_new(config("web", tags=["a", "b"]))
    broken = pool.store_new(config("broken", app="tests.asgi_apps:nothing"))
    before = samples(pool.metrics())
    assert before["poolctl_servers", "stopped"] == 2
    assert before["poolctl_server_ready", "web"] == 0
    with pytest.raises(PoolStartError):
        pool.start_sync()
    running = samples(pool.metrics())
    assert running["poolctl_servers", "running"] == running["poolctl_servers", "failed"] == 1
    assert running["poolctl_server_info", "web", web.bind, web.expose, "a,b"] == 1
    assert running["poolctl_server_state", "web", "running"] == running["poolctl_server_workers", "web"] == 1
    assert running["poolctl_monitor_rises_total", "web"] == 1
    assert running["poolctl_worker_info", "web", "0", str(web.pids[0]), "1"] == 1
    assert running["poolctl_server_failures_total", "broken"] == 1
    with pytest.raises(PoolStartError):
        broken.start_sync()
    web.restart_sync()
    pool.stop_sync()
    after = samples(pool.metrics())
    assert after["poolctl_server_failures_total", "broken"] == 2
    assert after["poolctl_server_restarts_total", "web"] == 1
    assert after["poolctl_servers", "stopped"] == 2
    assert ("poolctl_worker_info", "web") not in {key[:2] for key in after}
    web.start_sync()
    assert samples(pool.metrics())["poolctl_server_restarts_total", "web"] == 1, "a counter does not fall"


@pytest.mark.parametrize("runner_of_any_kind", ["processes"], indirect=True)
def test_requests_are_counted_in_processes_and_stay_counted_when_these_have_ended(pool: Pool) -> None:
    web = pool.store_new(config("web"))
    pool.start_sync()
    for _ in range(3):
        assert get(web.config.address.port).status == 200

    def count() -> float:
        return samples(pool.metrics())["poolctl_requests_total", "web"]

    wait_until(lambda: count() == 3, what="the requests are counted")
    assert samples(pool.metrics())["poolctl_server_memory_bytes", "web"] > 0
    web.restart_sync()
    pool.join_sync()
    assert get(web.config.address.port).status == 200
    wait_until(lambda: count() == 4, what="the requests of both workers are counted")
    pool.stop_sync()
    assert count() == 4
    assert samples(pool.metrics())["poolctl_responses_total", "web", "2xx"] == 4


def test_an_application_in_the_pool_can_expose_its_metrics() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": pool.metrics().encode()})

    pool = Pool([config("web", app=app)])
    pool.start_sync()
    try:
        found = samples(get(next(iter(pool.values())).config.address.port).body.decode())
        assert found["poolctl_servers", "running"] == 1
        assert found["poolctl_build_info", "", *version()] == 1
        # All servers share this process: its memory and processor time belong to none of them.
        assert ("poolctl_worker_memory_bytes", "web", "0") not in found
    finally:
        pool.stop_sync()


def version() -> tuple[str, str]:
    import poolctl

    return poolctl.__version__, sys.version.split()[0]


def test_two_servers_of_one_name_have_samples_of_their_own() -> None:
    pool = Pool([config("web"), config("web")])
    found = samples(pool.metrics())
    assert {key[1] for key in found if key[0] == "poolctl_server_ready"} == {"web", "web~2"}


def test_names_and_labels_are_those_of_the_command(
    real_pool: RealPool, process_runner: ProcessRunner
) -> None:
    real_pool.write_hello("web")
    real_pool.ok("start")
    families = {each.name: each for each in text_string_to_metric_families(real_pool.ok("metrics").stdout)}
    pool = Pool([config("web")], runner=process_runner)
    pool.start_sync()
    try:
        mine = list(text_string_to_metric_families(pool.metrics()))
        assert families.keys() - {each.name for each in mine} == {
            "poolctl_process_memory_bytes", "poolctl_process_cpu_seconds",
        }, "docs/metrics.md names those that a pool of the Python API lacks"  # fmt: skip
        for family in mine:
            other = families[family.name]
            assert (family.type, family.documentation) == (other.type, other.documentation)
            assert {tuple(each.labels) for each in family.samples} == {
                tuple(each.labels) for each in other.samples
            }
    finally:
        pool.stop_sync()
