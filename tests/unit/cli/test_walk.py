from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli.commands.walk import arguments, environment, facts
from tests.deadline import wait_until
from tests.stand_in import server

from .conftest import Command


@pytest.mark.parametrize(
    ("bind", "host", "port"),
    [
        ("127.0.0.1:8081", "127.0.0.1", "8081"),
        ("[::1]:80", "::1", "80"),
        ("unix:/run/a.sock", "", ""),
        ("job:migrate", "", ""),
        ("127.0.0.1:auto", "127.0.0.1", ""),
        ("nonsense", "", ""),
    ],
)
def test_walk_passes_host_and_port(bind: str, host: str, port: str) -> None:
    passed = facts(server("web", bind=bind))
    assert (passed["host"], passed["port"]) == (host, port)


def test_walk_passes_every_fact_of_a_server() -> None:
    passed = environment(server("web", pids=[7, 8], tags=["a", "b"]), {"HOME": "/"})
    assert passed == {
        "HOME": "/",
        "POOLCTL_NAME": "web",
        "POOLCTL_BIND": "127.0.0.1:8081",
        "POOLCTL_HOST": "127.0.0.1",
        "POOLCTL_PORT": "8081",
        "POOLCTL_EXPOSE": "http://127.0.0.1:8081",
        "POOLCTL_STATE": "running",
        "POOLCTL_PID": "7",
        "POOLCTL_PIDS": "7,8",
        "POOLCTL_TAGS": "a,b",
    }
    assert environment(server("web", pids=[]), {})["POOLCTL_PID"] == ""


def test_placeholders_are_replaced_and_other_braces_kept() -> None:
    assert arguments(["{name}-{port}", '{"name": {}}', "{nobody}", "{{pid}}"], server("web")) == [
        "web-8081", '{"name": {}}', "{nobody}", "{4242}",
    ]  # fmt: skip


def test_output_is_grouped_in_the_files_order(poolctl: Command) -> None:
    said = poolctl("walk", "--", "printf", "{name}")
    assert said == (0, "==> users <==\nusers\n==> orders <==\norders\n", "")
    assert poolctl("walk", "-q", "orders", "--", "echo", "{bind}").out == "127.0.0.1:8082\n"


def test_without_a_command_each_server_is_a_line(poolctl: Command) -> None:
    assert poolctl("walk").out == "users\t127.0.0.1:8081\tstopped\norders\t127.0.0.1:8082\tdisabled\n"
    assert poolctl("walk", "--").out == poolctl("walk").out
    assert [i["name"] for i in poolctl("walk", "-o", "json").json["items"]] == ["users", "orders"]


def test_all_are_visited_and_failures_listed_at_the_end(poolctl: Command) -> None:
    said = poolctl("walk", "--jobs", "4", "--", "sh", "-c", "echo to-{name}; echo no >&2; exit 3")
    assert said.code == 1
    assert sorted(line for line in said.out.splitlines() if line.startswith("to-")) == [
        "to-orders",
        "to-users",
    ]
    assert said.err == (
        "error: users: the command exited with 3: no\nerror: orders: the command exited with 3: no\n"
    )


def test_fail_fast_begins_no_other(poolctl: Command) -> None:
    said = poolctl("walk", "--fail-fast", "-o", "json", "--", "sh", "-c", "kill -9 $$")
    assert said.code == 1
    (only,) = said.json["items"]
    assert (only["name"], only["exit_code"]) == ("users", 137)
    assert len(said.json["errors"]) == 1


def test_json_of_walk_holds_each_output(poolctl: Command) -> None:
    said = poolctl("walk", "users", "-o", "json", "--", "sh", "-c", r"printf 'a\377'; echo b >&2")
    (visit,) = said.json["items"]
    assert (visit["exit_code"], visit["stdout"], visit["stderr"]) == (0, "a\\xff", "b\n")


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), ("./plain", 126)])
def test_a_command_that_cannot_run_fails_for_each(
    poolctl: Command, directory: Path, command: str, code: int
) -> None:
    (directory / "plain").touch()
    said = poolctl("walk", "-o", "json", "--", command)
    assert said.code == 1
    assert [visit["exit_code"] for visit in said.json["items"]] == [code, code]
    assert command in poolctl("walk", "--", command).err


@pytest.mark.parametrize("jobs", ["0", "-1", "many", "1001", "²"])
def test_a_number_of_jobs_is_a_number(poolctl: Command, jobs: str) -> None:
    assert poolctl("walk", f"--jobs={jobs}").code == 2


@pytest.mark.parametrize("form", ["table", "json"])
def test_interrupt_of_walk_ends_running_commands(directory: Path, form: str) -> None:
    script = "trap '' INT; echo $$ > pid; exec sleep 60"
    walking = subprocess.Popen(
        [sys.executable, "-m", "poolctl", "walk", "-o", form, "--", "sh", "-c", script],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    pid: Any = wait_until(lambda: (directory / "pid").exists() and (directory / "pid").read_text().strip())
    walking.send_signal(signal.SIGINT)
    out, err = walking.communicate(timeout=60)
    assert walking.returncode == 130
    assert err == "" if form == "table" else "Traceback" not in err
    if form == "json":
        assert json.loads(out)["errors"][0]["error"] == "ErrorInterrupted"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
