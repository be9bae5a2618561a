"""Frozen values, wherever their classes are used."""

from __future__ import annotations

import subprocess
import sys

from poolctl.frozen_value import Value

LOOK = """
import sys
from poolctl.routing.route import Route
for name in [name for name in sys.modules if name.startswith("poolctl")]:
    del sys.modules[name]
print(Route.from_json({"alias": "a", "to": [{"server": "b"}]}).to[0].server)
"""


def test_value_is_read_where_its_module_is_no_longer_listed() -> None:
    """As in a worker, in which another poolctl may be imported."""
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("b\n", "")


class Empty(Value):
    pass


class Name(Value):
    name: str


class Person(Name):
    age: int = 0
    friends: tuple[Name, ...] = ()


def test_values_are_equal_when_all_their_fields_are_and_their_classes_are_the_same() -> None:
    person = Person(name="a", age=1, friends=(Name(name="b"),))
    same = Person(name="a", age=1, friends=(Name(name="b"),))
    assert person == same
    assert hash(person) == hash(same)
    for other in (person.but(name="b"), person.but(age=2), person.but(friends=(Name(name="c"),))):
        assert person != other
    assert Name(name="a") == Name(name="a") != Person(name="a") != Name(name="a")
    assert Name(name="a") != "a"
    assert Empty() == Empty() != Name(name="a")
    assert {Empty(), Empty(), person, same} == {Empty(), person}
