"""Events as people read them."""

from __future__ import annotations

from typing import Any

import pytest

from poolctl.monitor.journal import JournalEvent


@pytest.mark.parametrize(("event", "said"), [
    ({"kind": "lifecycle", "event": "starting", "message": "stopped → starting", "cause": "start"},
     "stopped → starting (start)"),
    ({"kind": "lifecycle", "event": "running", "message": "starting → running"}, "starting → running"),
    ({"kind": "lifecycle", "event": "worker ended", "pid": 7, "message": "exited with status 3",
      "cause": "exited with status 3"}, "worker ended (pid 7): exited with status 3"),
    ({"kind": "pool", "event": "output lost", "message": "5 bytes could not be written: it is full",
      "cause": "it is full"}, "output lost: 5 bytes could not be written: it is full"),
    ({"kind": "audit", "event": "stop done", "message": "stop web", "duration_seconds": 0.5},
     "stop web: done after 0.5 s"),
])  # fmt: skip
def test_an_event_is_one_line_that_says_nothing_twice(event: dict[str, Any], said: str) -> None:
    assert JournalEvent.from_json(event).sentence == said
