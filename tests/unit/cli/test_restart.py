"""`poolctl restart`: how many servers were replaced."""

from __future__ import annotations

from typing import Any

import pytest

from tests.stand_in import always, item

from .conftest import Command, Supervised


def test_restart_counts_no_server_as_ready_whose_replacement_failed(
    poolctl: Command, supervised: Supervised
) -> None:
    failure = {"code": 1325, "name": "b", "message": "the replacement exited with status 3", "hint": ""}
    with supervised(always(item("a"), item("b"), exit_code=1, errors=[failure])):
        said = poolctl("restart")
    assert said.out == "1 of 2 servers restarted; b still runs\n"


def test_servers_that_failed_and_run_no_more_are_not_said_to_run(
    poolctl: Command, supervised: Supervised
) -> None:
    failures = [
        {"code": 1325, "name": name, "message": "exited with status 3", "hint": ""} for name in "abcd"
    ]
    servers = [item("a"), item("b"), item("c", ready=False, state="failed"), item("d")]
    with supervised(always(*servers, exit_code=1, errors=failures)):
        assert poolctl("restart").out == "0 of 4 servers restarted; a, b, d still run\n"


def test_job_whose_run_failed_is_not_said_to_run(poolctl: Command, supervised: Supervised) -> None:
    failure = {"code": 1325, "name": "j", "message": "exited with status 3", "hint": ""}
    with supervised(always(item("j", **JOB | {"state": "sleeping"}), exit_code=1, errors=[failure])):
        assert poolctl("restart", "j").out == "0 of 1 server restarted\n"


@pytest.mark.parametrize(
    ("args", "items", "line"),
    [
        (["restart"], [item("a")], "1 server restarted"),
        (
            ["restart"],
            [item("a"), item("b", ready=False, state="draining")],
            "1 server restarted (1 draining)",
        ),
        (["restart", "--no-wait"], [item("a"), item("b")], "2 servers restarting"),
    ],
)
def test_line_counts_the_servers_that_were_replaced(
    poolctl: Command, supervised: Supervised, args: list[str], items: list[dict[str, Any]], line: str
) -> None:
    with supervised(always(*items)):
        assert poolctl(*args).out.splitlines()[0] == line
        assert poolctl(*args, "--quiet").out == ""
        assert poolctl(*args, "-o", "json").json == {"schema": 1, "items": items, "errors": []}


JOB = {"next_run_at": "2026-11-23T03:00:00Z", "state": "waiting"}
RUN = {
    "started_at": "2026-11-22T03:00:00Z",
    "ended_at": "2026-11-22T03:00:02Z",
    "result": "succeeded",
    "message": "",
}


def test_servers_that_start_on_demand_and_were_left_alone_are_not_counted(
    poolctl: Command, supervised: Supervised
) -> None:
    job = item("job", state="completed", on_demand=True)
    tool = item("tool", ready=False, state="stopped", on_demand=True)
    with supervised(always(item("a"), job, tool, unchanged=["job", "tool"])):
        assert poolctl("restart").out == "1 server restarted (2 on demand)\n"
    with supervised(always(item("a"), job, item("used", on_demand=True))):
        assert poolctl("restart").out == "3 servers restarted\n"
    failure = {"code": 1325, "name": "a", "message": "the replacement exited with status 3", "hint": ""}
    with supervised(always(item("a"), tool, unchanged=["tool"], exit_code=1, errors=[failure])):
        assert poolctl("restart").out == "0 of 1 server restarted; a still runs\n"


def test_restart_has_a_line_for_each_job_that_ran(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("a"), item("j", **JOB, last_run=RUN))):
        first, second = poolctl("restart").out.splitlines()
        assert (first, second.startswith("j: ")) == ("1 server restarted", True)
        assert poolctl("restart", "--no-wait").out.splitlines() == ["1 server restarting", "j: runs"]
    with supervised(always(item("j", **JOB))):
        assert poolctl("restart", "j").out == "j: runs\n"
    with supervised(always(item("a"), item("j", **JOB, last_run=RUN), unchanged=["j"])):
        assert poolctl("restart").out.splitlines() == [
            "1 server restarted", "jobs with a schedule were left alone: poolctl restart NAME runs one",
        ]  # fmt: skip


def test_restart_that_failed_for_everything_has_no_line(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(exit_code=1, errors=[{"code": 1, "message": "no"}])):
        assert poolctl("restart") == (1, "", "error: no\n")
