"""`poolctl rollout`: how it ends is said once."""

from __future__ import annotations

from typing import Any

import pytest

from poolctl.cli.command_line import current_spellings
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


@pytest.mark.parametrize(
    ("typed", "now"),
    [
        ("rollout web --for 5m", "rollout web --promote-after 5m"),
        ("rollout web --for=5m --force", "rollout web --promote-after=5m --allow-larger-share"),
        ("-q -c rollout rollout --force", "-q -c rollout rollout --allow-larger-share"),
    ],
)
def test_old_spelling_is_the_new_one_with_a_note(typed: str, now: str) -> None:
    words, notes = current_spellings(typed.split())
    assert " ".join(words) == now
    assert all("the next release does not accept" in note for note in notes)
