"""A server with triggers under a real load: more workers while it lasts, fewer afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.deadline import wait_until
from tests.load import Load
from tests.real_pool import RealPool

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(120)]

SCALE = 'max = 3, triggers = { in_flight = 2 }, window = "2s", cooldown = { up = "1s", down = "500ms" }'


def web(pool: RealPool) -> dict[str, Any]:
    return pool.items()["web"]


def has(pool: RealPool, workers: int) -> bool:
    item = web(pool)
    return (item["workers"], len(item["pids"]), item["ready"]) == (workers, workers, True)


def events(pool: RealPool) -> list[dict[str, Any]]:
    lines = pool.ok("events", "--kind", "scale", "-o", "json").stdout.splitlines()
    return [json.loads(line) for line in lines]


def changes(pool: RealPool) -> list[tuple[int, int]]:
    return [(each["before"], each["after"]) for each in events(pool) if each["event"] == "workers"]


@pytest.mark.capability
def test_workers_follow_the_load_there_and_back_and_no_request_fails(real_pool: RealPool) -> None:
    pool = real_pool
    root = Path(__file__).parents[3]
    pool.write_hello("web", extra=f'app_dir = "{root}"\nscale = {{ {SCALE} }}')
    path = pool.directory / "pool.toml"
    path.write_text(path.read_text().replace("hello:app", "tests.load.apps:app"))
    pool.ok("start")
    assert has(pool, 1)
    with Load([pool.ports["web"]], "stream", connections=12, chunks=10, chunk_pause=0.05) as load:
        wait_until(lambda: has(pool, 3))
        pool.ok("scale", "web", "2")
        assert web(pool)["workers"] == 2
        assert pool.ok("scale", "web", "--auto").stdout == "1 server scaled by triggers\n"
        wait_until(lambda: has(pool, 3))
        wait_until(lambda: "at maximum" in {each["event"] for each in events(pool)})
    assert (load.report.failed, load.report.refused) == (0, 0), load.report
    wait_until(lambda: has(pool, 1) and changes(pool)[-1][1] == 1)
    assert changes(pool)[0][0] == 1
    assert max(after for _, after in changes(pool)) == 3
    decided = [each for each in events(pool) if each.get("trigger")]
    assert {(each["trigger"], each["target"]) for each in decided} == {("in_flight", 2)}
