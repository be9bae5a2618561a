"""Between any two messages of the supervisor it, or its keeper, may be killed: a few such points of every command.

`python -m tests.chaos.faults` tries them all.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.chaos.faults import Faults, lifecycle


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number"), [("self", 9), ("self", 23), ("parent", 9), ("parent", 23)])
def test_whoever_is_killed_the_command_can_be_repeated_and_all_is_well(
    tmp_path: Path, victim: str, number: int
) -> None:
    runtime = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp"))
    faults = Faults(tmp_path, runtime)
    try:
        assert lifecycle(faults, victim, number), "no command has so many messages"
    finally:
        faults.pool.end()
        shutil.rmtree(runtime, ignore_errors=True)
