"""`poolctl top` without a terminal, and without a supervisor."""

from __future__ import annotations

import json

import pytest

from tests.features.top.test_live_view import answering, many
from tests.real_pool import RealPool


@pytest.fixture
def pool(real_pool: RealPool) -> RealPool:
    real_pool.write_hello("users", "orders")
    return real_pool


@pytest.mark.integration
def test_without_a_terminal_one_frame_of_all_servers_is_printed(pool: RealPool) -> None:
    with answering(pool, many(60)):
        done = pool.ok("top")
        assert "poolctl list -o json" in done.stderr
        assert done.stdout.count("● running") == 60
        assert "\x1b" not in done.stdout
        assert pool.ok("top", "--once", "--sort", "name").stderr == ""
        assert pool.ok("top", "web-00?", "-n", "2", "--interval", "0.1s").stdout.count("NAME") == 2
        assert len(json.loads(pool.ok("top", "-o", "json").stdout)["items"]) == 60


@pytest.mark.integration
def test_without_a_supervisor_top_fails(pool: RealPool) -> None:
    assert pool.run("top").code == 6
    assert pool.run("top", "-n", "0").code == 2
    assert pool.run("top", "--sort", "size").code == 2
