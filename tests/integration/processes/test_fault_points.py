"""Between any two messages of the supervisor it, or its keeper, may be killed: a few such points of every command.

`python -m tests.chaos.faults` tries them all.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.faults import Faults, lifecycle, successors, waits_to_be_a_worker
from tests.processes import is_alive
from tests.real_pool import RealPool


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[Faults]:
    runtime = Path(tempfile.mkdtemp(prefix="pf-"))
    made = Faults(tmp_path, runtime)
    try:
        yield made
    finally:
        made.pool.end()
        shutil.rmtree(runtime, ignore_errors=True)


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "number"),
    [
        ("self", 5),
        *(
            pytest.param(*each, marks=pytest.mark.heavy)
            for each in (("self", 23), ("parent", 9), ("parent", 23))
        ),
    ],
)
def test_command_succeeds_when_repeated_after_any_process_was_killed(
    faults: Faults, victim: str, number: int
) -> None:
    assert lifecycle(faults, victim, number), "no command has so many messages"


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 9, *(pytest.param(each, marks=pytest.mark.heavy) for each in (4, 14))])
def test_pool_begins_again_after_a_supervisor_that_was_killed_while_it_filled_another_keeper(
    faults: Faults, until: Any, number: int
) -> None:
    pool = faults.pool
    pool.ok("start")
    before, info = pool.items(), pool.info()
    faults.fuse.write_text(f"self {number}")
    os.kill(info["keeper_pid"], signal.SIGKILL)
    until(lambda: not is_alive(info["supervisor_pid"]))
    assert not faults.fuse.exists(), "it had not so much to give"
    pool.ok("start")
    faults.check_serving("always", "a", "b")
    after = pool.items()
    alive = {pid for item in before.values() for pid in item["pids"] if is_alive(pid)}
    assert alive <= {pid for item in after.values() for pid in item["pids"]}, "all others were ended"
    os.kill(after["a"]["pids"][0], signal.SIGKILL)
    until(lambda: pool.items()["a"]["restarts"] == 1 and pool.items()["a"]["ready"])
    pool.ok("stop")
    faults.check_gone()


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.parametrize("number", [5, pytest.param(2, marks=pytest.mark.heavy)])
def test_supervisors_that_are_killed_one_after_the_other_lose_no_server(faults: Faults, number: int) -> None:
    assert successors(faults, number), "they begin with fewer messages"


def lasting(pool: RealPool) -> list[int]:
    """The pids of its processes, without the one that reads files for a while and children of zygotes that wait."""
    processes = pool.processes()
    return [pid for pid in processes if not waits_to_be_a_worker(pid, processes)]


@pytest.mark.slow
def test_a_server_whose_adding_died_with_the_supervisor_is_added_or_gone(
    faults: Faults, until: Any, free_port: Any
) -> None:
    pool = faults.pool
    pool.ok("start")
    known = lasting(pool)
    adding = ("add", "extra", "--bind", f"127.0.0.1:{free_port()}", "--app", "hello:app")
    for number in (4, 5, 6):  # its worker is forked, noted, ready
        faults.fuse.write_text(f"self {number}")
        assert pool.run(*adding).code == 8
        assert not faults.fuse.exists()
        faults.check_serving("always", "a", "b")
        if "extra" in pool.items():  # it was recorded already
            pool.ok("remove", "extra")
        until(lambda: len(lasting(pool)) == len(known), what=lambda: str(pool.processes()))
    pool.ok(*adding)
    pool.ok("stop")
    faults.check_gone()
