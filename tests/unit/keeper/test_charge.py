"""When the keeper starts the supervisor again, and as what."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from poolctl.keeper.charge import CALM, Charge


def test_pauses_grow_up_to_half_a_minute_and_begin_anew_after_a_steady_one(tmp_path: Path) -> None:
    charge = Charge(["/bin/true"], str(tmp_path), 0.0)
    pauses = []
    for _ in range(9):
        charge.died(0.0)
        assert charge.due is not None
        pauses.append(charge.due)
    assert pauses == [0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 30.0]
    charge.died(100.0)
    assert charge.due == 100.0


def test_the_fifth_death_within_a_minute_asks_for_a_calm_one(tmp_path: Path) -> None:
    charge = Charge(["/bin/true"], str(tmp_path), 0.0)
    for now in (0.0, 10.0, 20.0, 30.0):
        charge.died(now)
    assert not charge.calm
    charge.died(61.0)  # the first of them is forgotten by now
    assert not charge.calm
    charge.died(62.0)
    assert charge.calm
    charge.died(300.0)
    assert not charge.calm


def test_a_calm_one_is_told_so(tmp_path: Path) -> None:
    show = f"import sys; open({str(tmp_path / 'said')!r}, 'w').write(' '.join(sys.argv[1:]))"
    charge = Charge([sys.executable, "-c", show, "file"], str(tmp_path), 0.0)
    for now in range(5):
        charge.died(float(now))
    link = charge.start(5.0)
    assert link is not None
    link.close()
    os.waitpid(charge.pid, 0)
    assert (tmp_path / "said").read_text() == f"file {CALM}"
