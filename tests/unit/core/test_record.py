"""What the next supervisor must know of a server is declared with each field."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from poolctl.config import ServerConfig
from poolctl.core.decision_input import Desired, Overrides
from poolctl.core.server_entry import (
    DesiredState,
    Entry,
    HookState,
    ObservedState,
    ScheduleState,
    ServerListener,
    record_of,
    restore,
)
from poolctl.errors import ServerError

VALUES = (DesiredState, ObservedState, ServerListener, ScheduleState, HookState)


def entry() -> Entry:
    return Entry(ServerConfig(name="web", bind=":1", app="a:b"))


def value_with(entry: Entry, name: str) -> Any:
    """The value of the entry that has the field."""
    values = (entry.desired, entry.observed, entry.listener, entry.schedule, entry.hooks)
    return next(each for each in values if hasattr(each, name))


def test_every_field_of_an_entrys_values_says_whether_it_is_persisted() -> None:
    undeclared = [each.name for kind in VALUES for each in fields(kind) if "persisted" not in each.metadata]
    assert undeclared == [], "declare them with persisted() or transient()"


def test_the_record_of_a_new_entry_is_empty() -> None:
    assert record_of(entry()) == {}


def test_every_persisted_field_is_restored() -> None:
    values: dict[str, Any] = {
        "source": ({"name": "web"}, "/srv"), "ignore_dependencies": True, "generation": 3, "newest": 4,
        "code_since": 1.5, "preload_problem": "it opened a thread", "files": {"tls": "12ab"},
        "certificate_ends": 2.5, "called": True, "restart_times": [1.0], "restarts": 2, "restarting": 3,
        "recoveries": {"0": [3.0]}, "recovering": {"step": "restart"}, "automatic": 4, "canary_generation": 5,
        "stopped_with": ["db"], "canary_share": 0.1, "socket_found": "program", "before_start_due": True,
        "after_stop_due": True,
        "next_run": 5.5, "run_since": 6.5, "last_run": {"result": "failed"},
    }  # fmt: skip
    before, after = entry(), entry()
    for name, value in values.items():
        setattr(value_with(before, name), name, value)
    before.desired.state, before.desired.overrides = (
        Desired.FAILED,
        Overrides(workers=3, disabled=False, out=True),
    )
    before.observed.failure = ServerError(
        "exited with status 1: Error: no settings", name="web", hint="poolctl logs web"
    )
    restore(after, json.loads(json.dumps(record_of(before))))
    persisted = {each.name for kind in VALUES for each in fields(kind) if each.metadata["persisted"]}
    assert persisted == {*values, "state", "overrides", "failure"}
    assert [getattr(value_with(after, name), name) for name in values if name != "source"] == [
        value for name, value in values.items() if name != "source"
    ]
    assert (after.desired.source, after.desired.state, after.desired.overrides) == (
        [{"name": "web"}, "/srv"], before.desired.state, before.desired.overrides,
    )  # fmt: skip
    assert after.observed.failure is not None
    assert after.observed.failure.to_dict() == before.observed.failure.to_dict()


@pytest.mark.parametrize("desired", [Desired.BACKOFF, Desired.REFUSING])
def test_a_successor_does_not_wait_for_the_end_of_a_backoff(desired: Desired) -> None:
    server = entry()
    server.desired.state = desired
    assert record_of(server) == {"desired": "run"}
