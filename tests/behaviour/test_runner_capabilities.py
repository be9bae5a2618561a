"""The daemon's commands over a runner that can only serve: no pids, counters, log files, heartbeats or sleep."""

from __future__ import annotations

import json
from pathlib import Path

from tests.behaviour.pools import Site
from tests.real_pool import RealPool


def test_commands_answer_over_a_runner_that_can_only_serve(
    host: dict[str, str], real_pool: RealPool, tmp_path: Path
) -> None:
    site = Site(tmp_path)
    real_pool.env |= host
    real_pool.write("pool.json", json.dumps({"server": [site.server("web", scale={"min": 0, "idle": 1})]}))
    assert "web: scale.min = 0 has no effect" in real_pool.ok("start").stderr
    assert site.instance("web")
    (item,) = real_pool.ok("list", "-o", "json").json["items"]
    assert (item["state"], item["ready"], item["pids"]) == ("running", True, [])
    (item,) = real_pool.ok("show", "-o", "json").json["items"]
    (worker,) = item["worker_list"]
    assert (worker["pid"], worker["where"]) == (None, f"host {tmp_path / 'host'}")
    assert item["endpoints"] == [f"127.0.0.1:{site.ports['web']}"]
    for command in ("list", "show", "status", "metrics", "top"):
        real_pool.ok(command)
    (row,) = (line for line in real_pool.ok("top").stdout.splitlines() if "web" in line)
    assert " 0% " not in row
    assert "poolctl_requests_total{" not in real_pool.ok("metrics").stdout
    (item,) = real_pool.ok("metrics", "-o", "json").json["items"]
    figures = item["stats"]
    (worker,) = figures["workers"]
    assert (worker["memory_bytes"], worker["cpu_percent"], figures["counted"]) == (None, None, False)
    for unknown in ("memory_bytes", "cpu_percent", "requests_total", "requests_per_second", "responses_total",
                    "errors_total", "disconnects_total", "in_flight", "connections", "connections_total",
                    "websockets", "latency_p99_seconds"):  # fmt: skip
        assert figures[unknown] is None, unknown
    assert (figures["restarts_total"], figures["wakes_total"]) == (0, 0)
    done = real_pool.run("logs", "web")
    assert done.code == 1
    assert "web: its runner keeps no log files on this machine" in done.stderr
    assert f"read its output where it runs (host {tmp_path / 'host'})" in done.stderr
    real_pool.ok("logs", "--reopen")
    real_pool.ok("stop")


def test_start_names_a_runner_that_cannot_be_imported(real_pool: RealPool) -> None:
    real_pool.write_hello()
    real_pool.env["POOLCTL_RUNNER"] = "no.such.runner"
    done = real_pool.run("start")
    assert done.code == 5
    assert "POOLCTL_RUNNER names the runner 'no.such.runner', which cannot be imported" in done.stderr
    assert "unset POOLCTL_RUNNER" in done.stderr
