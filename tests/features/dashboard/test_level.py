"""How well a server does, in one word."""

from __future__ import annotations

import pytest

from poolctl.features.dashboard._state_hub import level


@pytest.mark.parametrize(
    ("state", "ready", "health", "word"),
    [
        ("running", True, "ok", "ok"),
        ("running", True, "unknown", "ok"),
        ("running", True, "warn", "warn"),
        ("running", False, "ko", "ko"),
        ("running", False, "unknown", "busy"),
        ("starting", False, "unknown", "busy"),
        ("draining", False, "ok", "busy"),
        ("sleeping", False, "unknown", "asleep"),
        ("backoff", False, "unknown", "ko"),
        ("failed", False, "ko", "ko"),
        ("stopped", False, "unknown", "off"),
        ("completed", True, "unknown", "ok"),  # a job that has done what it should
        ("disabled", False, "unknown", "off"),
    ],
)
def test_the_level_follows_from_state_readiness_and_health(
    state: str, ready: bool, health: str, word: str
) -> None:
    assert level(state, ready, health) == word
