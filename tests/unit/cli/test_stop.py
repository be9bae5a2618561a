"""`poolctl stop`: what was stopped, and the end of a pool without a supervisor."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.stand_in import Send, always, item, result

from .conftest import Command, Supervised


def test_stop_names_the_first_of_many(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(*(item(f"s{at}", state="stopped", ready=False) for at in range(6)))):
        assert poolctl("stop").out == "6 servers stopped: s0, s1, s2, s3, s4 and 1 more\n"


@pytest.mark.parametrize(
    ("args", "unchanged", "more", "line"),
    [
        (["stop"], ["b"], {}, "1 server stopped: a"),
        (["stop", "--no-wait"], ["b"], {}, "1 server stopping: a"),
        (["stop", "a", "b"], ["a", "b"], {}, "nothing was running"),
        (["stop"], ["a", "b"], {"ended": True}, "no server was running: the supervisor has ended"),
        (
            ["stop", "a", "b"],
            ["a", "b"],
            {"dependents": ["w"]},
            "0 servers stopped, and 1 that depends on them: w",
        ),
    ],
)
def test_stop_counts_only_what_ran(
    poolctl: Command,
    supervised: Supervised,
    args: list[str],
    unchanged: list[str],
    more: dict[str, Any],
    line: str,
) -> None:
    items = [item("a", state="stopped", ready=False), item("b", state="disabled", ready=False)]
    with supervised(always(*items, unchanged=unchanged, **more)):
        assert poolctl(*args).out == f"{line}\n"
        assert poolctl(*args, "-o", "json").json == {"schema": 1, "items": items, "errors": []}


def test_warnings_on_the_way_are_said_once(poolctl: Command, supervised: Supervised) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        send({"warning": "stopping web as well"})
        return result(item("a", state="stopped"), warnings=["stopping web as well", "a: had to be killed"])

    with supervised(answer):
        said = poolctl("stop", "a")
    assert said.err == "warning: stopping web as well\nwarning: a: had to be killed\n"


def test_stop_waits_until_the_last_process_is_gone(poolctl: Command, supervised: Supervised) -> None:
    last = subprocess.Popen(["sleep", "0.3"])

    with supervised(always(item("a", state="stopped"), ended=True, keeper_pid=last.pid)):
        assert poolctl("stop").code == 0
    assert last.poll() == 0 or last.wait(0.1) == 0


def test_nothing_to_stop_is_no_failure(poolctl: Command, directory: Path) -> None:
    assert poolctl("stop") == (0, "nothing is running\n", "")
    assert poolctl("stop", "users").code == 0
    assert poolctl("stop", "usres").code == 4
    (directory / "pool.toml").write_text("broken [")
    assert poolctl("stop").code == 0
    (directory / "pool.toml").unlink()
    assert poolctl("stop").code == 5
    assert poolctl("--pool", "nobody", "stop").code == 6


@pytest.mark.parametrize(
    ("args", "items", "line"),
    [
        (["stop"], [item("a", state="stopped", ready=False)], "1 server stopped: a"),
        (["stop"], [item("a", state="stopped"), item("b", state="stopping")], "1 of 2 servers stopped: a"),
        (["stop", "--no-wait"], [item("a", state="stopping")], "1 server stopping: a"),
    ],
)
def test_line_counts_and_names_the_servers_that_were_stopped(
    poolctl: Command, supervised: Supervised, args: list[str], items: list[dict[str, Any]], line: str
) -> None:
    with supervised(always(*items)):
        assert poolctl(*args).out.splitlines()[0] == line
        assert poolctl(*args, "--quiet").out == ""
        assert poolctl(*args, "-o", "json").json == {"schema": 1, "items": items, "errors": []}


@pytest.mark.parametrize(
    ("args", "state", "dependents", "line"),
    [
        (["stop", "a"], "stopped", ["w"], "1 server stopped, and 1 that depends on it: a, w"),
        (["stop", "a", "--no-wait"], "stopping", ["w"], "1 server stopping, and 1 that depends on it: a, w"),
    ],
)
def test_dependents_of_the_selected_servers_are_counted_apart(
    poolctl: Command, supervised: Supervised, args: list[str], state: str, dependents: list[str], line: str
) -> None:
    items = [item("a", state=state, ready=state == "running")]
    with supervised(always(*items, dependents=dependents)):
        assert poolctl(*args).out == f"{line}\n"
        assert poolctl(*args, "-o", "json").json == {"schema": 1, "items": items, "errors": []}
