"""A configuration passes from one version of poolctl to another as its files would, or is not understood."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from poolctl.config import ServerConfig, Surroundings, added_server, load, marks_of
from poolctl.config.model.server_sections import Log
from poolctl.supervisor.takeover.configuration_json import decoded, encoded
from poolctl.supervisor.takeover.stored_configuration import NotUnderstood, StoredConfiguration

EXAMPLES = Path(__file__).parents[3] / "examples"
DEFAULTS = """[defaults]
workers = "${WORKERS}"
preload = "${PRELOAD}"
env_file = ["a.env"]
tags = ["${TAG}", "b"]
http = { trusted_proxies = ["10.0.0.0/8"] }
"""


def document(**keys: Any) -> dict[str, Any]:
    """The JSON of a configuration with one server."""
    server = ServerConfig(name="a", bind=":1", app="a:b", log={"keep": 3}, **keys)
    found: dict[str, Any] = json.loads(encoded(StoredConfiguration("shop", [server])))
    return found


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
        stored = StoredConfiguration(
            "shop",
            list(found),
            {"a.1.0": found[0]},
            ["gone"],
            Surroundings(found.defaults, "/srv", "a:b"),
            (1, 9),
            {"A": "b"},
            {"a": {"B": "c"}},
            found.tables,
            marks_of([file]),
        )
        after = decoded(encoded(stored), validate=True)
        assert encoded(after) == encoded(stored), file
        assert (after.tables, after.marks, after.port_range) == (stored.tables, stored.marks, (1, 9)), file
        for before, server in zip(found, after.servers, strict=True):
            assert vars(server) == vars(before) | {"origins": None}, file
            assert server.as_given() == before.as_given(), file


def test_server_added_after_a_takeover_has_the_defaults_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.env").touch()
    (tmp_path / "pool.toml").write_text(DEFAULTS)
    env = {"WORKERS": "3", "PRELOAD": "true", "TAG": "new"}
    surroundings = Surroundings(load([str(tmp_path / "pool.toml")], env).defaults, str(tmp_path))
    after = decoded(encoded(StoredConfiguration("shop", [], surroundings=surroundings))).surroundings
    table = {"name": "late", "bind": ":2", "app": "a:b"}
    added = added_server(after, table, str(tmp_path), {})
    assert vars(added) == vars(added_server(surroundings, table, str(tmp_path), {}))
    assert (added.workers, added.preload, added.tags) == (3, True, ("new", "b"))
    assert added.env_file == (str(tmp_path / "a.env"),)


def test_keys_that_were_not_given_have_the_defaults_of_the_version_that_reads() -> None:
    found = document()
    assert found["servers"][0]["log"] == {"keep": 3}
    assert "http" not in found["servers"][0]
    (server,) = decoded(json.dumps(found).encode()).servers
    assert server.log == Log(keep=3)
    del found["servers"][0]["log"]
    (server,) = decoded(json.dumps(found).encode()).servers
    assert server.log == Log()
    assert "log" not in server.given


def test_paths_that_are_no_text_are_the_same_afterwards() -> None:
    stored = StoredConfiguration("shop", [ServerConfig(name="a", bind="unix:/srv/\udcff", app="a:b")])
    assert decoded(encoded(stored)).servers == stored.servers


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda each: each["servers"][0].update(colour="red"), "there is no 'colour' in ServerConfig any more"),
        (lambda each: each["servers"][0]["log"].update(colour=1), "there is no 'colour' in Log any more"),
        (lambda each: each["servers"][0].pop("name"), "ServerConfig needs 'name' now"),
        (lambda each: each["servers"][0].update(log={"keep": "x"}), "'keep' in Log: "),
        (lambda each: each["servers"][0].update(drain_timeout=-1), "'drain_timeout' in ServerConfig: "),
        (lambda each: each["tables"].update(weather={}), "there is no [weather] any more"),
        (lambda each: each.update(version=2), "version 2 of its form is not known"),
        (lambda each: each.pop("tables"), "it cannot be read: KeyError('tables')"),
        (lambda each: each.update(port_range=None), "it cannot be read: TypeError"),
    ],
)  # fmt: skip
def test_part_that_this_version_does_not_have_is_not_understood(change: Any, part: str) -> None:
    found = document()
    change(found)
    with pytest.raises(NotUnderstood) as raised:
        decoded(json.dumps(found).encode(), validate=True)
    assert part in str(raised.value)


def test_anything_else_is_not_understood() -> None:
    for content in (b"", b"{", b"[]", b"\x80\x05\x95", pickle.dumps([]), pickle.dumps(("0.0.1", None))):
        with pytest.raises(NotUnderstood):
            decoded(content)
