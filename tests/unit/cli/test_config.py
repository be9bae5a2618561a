"""`poolctl config`: the effective configuration, which can be loaded again."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from poolctl.config import load
from poolctl.feature import FEATURES
from tests.stand_in import always, item

from .conftest import Command, Supervised


def test_configuration_is_printed_so_that_it_can_be_loaded_again(poolctl: Command, directory: Path) -> None:
    text = poolctl("config").out
    parsed = tomllib.loads(text)
    assert parsed["pool"]["name"] == "shop"
    assert [server["name"] for server in parsed["server"]] == ["users", "orders"]
    (directory / "again.toml").write_text(text)
    again = poolctl("-c", "again.toml", "config", "-o", "json").json
    first = poolctl("config", "-o", "json").json
    assert [each["config"] for each in again["items"]] == [each["config"] for each in first["items"]]
    assert first["pool"]["name"] == "shop"
    assert poolctl("config", "orders", "-o", "name").out == "orders\n"
    assert "********" not in text


@pytest.mark.parametrize("limit", ["", "limit = 8, "])
def test_limit_of_restarts_is_printed_only_if_a_file_gives_it(
    poolctl: Command, directory: Path, limit: str
) -> None:
    text = (directory / "pool.toml").read_text()
    restart = f'restart = {{ {limit}backoff = {{ initial = "50ms" }} }}'
    (directory / "pool.toml").write_text(f"{text}{restart}\n")
    (directory / "again.toml").write_text(poolctl("config").out)
    first, again = (load([name])[1].restart for name in ("pool.toml", "again.toml"))
    assert (first.is_limited, again.is_limited) == (bool(limit), bool(limit))
    assert again.backoff == first.backoff


def test_secrets_are_masked_with_a_note_and_revealed_on_request(poolctl: Command, directory: Path) -> None:
    text = (directory / "pool.toml").read_text()
    (directory / "pool.toml").write_text(f'{text}env = {{ API_KEY = "hidden" }}\n')
    said = poolctl("config")
    assert said.out.startswith("# ******** stands for secrets, which --reveal shows\n")
    assert "hidden" not in said.out
    revealed = poolctl("config", "--reveal").out
    assert 'API_KEY = "hidden"' in revealed
    assert "********" not in revealed


def test_other_tables_are_printed_and_are_members_of_the_document(poolctl: Command, directory: Path) -> None:
    text = (directory / "pool.toml").read_text()
    (directory / "pool.toml").write_text(f"{text}\n[events]\nkeep = 3\n")
    assert tomllib.loads(poolctl("config").out)["events"]["keep"] == 3
    assert poolctl("config", "-o", "json").json["events"]["keep"] == 3
    assert "pool" not in poolctl("config", "-o", "jsonl").out.splitlines()[0].partition('"name"')[0]


@pytest.mark.skipif("gateway" not in FEATURES, reason="there are no routes")
def test_references_in_urls_stay_references(
    poolctl: Command, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (directory / "pool.toml").read_text()
    routes = '[gateway]\n[[route]]\nalias = "a"\npath = "/a$b"\nto = "users"\n'
    (directory / "pool.toml").write_text(f"{text}\n{routes}")
    (route,) = tomllib.loads(poolctl("config").out)["route"]
    assert (route["alias"], route["path"]) == ("a", "/a$b")


@pytest.mark.skipif("notify" not in FEATURES, reason="there are no other tables with URLs")
def test_variable_in_a_url_is_printed_as_a_reference_and_other_braces_are_escaped(
    poolctl: Command, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "hidden")
    text = (directory / "pool.toml").read_text()
    hook = '[[notify]]\nname = "a"\ntype = "webhook"\nurl = "https://a.example/${TOKEN}"\nca = "$${X}.pem"\n'
    other = '[[notify]]\nname = "b"\ntype = "webhook"\nurl_env = "TOKEN"\n'
    (directory / "pool.toml").write_text(f"{text}\n{hook}{other}")
    first, second = tomllib.loads(poolctl("config").out)["notify"]
    assert first["url"] == "https://a.example/${TOKEN}"
    assert first["ca"].endswith("/$${X}.pem")
    assert "url" not in second


def test_state_of_a_running_pool_is_added_where_it_is_selected_or_printed(
    poolctl: Command, supervised: Supervised
) -> None:
    with supervised(always(item("users", pids=[7], restarts=4, workers=9))) as requests:
        users, orders = poolctl("config", "-o", "json").json["items"]
        assert (users["state"], users["ready"], users["pids"], users["restarts"]) == ("running", True, [7], 4)
        assert (users["workers"], orders["state"]) == (1, "disabled"), (
            "the configuration is that of the files"
        )
        assert tomllib.loads(poolctl("config", "--state", "running").out)["server"][0]["name"] == "users"
        count = len(requests)
        assert "users" in poolctl("config").out
        assert len(requests) == count, "nothing was asked"


def test_schema_stands_for_itself_and_needs_no_file(poolctl: Command) -> None:
    said = poolctl("-c", "gone.toml", "config", "--schema")
    assert (said.code, "$schema" in json.loads(said.out)) == (0, True)
