"""How many descriptors a running server costs its pool, and that none is left open."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.deadline import wait_until
from tests.integration.processes.test_keeper_killed import whole_again
from tests.processes import descriptors
from tests.real_pool import RealPool

Until = Callable[..., Any]
NAMES = [f"s{number}" for number in range(5)]
MAX = 6


def held(pool: RealPool) -> dict[str, int]:
    """How many descriptors the supervisor and the keeper have, once nothing is going on there."""
    info = pool.info()
    found: list[dict[str, int]] = []

    def settled() -> bool:
        found.append({role: len(descriptors(info[role])) for role in ("supervisor_pid", "keeper_pid")})
        return len(found) > 5 and all(each == found[-1] for each in found[-5:])

    wait_until(settled)
    return found[-1]


def cost(pool: RealPool) -> dict[str, float]:
    """Of one running server in each of them: what is closed when the others are stopped."""
    before = held(pool)
    pool.ok("stop", *NAMES[1:])
    wait_until(lambda: held(pool)["supervisor_pid"] <= before["supervisor_pid"] - len(NAMES) + 1)
    after = held(pool)
    pool.ok("start", *NAMES[1:])
    return {role: (count - after[role]) / (len(NAMES) - 1) for role, count in before.items()}


def test_running_server_costs_six_descriptors_in_supervisor_and_keeper(pool: RealPool) -> None:
    pool.write_hello(*NAMES)
    pool.ok("start")
    # Once more on a busy machine, where something may begin between the two counts.
    wait_until(lambda: max(cost(pool).values()) <= MAX)


def test_running_server_costs_no_more_after_either_of_them_was_killed(pool: RealPool, until: Until) -> None:
    pool.write_hello(*NAMES)
    pool.ok("start")
    for role, most_in_keeper in (("supervisor_pid", MAX), ("keeper_pid", MAX + 1)):
        killed = pool.info()[role]
        os.kill(killed, signal.SIGKILL)
        if role == "keeper_pid":
            whole_again(pool, until, killed)
        until(lambda killed=killed, role=role: pool.info()[role] != killed)
        assert set(pool.items()) == set(NAMES)

        def fits(most_in_keeper: int = most_in_keeper) -> bool:
            each = cost(pool)
            # A new keeper is not the parent of the workers that it was given: it has a pidfd of each.
            return each["supervisor_pid"] <= MAX and each["keeper_pid"] <= most_in_keeper

        until(fits)  # once more on a busy machine, as above


@pytest.mark.capability
def test_no_process_of_the_pool_leaves_a_descriptor_open(real_pool: RealPool, until: Until) -> None:
    real_pool.env["PYTHONDEVMODE"] = "1"  # which reports what a process leaves open
    real_pool.write_hello("web")
    real_pool.ok("start")
    real_pool.ok("restart")
    real_pool.ok("reload")
    real_pool.ok("stop")
    until(lambda: not real_pool.processes())
    # The end of a pool removes those that are empty.
    logs = {path.name: path.read_text(errors="replace") for path in real_pool.runtime.glob("*/*.log")}
    assert [name for name, text in logs.items() if "ResourceWarning" in text] == []
