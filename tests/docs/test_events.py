"""What docs/events.md says is what the pool does."""

from __future__ import annotations

import json
import re
from pathlib import Path

from poolctl.config import EventsTable
from poolctl.monitor.journal import KINDS, JournalEvent
from poolctl.units import format_size

TEXT = (Path(__file__).parents[2] / "docs" / "events.md").read_text()


def test_kinds_are_all_there_are() -> None:
    assert sorted(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == sorted(KINDS), "docs/events.md"


def test_event_has_the_fields_of_every_event() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    event = json.loads(example)
    assert JournalEvent.from_json(event).sentence == "starting → running (restart users)"
    assert {
        "time",
        "schema",
        "seq",
        "kind",
        "event",
        "server",
        "message",
        "cause",
        "by",
        "before",
        "after",
    } <= set(event)


def test_defaults_are_those_of_the_model() -> None:
    events = EventsTable()
    assert f'max_size = "{format_size(events.max_size)}"\nkeep = {events.keep}\n' in TEXT
