"""The words between pool and runner."""

from __future__ import annotations

import copy
import pickle

import pytest

from poolctl.runners.runner_protocol import Endpoints, Exit, Placement, WorkerFailed, app_state


def test_a_placement_is_named_by_server_generation_and_index() -> None:
    placement = Placement.of("users", 3, 0, where="pid 4242", pid=4242)
    assert (placement.id, placement.pid) == ("users.3.0", 4242)
    assert repr(placement) == "<Placement users.3.0 in pid 4242>"
    assert placement == Placement.of("users", 3, 0, where="pid 4242", pid=4242)
    assert Placement.of("users", 3, 1).where == "this process"
    with pytest.raises(AttributeError):
        placement.pid = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("exit_", "message", "ok"),
    [
        (Exit.from_status(0), "exited with status 0", True),
        (Exit.from_status(3), "exited with status 3", False),
        (Exit.from_status(-9), "killed by SIGKILL", False),
        (Exit.from_signal(15), "killed by SIGTERM", False),
        (Exit.from_signal(63), "killed by signal 63", False),
        (Exit(message="has ended before"), "has ended before", False),
    ],
)
def test_exit_message_names_status_or_signal(exit_: Exit, message: str, ok: bool) -> None:
    assert (exit_.message, exit_.ok) == (message, ok)


def test_failure_keeps_its_reason_when_it_is_copied_or_sent() -> None:
    failure = WorkerFailed("gone", hint="look", exit=Exit.from_status(3))
    for again in (copy.copy(failure), pickle.loads(pickle.dumps(failure))):
        assert (again.message, again.hint, again.exit) == ("gone", "look", Exit.from_status(3))
    assert str(failure) == "gone"


def test_endpoints_compare_by_value_and_state_is_empty_by_default() -> None:
    assert Endpoints("k", ("a", "b")).addresses == ("a", "b")
    assert dict(app_state.get()) == {}
