"""Records as JSON: what two versions of poolctl say to each other."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest

from poolctl.json_form import Table, field_names, from_json, to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Person(Name):
    age: int
    height: float
    is_here: bool
    born: str | None
    friends: tuple[Name, ...]
    samples: tuple[float | None, ...]
    counts: dict[str, int]
    config: Table
    home: Name
    title: str = "Dr."
    boss: Name | None = None


EMPTY = {
    "name": "", "age": 0, "height": 0.0, "is_here": False, "born": None, "friends": [], "samples": [], "counts": {},
    "config": {}, "home": {"name": ""}, "title": "Dr.",
}  # fmt: skip
FULL = {
    "name": "a", "age": 1, "height": 1.5, "is_here": True, "born": "1970", "friends": [{"name": "b"}],
    "samples": [0.5, None, 1], "counts": {"x": 1}, "config": {"y": [1]}, "home": {"name": "c"}, "title": "",
    "boss": {"name": "d"},
}  # fmt: skip


def test_record_is_the_same_after_json() -> None:
    person = from_json(Person, FULL)
    assert (person.friends, person.samples) == ((Name(name="b"),), (0.5, None, 1))
    assert (person.home, person.boss) == (Name(name="c"), Name(name="d"))
    assert to_json(person) == FULL
    assert list(to_json(person)) == list(FULL) == [*field_names(Person)]


def test_missing_fields_are_defaults_or_empty_and_unknown_members_are_ignored() -> None:
    person = from_json(Person, {"of": "a later version"})
    assert person == from_json(Person, dict.fromkeys(FULL))
    assert (person.born, person.title, person.boss, person.home) == (None, "Dr.", None, Name(name=""))
    assert list(to_json(person)) == list(EMPTY), "boss is None by default, and left out"
    assert to_json(person) == EMPTY


def test_only_named_fields_are_written() -> None:
    assert to_json(from_json(Person, FULL), "age", "name") == {"name": "a", "age": 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [("name", 1), ("age", "1"), ("age", 0.5), ("height", "1"), ("friends", {}), ("friends", ["b"]), ("friends", [None]),
     ("samples", ["1"]), ("counts", []), ("config", "x"), ("home", "c"), ("boss", [])],
)  # fmt: skip
def test_field_of_another_type_is_an_error(name: str, value: object) -> None:
    with pytest.raises(ValueError, match="of another type"):
        from_json(Person, {name: value})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    port: int = 0
    url: str = ""

    def finish_json(self, table: Table) -> None:
        if not self.port:
            table["url"] = None


def test_class_may_finish_its_document() -> None:
    assert to_json(Place()) == {"port": 0, "url": None}
    assert to_json(Place(port=1)) == {"port": 1, "url": ""}


def test_record_is_the_same_after_pickle() -> None:
    person = Place(port=1, url="x")
    assert pickle.loads(pickle.dumps(person)) == person
