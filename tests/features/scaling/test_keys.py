"""The keys of `scale` that triggers need: their rules, their defaults, and how another version gets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.features.scaling.keys import Scale
from poolctl.supervisor.takeover.state_store import StoredConfiguration, decoded, encoded
from tests.config_files import SERVER, load_text, told

WRONG = [
    ("scale = { max = 4, triggers = { in_flight = 0 } }", "scale.triggers.in_flight", "more than 0"),
    ("scale = { max = 4, triggers = { p99 = 0 } }", "scale.triggers.p99", "out of range"),
    ("scale = { max = 4, triggers = { inflight = 9 } }", "scale.triggers.inflight", "in_flight"),
    ("scale = { max = 4, triggers = { rps = 9 } }", "scale.triggers.rps", "requests_per_second"),
    ("scale = { max = 4, triggers = { cpu = 0.8 }, window = 0 }", "scale.window", "out of range"),
    ("scale = { max = 4, triggers = { cpu = 0.8 }, cooldown = 5 }", "scale.cooldown", "a table"),
    ("scale = { triggers = { cpu = 0.8 } }", "scale.triggers", "write max = 2"),
    ("scale = { min = 3, max = 3, triggers = { cpu = 0.8 } }", "scale.triggers", "write max = 6"),
    ("overlap = false\nscale = { max = 3, triggers = { cpu = 0.8 } }", "scale.triggers", "overlap"),
    (
        'command = ["prog"]\nscale = { max = 4, triggers = { cpu = 0.5 } }',
        "scale.triggers",
        "write workers = N",
    ),
]


@pytest.mark.parametrize(("line", "named", "fix"), WRONG)
def test_wrong_value_is_named_with_its_fix(tmp_path: Path, line: str, named: str, fix: str) -> None:
    server = SERVER if "command" not in line else '[[server]]\nname = "queue"\n'
    text = told(tmp_path, server + line + "\n")
    assert named in text
    assert fix in text


def test_server_made_in_python_has_triggers_too() -> None:
    server = ServerConfig(name="web", bind=":1", app="a:b", scale={"max": 4, "triggers": {"cpu": 0.5}})
    assert (type(server.scale), server.scale.is_automatic) == (Scale, True)
    assert type(ServerConfig(name="web", bind=":1", app="a:b").scale) is Scale


def test_successor_is_left_the_triggers() -> None:
    scale = {"min": 2, "max": 4, "triggers": {"cpu": 0.5}, "cooldown": {"up": 1}}
    server = ServerConfig(name="web", bind=":1", app="a:b", scale=scale)
    (found,) = decoded(encoded(StoredConfiguration("shop", [server]))).servers
    assert (found.scale, type(found.scale)) == (server.scale, Scale)
    assert found.scale.as_given() == server.scale.as_given()


def test_defaults_may_have_a_part_of_what_triggers_need(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        '[defaults]\nscale = { triggers = { in_flight = 20 }, window = "5s" }\n'
        '[[server]]\nname = "web"\nbind = ":1"\napp = "a:b"\nscale = { max = 4 }\n',
    )
    assert config.problems == []
    (server,) = config
    assert (server.scale.max, server.to_dict()["scale"]["window"], server.scale.is_automatic) == (
        4,
        5.0,
        True,
    )
    config = load_text(
        tmp_path,
        "[defaults]\nscale = { triggers = { in_flight = 20 } }\n"
        '[[server]]\nname = "web"\nbind = ":1"\napp = "a:b"\n',
    )
    (problem,) = config.problems
    assert "triggers start more than 1 worker, and scale.max is 1" in str(problem)


def test_triggers_of_the_defaults_are_not_for_servers_with_a_number_of_their_own(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        "[defaults]\nscale = { max = 4, triggers = { in_flight = 20 } }\n"
        '[[server]]\nname = "fixed"\nbind = ":1"\napp = "a:b"\nworkers = 2\n'
        '[[server]]\nname = "program"\nbind = ":2"\ncommand = ["prog", "{fd}"]\n'
        '[[server]]\nname = "once"\nbind = ":3"\napp = "a:b"\noverlap = false\n'
        '[[server]]\nname = "plain"\nbind = ":4"\napp = "a:b"\n'
        '[[server]]\nname = "own"\nbind = ":5"\napp = "a:b"\nscale = { min = 2, triggers = { cpu = 0.5 } }\n',
    )
    assert config.problems == []
    servers = {server.name: server for server in config}
    assert [name for name, server in servers.items() if server.scale.is_automatic] == ["plain", "own"]
    assert servers["fixed"].to_dict()["scale"] == {"min": 2, "max": 2, "idle": 0.0}
    assert servers["own"].to_dict()["scale"]["triggers"] == {"in_flight": 20.0, "cpu": 0.5}


@pytest.mark.parametrize(
    ("server", "own", "inherits"),
    [
        ({"app": "a:b", "bind": ":1"}, {}, True),
        ({"app": "a:b", "bind": ":1"}, {"scale": {"min": 2}}, True),
        ({"app": "a:b", "bind": ":1"}, {"scale": {"min": 2, "max": 3}}, True),
        ({"app": "a:b", "bind": ":1"}, {"scale": {"min": 2, "max": 2}}, False),
        ({"app": "a:b", "bind": ":1"}, {"overlap": True}, True),
        ({"app": "a:b", "bind": ":1"}, {"overlap": False}, False),
        ({"command": ["x"], "bind": ":1"}, {}, True),
        ({"command": ["x"]}, {}, False),
        ({"command": ["x"], "bind": ":1"}, {"command": ["x"]}, False),
        ({"command": ["x"]}, {"scale": {"triggers": {"cpu": 0.5}}}, True),
        ({"app": "a:b"}, {"scale": 3}, True),
    ],
)
def test_server_with_a_fixed_number_of_workers_inherits_no_triggers(
    server: dict[str, Any], own: dict[str, Any], inherits: bool
) -> None:
    assert (Scale.not_inherited(server, own) == ()) is inherits
