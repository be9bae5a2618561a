"""The line that a command prints for people about what it has done to how many servers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.stand_in import always, item

from .conftest import Command, Supervised

IDLE = {"state": "stopped", "ready": False}
DISABLED = {"state": "disabled", "ready": False}
SLEEPING = item("b", state="sleeping", ready=False)
JOB = item("job", state="completed", on_demand=True)
TOOL = item("tool", **IDLE, on_demand=True)
STOPPED_AND_DISABLED = [item("a", **IDLE), item("b", **DISABLED)]


def failed(*names: str) -> dict[str, Any]:
    error = {"code": 1325, "error": "", "bind": "", "message": "exited with status 3", "hint": ""}
    return {"exit_code": 1, "errors": [{**error, "name": name} for name in names]}


@pytest.mark.parametrize(
    ("words", "items", "more", "line"),
    [
        ("wait", [item("a")], {}, "1 server ready"),
        ("wait --for healthy", [item("a"), item("b")], {}, "2 servers healthy"),
        ("wait", [item("a"), SLEEPING], {}, "1 server ready (1 sleeping)"),
        ("wait --for sleeping", [SLEEPING], {}, "1 server sleeping"),
        ("restart", [item("a")], {}, "1 server restarted"),
        ("restart", [item("a"), item("b", ready=False, state="draining")], {}, "1 server restarted (1 draining)"),
        ("restart --no-wait", [item("a"), item("b")], {}, "2 servers restarting"),
        ("restart", [item("a"), JOB, TOOL], {"unchanged": ["job", "tool"]}, "1 server restarted (2 on demand)"),
        ("restart", [item("a"), JOB, item("used", on_demand=True)], {}, "3 servers restarted"),
        ("restart", [item("a"), item("b")], failed("b"), "1 of 2 servers restarted; b still runs"),
        ("restart", [item("a"), TOOL], failed("a") | {"unchanged": ["tool"]}, "0 of 1 server restarted; a still runs"),
        ("restart", [item("a"), item("b"), item("c", ready=False, state="failed"), item("d")], failed(*"abcd"),
         "0 of 4 servers restarted; a, b, d still run"),
        ("restart j", [item("j", state="sleeping", next_run_at="2026-11-23T03:00:00Z")], failed("j"),
         "0 of 1 server restarted"),
        ("start", [item("a"), item("b", ready=False, state="failed")], {}, "1 of 2 servers ready"),
        ("start", [item("a"), item("b", **DISABLED)], {}, "1 server ready (1 disabled)"),
        ("start --no-wait", [item("a"), item("b", ready=False)], {}, "2 servers starting, 1 ready"),
        ("start --tag x --allow-empty", [], {}, "no server selected"),
        ("stop", [item("a", **IDLE)], {}, "1 server stopped: a"),
        ("stop", [item("a", state="stopped"), item("b", state="stopping")], {}, "1 of 2 servers stopped: a"),
        ("stop --no-wait", [item("a", state="stopping")], {}, "1 server stopping: a"),
        ("stop", [item(f"s{at}", **IDLE) for at in range(6)], {}, "6 servers stopped: s0, s1, s2, s3, s4 and 1 more"),
        ("stop", STOPPED_AND_DISABLED, {"unchanged": ["b"]}, "1 server stopped: a"),
        ("stop --no-wait", STOPPED_AND_DISABLED, {"unchanged": ["b"]}, "1 server stopping: a"),
        ("stop a b", STOPPED_AND_DISABLED, {"unchanged": ["a", "b"]}, "nothing was running"),
        ("stop", STOPPED_AND_DISABLED, {"unchanged": ["a", "b"], "ended": True},
         "no server was running: the supervisor has ended"),
        ("stop a b", STOPPED_AND_DISABLED, {"unchanged": ["a", "b"], "dependents": ["w"]},
         "0 servers stopped, and 1 that depends on them: w"),
        ("stop a", [item("a", **IDLE)], {"dependents": ["w"]}, "1 server stopped, and 1 that depends on it: a, w"),
        ("stop a --no-wait", [item("a", state="stopping")], {"dependents": ["w"]},
         "1 server stopping, and 1 that depends on it: a, w"),
        ("scale web 3", [item("web", workers=3)], {}, "1 server scaled to 3 workers"),
        ("scale --all 1", [item("a"), item("b")], {}, "2 servers scaled to 1 worker"),
        ("scale --all 2", [item("a", workers=2), item("b")], {}, "1 of 2 servers scaled to 2 workers"),
        ("drain a", [item("a", state="draining", ready=False)], {}, "1 server out of rotation"),
        ("drain --all", [item("a", state="draining"), item("b")], {}, "1 of 2 servers out of rotation"),
        ("undrain --all", [item("a")], {}, "1 server in rotation"),
        ("undrain --all", [item("a"), item("b", ready=False)], {}, "1 of 2 servers in rotation"),
        ("disable --all", [item("a", state="disabled"), item("b")], {}, "1 of 2 servers disabled"),
        ("disable a", [item("a", **DISABLED)], {}, "1 server disabled"),
        ("disable a", [item("a", **DISABLED)], {"dependents": ["v", "w"]},
         "1 server disabled, and 2 that depend on it stopped"),
        ("disable --tag x --allow-empty", [], {}, "no server selected"),
        ("remove a", [item("a", state="stopped")], {}, "removed a 127.0.0.1:8081"),
        ("enable a", [item("a")], {}, "1 server enabled, 1 ready"),
        ("enable a", [item("a")], {"dependents": ["w"]}, "1 server enabled, 1 ready, and 1 that depends on it started"),
        ("enable --all", [item("db"), item("web")], {"dependents": ["web"]},
         "1 server enabled, 1 ready, and 1 that depends on it started"),
        ("enable --all", [item("a")], {"unchanged": ["a"]}, "1 server enabled already"),
        ("enable --all", [item("job", state="completed")], {"unchanged": ["job"]}, "1 server enabled already"),
        ("enable --all", [item("a", **IDLE)], {"unchanged": ["a"]},
         "a is enabled already, and stopped: `poolctl start a` starts it"),
        ("enable --all", [item("a", **IDLE | {"state": "failed"})], {"unchanged": ["a"]},
         "a is enabled already, and failed: `poolctl start a` starts it"),
        ("enable --all", [item("a"), item("b", **IDLE), item("c", **IDLE), item("d")], {"unchanged": [*"bcd"]},
         ("1 server enabled, 1 ready\n1 server enabled already\n"
          "2 servers enabled already, and not running: `poolctl start b c` starts them")),
        ("enable --all", [item(f"s{at}", **IDLE) for at in range(11)], {"unchanged": [f"s{at}" for at in range(11)]},
         "11 servers enabled already, and not running: `poolctl start NAME...` starts them"),
    ],
)  # fmt: skip
def test_line_counts_the_servers_that_the_command_changed(
    poolctl: Command, supervised: Supervised, words: str, items: list[Any], more: dict[str, Any], line: str
) -> None:
    with supervised(always(*items, **more)) as requests:
        said = poolctl(*words.split())
        assert poolctl(*words.split(), "--quiet").out == ""
        document = poolctl(*words.split(), "-o", "json").json
    assert said.code == more.get("exit_code", 0)
    assert said.out.startswith(f"{line}\n")
    assert document == {"schema": 1, "items": items, "errors": more.get("errors", [])}
    assert {verb for verb, _ in requests} == {words.split()[0]}
