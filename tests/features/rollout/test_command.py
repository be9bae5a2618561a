"""`poolctl rollout`: how it ends is said once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.stand_in import always
from tests.unit.cli.conftest import Command, Supervised

FIGURES: dict[str, Any] = {"requests": 9, "errors": 1, "latency_p99_seconds": None, "memory_bytes": None}
REPORT: dict[str, Any] = {
    "name": "web", "state": "withdrawn", "reason": "errors > 1%: 3.1 %", "canary": FIGURES, "before": FIGURES,
}  # fmt: skip
ERROR = {"code": 1, "error": "ErrorPoolRestart", "name": "web", "message": "withdrawn: errors > 1%: 3.1 %"}


@pytest.mark.parametrize(
    ("state", "errors", "code"), [("withdrawn", [ERROR], 1), ("withdrawn", [], 0), ("promoted", [], 0)]
)
def test_end_of_a_rollout_is_printed_once(
    poolctl: Command, supervised: Supervised, state: str, errors: list[dict[str, Any]], code: int
) -> None:
    with supervised(always(REPORT | {"state": state}, errors=errors, exit_code=code)):
        said = poolctl("rollout", "web")
    assert said.code == code
    assert (said.out + said.err).count(REPORT["reason"]) == 1


def test_options_of_a_new_rollout_are_sent(poolctl: Command, supervised: Supervised) -> None:
    running = REPORT | {
        "state": "running",
        "share": 0.125,
        "elapsed_seconds": 3.4,
        "for_seconds": 90.0,
        "is_over": False,
    }
    with supervised(always(running)) as requests:
        words = "rollout web --canary 12.5% --promote-after 90s --min-requests 7 --pause --no-wait"
        said = poolctl(*words.split(), "--abort-on", "errors > 1%", "--abort-on", "p99 > 50ms")
        poolctl("rollout", "web", "--canary", "0.5", "--allow-larger-share")
    assert "web: running, 12.5 % of the traffic" in said.out
    (verb, first), (_, second) = requests
    assert verb == "rollout"
    assert first["selector"]["targets"] == ["web"]
    sent = {
        key: first["options"].get(key)
        for key in ("op", "wait", "pause", "force", "share", "seconds", "min_requests")
    }
    assert sent == {
        "op": "begin", "wait": False, "pause": True, "force": False, "share": 0.125, "seconds": 90, "min_requests": 7,
    }  # fmt: skip
    assert first["options"]["abort_on"] == ["errors > 1%", "p99 > 50ms"]
    assert (second["options"]["share"], second["options"]["force"], second["options"]["wait"]) == (
        0.5,
        True,
        True,
    )
    assert not {"seconds", "min_requests", "abort_on"} & second["options"].keys()


@pytest.mark.parametrize("action", ["promote", "abort", "pause", "resume"])
def test_action_names_the_servers_of_rollouts(poolctl: Command, supervised: Supervised, action: str) -> None:
    with supervised(always(REPORT)) as requests:
        poolctl("rollout", action, "web", "db")
    ((_, body),) = requests
    assert (body["options"]["op"], body["selector"]["targets"]) == (action, ["web", "db"])
    assert not {"share", "force", "pause"} & body["options"].keys()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("rollout", "which server?"),
        ("rollout web db", "which server?"),
        ("rollout web --canary much", "--canary: 'much' is not a share"),
        ("rollout web --canary many%", "--canary: 'many%' is not a share"),
        ("rollout web --min-requests 1.5", "--min-requests: '1.5' is not a number of requests"),
        ("rollout web --min-requests 1234567890", "is not a number of requests"),
        ("rollout web --promote-after soon", "--promote-after"),
        ("rollout promote web --canary 5%", "rollout promote takes no option of a new rollout"),
    ],
)
def test_wrong_command_line_is_refused(poolctl: Command, words: str, problem: str) -> None:
    said = poolctl(*words.split())
    assert (said.code, problem in said.err) == (2, True), said


def test_status_is_a_table_of_both_groups(poolctl: Command, supervised: Supervised) -> None:
    canary = {"requests": 9, "errors": 1, "latency_p99_seconds": 0.0125, "memory_bytes": 2 * 1024 * 1024}
    report = REPORT | {"share": 0.1, "elapsed_seconds": 3.4, "for_seconds": 90.0, "canary": canary}
    with supervised(always(report)) as requests:
        said = poolctl("rollout", "status")
    ((verb, body),) = requests
    assert (verb, body["selector"]["targets"]) == ("rollouts", [])
    for cell in ("10 %", "3 of 90 s", "9 / 9", "1 / 1", "12.5 ms / -", "2MiB / -"):
        assert cell in said.out, said.out
