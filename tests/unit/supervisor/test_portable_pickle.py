"""A configuration passes from one version of poolctl to another as its files would, or is not understood."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from poolctl.config import Surroundings, load, marks_of
from poolctl.supervisor.takeover import portable_pickle
from poolctl.supervisor.takeover.portable_pickle import NotUnderstood

EXAMPLES = Path(__file__).parents[3] / "examples"
MODULE = "poolctl.of_some_version"
FIRST = """
from __future__ import annotations
from typing import NamedTuple
from poolctl.config.model.section import Section, field, hidden, required

class Log(Section):
    size: int = field(10, "")
    keep: int = field(5, "")

class Server(Section):
    name: str = required(description="")
    log: Log = field(Log.usual(), "")
    colour: str = field("red", "")
    place: str = hidden("")

class Pool(NamedTuple):
    servers: tuple[Server, ...]
"""


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the module that of a version: the first with replacements in its source."""

    def version(*replacements: tuple[str, str]) -> Any:
        source = FIRST
        for old, new in replacements:
            assert old in source
            source = source.replace(old, new)
        module = ModuleType(MODULE)
        monkeypatch.setitem(sys.modules, MODULE, module)
        exec(source, vars(module))
        return module

    return version


def saved(first: Any, **more: Any) -> bytes:
    log = first.Log.unchecked({"size": 3})
    server = first.Server.unchecked({"name": "a", "log": log, "place": "/srv", **more})
    return portable_pickle.dumps(first.Pool((server,)))


def test_values_of_this_version_are_the_same_afterwards(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(
        '[[server]]\nname = "a"\nbind = ":8080"\napp = "a:b"\nworkers = 2\ntls = true\nhealth = "/ready"\n'
        "[server.http]\nkeep_alive = 3\n"
        '[[server]]\nname = "job"\njob = true\ncommand = ["true"]\nenv = { A = "${LEVEL}" }\n'
        '[defaults.tls]\ncert = "c.pem"\n[metrics]\n[events]\nkeep = 2\n'
    )
    files = [tmp_path / "pool.toml", *sorted(EXAMPLES.glob("*/pool.toml"))]
    assert len(files) > 5
    for file in map(str, files):
        found = load([file], {"LEVEL": "1"})
        value = list(found), found.tables, Surroundings(found.defaults), marks_of([file])
        servers, *others = portable_pickle.loads(portable_pickle.dumps(value))
        assert others == [*value[1:]], file
        for before, after in zip(found, servers, strict=True):
            assert vars(after) == vars(before) | {"origins": None}, file
            assert after.as_given() == before.as_given(), file


def test_keys_that_were_not_given_are_those_of_the_other_version(become: Any) -> None:
    content = saved(become())
    other = become(('field("red"', 'field("blue"'), ("    keep: int = field(5", "    most: int = field(7"))
    (server,) = portable_pickle.loads(content).servers
    assert server == other.Server.unchecked(
        {"name": "a", "log": other.Log.unchecked({"size": 3}), "place": "/srv"}
    )
    assert (server.colour, server.log.size, server.log.most) == ("blue", 3, 7)


@pytest.mark.parametrize(
    ("replacement", "part"),
    [
        (("    colour:", "    color:"), "there is no 'colour' in Server any more"),
        (("colour: str", "colour: Colour"), "'colour' in Server has changed"),
        (
            ("    colour:", '    other: str = required(description="")\n    colour:'),
            "Server needs 'other' now",
        ),
        (("class Pool(", "class Pools("), "Pool"),
        (("    servers: tuple", "    size: int\n    servers: tuple"), "size"),
    ],
)
def test_what_the_other_version_does_not_have_is_not_understood(
    become: Any, replacement: tuple[str, str], part: str
) -> None:
    content = saved(become(), colour="green")
    become(replacement)
    with pytest.raises(NotUnderstood) as raised:
        portable_pickle.loads(content)
    assert part in str(raised.value)


def test_anything_else_is_not_understood() -> None:
    for content in (b"", b"[]", b"\x80\x05\x95"):
        with pytest.raises(NotUnderstood):
            portable_pickle.loads(content)
