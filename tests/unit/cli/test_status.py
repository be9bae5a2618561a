"""`poolctl status`: the state of the pool in a line, its problems, and the exit code."""

from __future__ import annotations

from pathlib import Path

from tests.stand_in import always, item

from .conftest import Command, Supervised


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
