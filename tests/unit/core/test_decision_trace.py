"""The log of decisions: what has changed, what is done about it, or why nothing is."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from poolctl.core.decision_input import Desired, Listener, Phase, View, WorkerView
from poolctl.core.decision_trace import Trace, why_nothing
from tests.unit.core.ordered_core import OrderedCore, run, turns, web

RECOVERY = Path(__file__).parents[3] / "docs" / "recovery.md"


def test_only_the_environment_turns_it_on() -> None:
    assert Trace.configured({}) is None
    assert Trace.configured({"POOLCTL_TRACE": "everything"}) is None
    assert Trace.configured({"POOLCTL_TRACE": "decisions"}) is not None


def test_the_documented_trace_of_a_restart_is_a_real_one(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("api"), trace=Trace())
        await pool.start()
        await turns()
        caplog.clear()
        await pool.restart()
        await turns()

    with caplog.at_level(logging.INFO, "poolctl.supervisor"):
        run(scenario())
    section = RECOVERY.read_text().partition("## Trace decisions")[2]
    assert caplog.messages == section.split("```")[1].strip().splitlines()


def test_decisions_are_not_logged_unless_traced(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        await OrderedCore(web()).start()

    with caplog.at_level(logging.INFO, "poolctl.supervisor"):
        run(scenario())
    assert caplog.messages == []


def test_a_decision_that_repeats_the_last_one_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    view, trace = View(Desired.RUN, 1, listener=Listener.OPENING), Trace()
    with caplog.at_level(logging.INFO, "poolctl.supervisor"):
        trace.decision("web", view, [], withheld=False)
        trace.decision("web", view, [], withheld=False)
        trace.decision("web", replace(view, may_stop=False), [], withheld=True)
    assert caplog.messages == [
        "decision: web: desired run, listener closed -> opening => nothing: its listener is opening",
        "decision: web: may_stop yes -> no => nothing: the supervisor does only what is ordered",
    ]


STARTING = (WorkerView("web.1.0", 1, 0, Phase.STARTING),)
STOPPING = (WorkerView("web.1.0", 1, 0, Phase.STOPPING),)
OPEN = {"listener": Listener.OPEN}
REASONS: list[tuple[View, str]] = [
    (View(Desired.STOPPED, 1), "it is stopped"),
    (View(Desired.STOPPED, 1, workers=STOPPING), "waits for the end of web.1.0"),
    (View(Desired.STOPPED, 1, workers=STARTING, may_stop=False), "what depends on it has to stop first"),
    (View(Desired.BACKOFF, 1), "it is in backoff"),
    (View(Desired.RUN, 1, may_open=False), "its address is in use"),
    (View(Desired.RUN, 1, may_start=False), "what it depends on is not ready"),
    (View(Desired.RUN, 1, listener=Listener.CLOSING), "its listener is closing"),
    (View(Desired.RUN, 1, workers=STARTING, **OPEN), "waits for web.1.0 to become ready"),
    (View(Desired.RUN, 1, may_start=False, **OPEN), "what it depends on is not ready"),
    (View(Desired.RUN, 1, sleepy=True, armed=True, **OPEN), "asleep until the next request"),
    (
        View(Desired.RUN, 2, overlap=False, checking=True, **OPEN),
        "waits until it is known whether a worker can start",
    ),
]


@pytest.mark.parametrize(("view", "reason"), REASONS, ids=[reason for _, reason in REASONS])
def test_trace_gives_the_reason_why_nothing_is_done(view: View, reason: str) -> None:
    assert why_nothing(view) == reason
