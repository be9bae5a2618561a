"""Workers without keeper and supervisor, as a new supervisor takes them over."""

from __future__ import annotations

from typing import Any

from poolctl.config import ServerConfig
from poolctl.runners.local.orphans import Pipes, _Intake


def test_worker_that_claims_anothers_output_leaves_it_to_its_owner() -> None:
    good, bad = (ServerConfig(app="app:app", bind="127.0.0.1:9001", name=name) for name in ("good", "bad"))
    unused: Any = None
    intake = _Intake("", unused, unused, {}, Pipes({"of good": ({"name": "good"}, -1)}))
    assert not intake._is_its_pipe("of good", bad)
    assert intake._is_its_pipe("of good", good)
    assert not intake._is_its_pipe("of good", good), "another worker of the server writes to it"
