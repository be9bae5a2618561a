"""When the keeper starts the supervisor again, and as what."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from poolctl.keeper.clients import CALM, SupervisorProcess


def test_pauses_grow_up_to_half_a_minute_and_start_over_after_a_steady_run(tmp_path: Path) -> None:
    process = SupervisorProcess(["/bin/true"], str(tmp_path), 0.0)
    pauses = []
    for _ in range(9):
        process.died(0.0)
        assert process.due is not None
        pauses.append(process.due)
    assert pauses == [0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 30.0]
    process.died(100.0)
    assert process.due == 100.0


def test_the_fifth_death_within_a_minute_asks_for_a_calm_one(tmp_path: Path) -> None:
    process = SupervisorProcess(["/bin/true"], str(tmp_path), 0.0)
    for now in (0.0, 10.0, 20.0, 30.0):
        process.died(now)
    assert not process.calm
    process.died(61.0)  # the first of them is forgotten by now
    assert not process.calm
    process.died(62.0)
    assert process.calm
    process.died(300.0)
    assert not process.calm


def test_calm_supervisor_is_started_with_the_calm_flag(tmp_path: Path) -> None:
    show = f"import sys; open({str(tmp_path / 'said')!r}, 'w').write(' '.join(sys.argv[1:]))"
    process = SupervisorProcess([sys.executable, "-c", show, "file"], str(tmp_path), 0.0)
    for now in range(5):
        process.died(float(now))
    link = process.start(5.0)
    assert link is not None
    link.close()
    os.waitpid(process.pid, 0)
    assert (tmp_path / "said").read_text() == f"file {CALM}"
