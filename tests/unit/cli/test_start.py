"""`poolctl start`: what is ready, where it is served, and what failed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.stand_in import always, item

from .conftest import Command, Supervised

RUNNING = [item("users", 8081), item("orders", 8082, pids=[4243])]


def test_start_says_how_many_are_ready(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(*RUNNING)) as requests:
        said = poolctl("start", "--tag", "api", "--timeout", "5s", "--no-deps")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("2 servers ready\n")
    ((verb, body),) = requests
    assert verb == "start"
    assert body["selector"]["tag"] == ["api"]
    # Nobody sees the steps of a command that is no terminal's: they are not asked for.
    assert body["options"] == {"timeout": 5.0, "wait": True, "deps": False, "progress": False}


def test_start_says_where_the_first_ten_servers_are(poolctl: Command, supervised: Supervised) -> None:
    items = [item(f"s{number}", 8000 + number) for number in range(12)]
    items[1]["state"] = items[1]["expose"] = "failed"
    items[2]["expose"] = "http://me:secret@host"
    with supervised(always(*items)):
        said = poolctl("start").out.splitlines()
        assert poolctl("start", "-q").out == ""
        assert "s0  " not in poolctl("start", "-o", "json").out
    assert said[0] == "12 servers ready"
    assert said[1:3] == ["s0   http://127.0.0.1:8000", "s2   http://me:********@host"]
    assert said[-2:] == ["s10  http://127.0.0.1:8010", "and 1 more: poolctl list"]
    with supervised(always(item("job", bind="job:job", expose=""))):
        assert poolctl("start").out == "1 server ready\n"


@pytest.mark.parametrize("state", ["failed", "starting"])
def test_failures_are_listed_with_their_fix_and_the_exit_code(
    poolctl: Command, supervised: Supervised, state: str
) -> None:
    failure = {
        "code": 1323, "error": "ErrorPoolStart", "name": "orders", "bind": "127.0.0.1:8082",
        "message": "exited with status 3 before it was ready", "hint": "poolctl logs orders",
    }  # fmt: skip
    answer = always(item("users"), item("orders", ready=False, state=state), exit_code=1, errors=[failure])
    with supervised(answer):
        said = poolctl("start")
        document = poolctl("start", "-o", "json")
    assert said.code == document.code == 1
    assert said.out == "1 of 2 servers ready\nusers  http://127.0.0.1:8081\n"
    note = "note: poolctl keeps trying to start orders; poolctl stop orders ends that\n"
    assert said.err == (note if state == "starting" else "") + (
        "error: orders: exited with status 3 before it was ready\n  hint: poolctl logs orders\n"
    )
    assert document.json["errors"] == [failure]


@pytest.mark.parametrize("command", ["start", "run"])
@pytest.mark.parametrize("exists", [True, False])
def test_interpreter_that_cannot_run_the_supervisor_is_8_with_its_reason(
    poolctl: Command, directory: Path, monkeypatch: pytest.MonkeyPatch, command: str, exists: bool
) -> None:
    python = directory / "python"
    why = f"{python}: No such file or directory"
    if exists:
        why = "Fatal Python error: init_sys_streams: can't initialize sys standard streams"
        python.write_text(f'#!/bin/sh\necho "{why}" >&2\n')
        python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    said = poolctl(command)
    assert (said.code, said.out) == (8, "")
    assert said.err.startswith(f"error: the supervisor could not start: {why}\n")


@pytest.mark.parametrize(
    ("count", "note"),
    [
        (3, "poolctl keeps trying to start s0, s1, s2; poolctl stop s0 s1 s2 ends that"),
        (4, "poolctl keeps trying to start 4 servers; poolctl stop ends that"),
    ],
)
def test_servers_that_are_tried_again_are_named_up_to_three(
    poolctl: Command, supervised: Supervised, count: int, note: str
) -> None:
    names = [f"s{number}" for number in range(count)]
    items = [item(name, ready=False, state="backoff") for name in names]
    errors = [{"code": 1323, "error": "ErrorPoolStart", "name": name, "message": "gone"} for name in names]
    # A failed server that is not tried again, and one in backoff that this command has not failed to start.
    items += [item("given-up", ready=False, state="failed"), item("other", ready=False, state="backoff")]
    errors.append({"code": 1323, "error": "ErrorPoolStart", "name": "given-up", "message": "gone"})
    with supervised(always(*items, exit_code=1, errors=errors)):
        said = poolctl("start")
    assert (said.code, said.out.splitlines()[0]) == (1, f"0 of {count + 2} servers ready")
    assert said.err.splitlines()[0] == f"note: {note}"


@pytest.mark.parametrize("state", ["running", "starting"])
def test_addresses_of_the_gateway_that_serves_follow_those_of_the_servers(
    poolctl: Command, supervised: Supervised, state: str
) -> None:
    gateway = {"state": state, "addresses": ["http://127.0.0.1:8080", "https://127.0.0.1:8443"]}
    with supervised(always(item("users"), gateway=gateway)):
        lines = poolctl("start").out.splitlines()
    served = "the gateway serves http://127.0.0.1:8080, https://127.0.0.1:8443"
    assert lines[1:] == ["users  http://127.0.0.1:8081", *([served] if state == "running" else [])]
