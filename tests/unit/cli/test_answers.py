"""The fields of answers that commands make themselves: JSON is the last form of a typed value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.stand_in import always, item

from .conftest import Command, Supervised

SERVER = [
    "name", "bind", "expose", "state", "ready", "health", "pids", "workers", "uptime_seconds", "restarts", "tags",
]  # fmt: skip


def test_status_without_a_supervisor_has_the_summary_of_the_files(poolctl: Command, directory: Path) -> None:
    document = poolctl("status", "-o", "json").json
    assert list(document) == ["schema", "summary", "items", "errors"]
    assert document["summary"] == {
        "files": [str(directory / "pool.toml")], "supervisor_pid": None, "keeper_pid": None, "servers": 2,
        "should_run": 1, "ready": 0, "states": {"stopped": 1, "disabled": 1}, "health": {"unknown": 2},
    }  # fmt: skip


def test_walk_adds_the_exit_code_and_the_output_to_each_server(poolctl: Command) -> None:
    document = poolctl("walk", "users", "-o", "json", "--", "sh", "-c", "echo out; echo err >&2; exit 3").json
    (found,) = document["items"]
    assert list(found) == [*SERVER, "exit_code", "stdout", "stderr"]
    assert (found["exit_code"], found["stdout"], found["stderr"]) == (3, "out\n", "err\n")


def test_pools_describes_each_running_pool(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("a"), item("b", ready=False))):
        (pool,) = poolctl("pools", "-o", "json").json["items"]
    assert list(pool) == [
        "name", "files", "pid", "keeper_pid", "version", "directory", "servers", "ready",
    ]  # fmt: skip
    assert (pool["servers"], pool["ready"]) == (2, 1)


@pytest.mark.parametrize(
    ("args", "fields"),
    [(["version"], ["version", "python", "platform", "supervisor"]), (["doctor", "-q"], [])],
)
def test_extra_fields_stand_next_to_items_and_errors(
    poolctl: Command, args: list[str], fields: list[str]
) -> None:
    document: dict[str, Any] = poolctl(*args, "-o", "json").json
    assert list(document) == ["schema", *fields, "items", "errors"]


def test_doctor_names_check_status_message_and_fix(poolctl: Command) -> None:
    for found in poolctl("doctor", "-o", "json").json["items"]:
        assert list(found) == ["name", "check", "status", "message", "fix", "mend"]
        assert found["mend"] == found["fix"]
        assert bool(found["fix"]) == (found["status"] != "ok")


def test_notify_reports_each_receiver(poolctl: Command, directory: Path) -> None:
    receiver = '\n[[notify]]\ntype = "command"\nname = "{}"\ncommand = ["{}"]\n'
    with (directory / "pool.toml").open("a") as file:
        file.write(receiver.format("good", "true") + receiver.format("bad", "false"))
    document = poolctl("notify", "test", "-o", "json").json
    assert [list(each) for each in document["receivers"]] == [["name", "ok", "message"]] * 2
    assert [each["ok"] for each in document["receivers"]] == [True, False]
    assert document["errors"][0]["message"].startswith("bad: ")
