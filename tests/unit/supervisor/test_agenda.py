"""The order in which the engine decides on servers."""

from __future__ import annotations

from poolctl.config import ServerConfig
from poolctl.core.state import Entry
from poolctl.core.workqueue import AT_ONCE, Agenda


def entries(count: int) -> list[Entry]:
    return [
        Entry(ServerConfig(name=f"s{number}", bind=f"127.0.0.1:{8000 + number}", app="a:b"))
        for number in range(count)
    ]


def names(turn: list[Entry]) -> list[str]:
    return [entry.name for entry in turn]


def test_a_turn_takes_some_in_the_order_of_their_change_each_once() -> None:
    agenda = Agenda()
    agenda.update(many := entries(AT_ONCE + 2))
    agenda.add(many[0])
    assert names(list(agenda.turn())) == names(many[:AT_ONCE])
    assert names(list(agenda.turn())) == names(many[AT_ONCE:])
    assert not agenda


def test_what_has_come_to_something_goes_before_what_has_not_begun() -> None:
    agenda = Agenda()
    agenda.update(many := entries(4))
    agenda.add(many[3], moved=True)
    assert names(list(agenda.turn())) == ["s0", "s3", "s1", "s2"]


def test_none_is_passed_over_for_ever() -> None:
    agenda = Agenda()
    *restless, patient = entries(AT_ONCE + 3)
    agenda.update(restless)
    agenda.add(patient)
    turns = []
    while patient not in [entry for turn in turns for entry in turn] and len(turns) < 100:
        turns.append(list(agenda.turn()))
        for entry in restless:
            agenda.add(entry, moved=True)
    assert len(turns) <= len(restless) + 1


def test_what_is_added_during_a_turn_may_be_part_of_it() -> None:
    agenda = Agenda()
    first, second = entries(2)
    agenda.add(first)
    seen = []
    for entry in agenda.turn():
        seen.append(entry)
        if entry is first:
            agenda.add(second)
    assert seen == [first, second]
