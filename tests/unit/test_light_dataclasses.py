"""Dataclasses that are light to import behave as those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any, ClassVar

import pytest

from poolctl import light_dataclasses as light


class Point:
    """A point."""

    x: int
    y: int = 2
    names: ClassVar[str] = "xy"

    def moved(self) -> int:
        return self.x + 1


class Box:
    corner: object
    contents: list[int] = light.field(default_factory=list)
    notes: dict[str, str] = light.field(default_factory=dict, metadata={"kept": True})

    def __repr__(self) -> str:
        return "<Box>"


class Nothing:
    pass


SHAPES: list[dict[str, bool]] = [{}, {"frozen": True}, {"slots": True}, {"frozen": True, "slots": True}]


def both(kind: type, options: dict[str, bool]) -> list[Any]:
    """The class made by the standard library, and by this module."""
    body = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    standard = {
        name: dataclasses.field(default_factory=value.default_factory)
        if type(value).__name__ == "Field"
        else value
        for name, value in body.items()
    }
    return [
        dataclasses.dataclass(**options)(type(kind.__name__, (), standard)),
        light.dataclass(**options)(type(kind.__name__, (), body)),
    ]


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_objects_are_made_shown_and_compared_as_by_the_standard_library(options: dict[str, bool]) -> None:
    seen = []
    for kind in both(Point, options):
        one, same, other = kind(1), kind(x=1, y=2), kind(1, 3)
        assert one == same != other
        assert (one == 1, one != 1) == (False, True)
        seen.append([repr(one), one.moved(), kind.__doc__, kind.names, kind.__match_args__])
        assert hasattr(one, "__dict__") is not options.get("slots", False)
        for wrong in ({}, {"x": 1, "z": 2}):
            with pytest.raises(TypeError):
                kind(**wrong)
        if options.get("frozen"):
            assert {one, same, other} == {one, other}
            with pytest.raises(AttributeError):
                one.x = 3
            with pytest.raises(AttributeError):
                del one.x
        else:
            one.x = 5
            assert one != same
            with pytest.raises(TypeError, match="unhashable"):
                hash(one)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_what_a_factory_makes_belongs_to_one_object(options: dict[str, bool]) -> None:
    for kind in both(Box, options):
        one, other = kind("a"), kind("a")
        assert (one.contents, one.notes, repr(one)) == ([], {}, "<Box>")
        assert one == other
        one.contents.append(1)
        assert (other.contents, kind("a", [2]).contents) == ([], [2])
        assert one != other


def test_objects_without_fields_are_equal_when_their_classes_are() -> None:
    standard, here = both(Nothing, {"frozen": True})
    assert here() == here() != standard()
    assert hash(here()) == hash(here())
    assert repr(here()) == repr(standard())


@light.dataclass(frozen=True, slots=True)
class Sent:
    name: str
    values: tuple[int, ...] = ()


@light.dataclass(frozen=True)
class Kept:
    name: str
    added_later: str = ""


@light.dataclass(eq=False)
class Own:
    name: str


def test_frozen_objects_are_copied_and_pickled() -> None:
    sent = Sent("a", (1, 2))
    assert pickle.loads(pickle.dumps(sent)) == copy.deepcopy(sent) == copy.copy(sent) == sent


def test_without_slots_an_object_is_pickled_by_the_names_of_its_fields() -> None:
    # Another version of the class reads it, which may have more fields or others before them.
    assert Kept("a").__reduce_ex__(2)[2] == {"name": "a", "added_later": ""}
    assert pickle.loads(pickle.dumps(Kept("a"))) == copy.copy(Kept("a")) == Kept("a")


def test_changed_copy_and_the_fields_of_a_class() -> None:
    assert light.replace(Sent("a", (1,)), name="b") == Sent("b", (1,))
    contents = light.fields(light.dataclass(Box))  # type: ignore[arg-type]
    assert [each.name for each in contents] == ["corner", "contents", "notes"]
    assert [each.default_factory is light.MISSING for each in contents] == [True, False, False]
    assert contents[2].metadata == {"kept": True}


def test_without_a_comparison_objects_are_equal_to_themselves_only() -> None:
    own = Own("a")
    assert own == own != Own("a")
    assert hash(own) == object.__hash__(own)
