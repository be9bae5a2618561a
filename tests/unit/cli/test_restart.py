"""`poolctl restart`: how many servers were replaced."""

from __future__ import annotations

from tests.stand_in import always, item

from .conftest import Command, Supervised

JOB = {"next_run_at": "2026-11-23T03:00:00Z", "state": "waiting"}
RUN = {
    "started_at": "2026-11-22T03:00:00Z",
    "ended_at": "2026-11-22T03:00:02Z",
    "result": "succeeded",
    "message": "",
}


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
