"""What only a real pool can show: ends of `run`, pools by name, ports that were chosen."""

from __future__ import annotations

import signal

import pytest

from tests.deadline import wait_until
from tests.real_pool import RealPool


@pytest.fixture
def pool(real_pool: RealPool) -> RealPool:
    real_pool.write_hello("users", "orders")
    return real_pool


def test_run_continues_with_ready_servers_and_reports_failed_ones(pool: RealPool) -> None:
    text = (pool.directory / "pool.toml").read_text()
    pool.write("pool.toml", text.replace('app = "hello:app"', 'app = "gone:app"', 1) + 'restart = "no"\n')
    running = pool.spawn("run")
    assert running.stderr is not None
    said = []
    while not said or "Ctrl-C to stop" not in said[-1]:
        said.append(running.stderr.readline())
        assert said[-1], said
    # The failures follow that line, and the logs follow them.
    while not said[-1].startswith("error: users: "):
        said.append(running.stderr.readline())
        assert said[-1], said
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 0
    assert any("1 of 2 servers ready" in line for line in said)


def test_run_without_a_server_that_can_start_exits_with_the_failure(pool: RealPool) -> None:
    (pool.directory / "hello.py").write_text("raise SystemExit(3)\n")
    text = (pool.directory / "pool.toml").read_text()
    pool.write("pool.toml", '[defaults]\nrestart = "no"\n' + text)
    done = pool.run("run")
    assert done.code == 1, str(done)
    assert done.stderr.count("error: ") == 2
    assert pool.processes() == {}


def test_run_with_json_keeps_standard_output_for_the_document(pool: RealPool) -> None:
    done = pool.run("run", "-o", "json", "--", "sh", "-c", "echo mine; exit 4")
    assert done.code == 4
    assert [item["state"] for item in done.json["items"]] == ["stopped", "stopped"]
    assert "mine" in done.stderr
    (pool.directory / "pool.toml").write_text("[[server]]\nname = 3\n")
    invalid = pool.run("run", "-o", "json")
    assert invalid.code == 5
    assert invalid.json["errors"]


@pytest.mark.heavy
def test_a_name_of_two_running_pools_is_a_conflict_and_the_start_of_the_second_warns(
    real_pool: RealPool,
) -> None:
    for name in ("a", "b"):
        real_pool.write_hello("web")
        text = (real_pool.directory / "pool.toml").read_text()
        real_pool.write(f"{name}.toml", '[pool]\nname = "shop"\n' + text)
    first, second = (f"{real_pool.directory}/{name}.toml" for name in ("a", "b"))
    assert real_pool.ok("-c", "a.toml", "start").stderr == ""
    started = real_pool.ok("-c", "b.toml", "start")
    assert f"warning: another pool is also named 'shop': {first}" in started.stderr
    for line in (["stop"], ["list"], ["drain", "--all"]):
        refused = real_pool.run("--pool", "shop", *line)
        assert (refused.code, refused.stdout) == (8, ""), refused
        assert first in refused.stderr
        assert second in refused.stderr
    real_pool.ok("-c", "a.toml", "stop")
    assert real_pool.ok("--pool", "shop", "list", "-o", "name").stdout == "web\n"
    running = real_pool.spawn("-c", "a.toml", "run")
    assert running.stderr is not None
    said = iter(running.stderr.readline, "")
    assert any(f"another pool is also named 'shop': {second}" in line for line in said)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 0


def test_a_pool_without_servers_is_not_started(pool: RealPool) -> None:
    pool.write("pool.toml", '[pool]\nname = "x"\n')
    for command in (["start"], ["restart"], ["run"], ["run", "--", "true"]):
        done = pool.run(*command)
        assert done.code == 5, str(done)
        assert "no server" in done.stderr
        wait_until(lambda: pool.processes() == {})
    assert pool.run("start", "--allow-empty").code == 0
