"""Up and down, rise and fall, over the life of a server; time is given."""

from __future__ import annotations

import json

from poolctl.core.availability import Availability


def test_a_server_that_starts_runs_fails_and_comes_back() -> None:
    seen = Availability()
    for at, state in (
        (100, "starting"),
        (103, "running"),
        (203, "backoff"),
        (205, "starting"),
        (210, "running"),
    ):
        seen.note(at, state=state)
    seen.settle(310)
    assert (seen.uptime, seen.downtime) == (200, 10)
    assert (seen.risetime, seen.falltime) == (3, 7)
    assert (seen.rise, seen.fall) == (2, 1)
    assert seen.sli == 200 / 210
    assert seen.status == "ok"


def test_while_it_is_off_no_time_is_counted_and_turning_it_off_is_no_fall() -> None:
    seen = Availability()
    seen.note(0, state="running")
    seen.note(10, state="stopped")
    seen.note(1000, state="running")
    seen.settle(1010)
    assert (seen.uptime, seen.downtime, seen.fall, seen.rise) == (20, 0, 0, 2)
    assert Availability().sli is None


def test_asleep_it_is_up_and_a_probe_that_says_ko_makes_it_down() -> None:
    seen = Availability()
    seen.note(0, state="running", health="ok")
    seen.note(10, state="sleeping")
    seen.note(20, state="running", health="warn")
    seen.note(25, health="ko")
    seen.note(35, health="ok")
    seen.settle(40)
    assert (seen.uptime, seen.downtime, seen.falltime) == (30, 10, 5)
    assert (seen.rise, seen.fall) == (2, 1)


def test_a_successor_goes_on_where_the_other_was() -> None:
    seen = Availability()
    seen.note(0, state="running")
    after = Availability.restored(json.loads(json.dumps(seen.to_dict())))
    after.settle(50)
    assert after.uptime == 50
