"""`poolctl status`: the state of the pool in a line, its problems, and the exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.stand_in import Send, always, item, result

from .conftest import Command, Leave, Supervised


def test_status_is_3_without_a_supervisor(poolctl: Command, directory: Path) -> None:
    assert poolctl("status") == (3, "no supervisor is running, 2 servers stopped\n", "")
    summary = poolctl("status", "-o", "json").json["summary"]
    assert summary == {
        "files": [str(directory / "pool.toml")], "supervisor_pid": None, "keeper_pid": None,
        "servers": 2, "should_run": 1, "ready": 0,
        "states": {"stopped": 1, "disabled": 1}, "health": {"unknown": 2},
    }  # fmt: skip
    (directory / "pool.toml").write_text("broken [")
    assert poolctl("status").code == 5


def test_status_names_servers_that_are_not_ready(poolctl: Command, supervised: Supervised) -> None:
    items = [item("a"), item("bb", ready=False, state="backoff"), item("c", ready=False, state="stopped")]
    states = {"running": 1, "backoff": 1, "stopped": 1}
    summary = {"name": "shop", "should_run": 2, "states": states}
    with supervised(always(*items, exit_code=3, summary=summary)):
        said = poolctl("status")
        document = poolctl("status", "-o", "json").json
    assert said == (3, "shop: 1 of 2 servers ready, 1 stopped, up 12s\n  bb  backoff\n", "")
    assert document["summary"]["should_run"] == 2
    assert document["summary"]["states"] == states


def test_status_names_programs_that_have_ended_by_themselves(
    poolctl: Command, supervised: Supervised
) -> None:
    stopped = {"ready": False, "state": "stopped", "uptime_seconds": 0.0}
    ended = {**stopped, "ended": {"status": 0, "signal": None, "at": "2026-11-29T03:00:00Z"}}
    items = [item("a", **stopped), item("work", **ended), item("tool", **ended, on_demand=True)]
    with supervised(always(*items, exit_code=3, summary={"states": {"stopped": 3}})):
        said = poolctl("status")
    line = '  work  ended with status 0; restart = "always" restarts it\n'
    assert said == (3, f"0 servers ready, 1 stopped, 2 ended\n{line}", "")


SUMMARY = {"name": "shop", "should_run": 1, "states": {"running": 1}}


@pytest.mark.parametrize(
    ("answer", "code"), [({"exit_code": 0}, 0), ({"exit_code": 3}, 1), ({"exit_code": 4}, 1)]
)
def test_health_check_exits_with_0_or_1(
    poolctl: Command, supervised: Supervised, answer: dict[str, Any], code: int
) -> None:
    with supervised(always(item("a"), summary=SUMMARY, **answer)):
        assert poolctl("status", "--healthcheck").code == code
        assert poolctl("status").code == answer["exit_code"]


def test_health_check_of_a_broken_pool_is_1(poolctl: Command, directory: Path) -> None:
    assert poolctl("status", "--healthcheck").code == 1
    (directory / "pool.toml").write_text("broken [")
    assert poolctl("status", "--healthcheck").code == 1


def test_status_of_a_supervisor_that_sends_no_summary(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("a"))):
        assert poolctl("status", "-o", "json").json["summary"] == {"servers": 0, "ready": 0, "states": {}}


def test_status_warns_of_what_the_summary_says(poolctl: Command, supervised: Supervised) -> None:
    more = {"calm": True, "not_served": ["metrics cannot be served"]}
    with supervised(always(item("a"), summary=SUMMARY | more)):
        said = poolctl("status")
    lines = said.err.splitlines()
    assert lines[0].startswith("warning: the supervisor crashed five times")
    assert lines[1:] == ["warning: metrics cannot be served"]
    with supervised(always(item("a"), summary=SUMMARY)):
        assert poolctl("status").err == ""


def test_status_counts_servers_at_rest_apart(poolctl: Command, supervised: Supervised) -> None:
    items = [
        item("a", uptime_seconds=0), item("b", ready=False, state="sleeping", uptime_seconds=0),
        item("c", ready=False, state="disabled", uptime_seconds=0),
        item("job", ready=True, state="stopped", uptime_seconds=0),
    ]  # fmt: skip
    with supervised(always(*items, summary={"states": {}})):
        assert poolctl("status").out == "2 servers ready, 1 disabled, 1 sleeping\n"


def test_verbose_status_names_the_pools_own_processes(poolctl: Command, supervised: Supervised) -> None:
    processes = [
        {"name": "keeper", "pid": 7, "memory_bytes": 3 << 20},
        {"name": "dashboard", "pid": 4711, "memory_bytes": None},
    ]
    with supervised(always(item("a"), summary=SUMMARY | {"processes": processes})):
        assert poolctl("status", "-v").out.splitlines()[1:] == [
            "    keeper     pid 7     3MiB", "    dashboard  pid 4711  -",
        ]  # fmt: skip
        assert "keeper" not in poolctl("status").out
        assert poolctl("status", "-o", "json").json["summary"]["processes"] == processes


def test_verbose_status_has_the_stacks_of_servers_that_are_not_ready(
    poolctl: Command, supervised: Supervised
) -> None:
    stacks = {"name": "b", "worker": "b.1.0", "pid": 7, "source": "python", "threads": [], "tasks": []}
    items = [item("a"), item("b", ready=False, state="starting"), item("c", ready=False, state="stopped")]
    shown = [{**each, "stacks": stacks, "config": {}} for each in items]
    verbs = []

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        verbs.append(verb)
        return result(*(shown if verb == "show" else items), summary=SUMMARY, exit_code=0)

    with supervised(answer):
        lines = poolctl("status", "--verbose").out.splitlines()
        assert sum("worker b.1.0 (pid 7)" in line for line in lines) == 1
        assert lines[-1].startswith("    ")
        assert verbs == ["status", "show"]
        assert "worker" not in poolctl("status").out
        items[1]["ready"] = True
        assert "worker" not in poolctl("status", "--verbose").out
    assert verbs == ["status", "show", "status", "status"]


def test_status_names_what_is_left_of_a_killed_pool(poolctl: Command, leave: Leave) -> None:
    leave("users", server="users")
    left = "1 process of a killed pool was left over: users"
    assert poolctl("status") == (3, f"no supervisor is running, {left}; `poolctl stop` ends them\n", "")
