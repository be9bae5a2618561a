"""The words between pool and runner."""

from __future__ import annotations

import copy
import pickle

import pytest

from poolctl.runners.runner_protocol import Exit, Placement, WorkerFailed


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
        (Exit.from_returncode(0), "exited with status 0", True),
        (Exit.from_returncode(3), "exited with status 3", False),
        (Exit.from_returncode(-9), "killed by SIGKILL", False),
        (Exit.from_signal(15), "killed by SIGTERM", False),
        (Exit.from_signal(63), "killed by signal 63", False),
        (Exit(message="has ended before"), "has ended before", False),
    ],
)
def test_exit_message_names_status_or_signal(exit_: Exit, message: str, ok: bool) -> None:
    assert (exit_.message, exit_.ok) == (message, ok)


def test_failure_keeps_its_reason_when_it_is_copied_or_sent() -> None:
    failure = WorkerFailed("gone", hint="look", exit=Exit.from_returncode(3))
    for again in (copy.copy(failure), pickle.loads(pickle.dumps(failure))):
        assert (again.message, again.hint, again.exit) == ("gone", "look", Exit.from_returncode(3))
    assert str(failure) == "gone"


def test_failure_without_hint_and_exit_says_that_there_are_none() -> None:
    failure = WorkerFailed("gone")
    assert (failure.hint, failure.exit) == ("", None)


def test_exit_before_readiness_is_told_with_the_reason_of_the_worker_if_it_has_one() -> None:
    exit_ = Exit.from_returncode(3)
    assert exit_.message_before_ready("") == "exited with status 3 before it was ready"
    assert (
        exit_.message_before_ready("no module app")
        == "exited with status 3 before it was ready: no module app"
    )


@pytest.mark.parametrize(
    ("status", "number", "expected"),
    [
        (0, None, Exit(status=0, message="exited with status 0")),
        (3, None, Exit(status=3, message="exited with status 3")),
        (None, 9, Exit(signal=9, message="killed by SIGKILL")),
    ],
)
def test_exit_reported_by_the_keeper_is_its_signal_or_its_status(
    status: int | None, number: int | None, expected: Exit
) -> None:
    assert Exit.from_report(status, number) == expected


def test_exit_of_a_process_that_was_not_the_child_of_the_keeper_is_unknown_and_not_ok() -> None:
    exit_ = Exit.from_report(None, None)
    assert (exit_.status, exit_.signal, exit_.ok) == (None, None, False)
    assert "exit status unknown" in exit_.message
