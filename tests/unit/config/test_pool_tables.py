"""The tables beside the servers: what they say, what is wrong with them, what is shown, and how they reach the pool."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from poolctl import PoolConfig
from poolctl.config import ServerConfig, Tables
from poolctl.config.model.pool_tables import (
    EventsTable,
    MetricsTable,
    build_tables,
    model_of_table,
    routes_of,
    rules_of,
    secret_variable_names,
    table_names,
)
from poolctl.config.values.plain import STANDARD_STREAMS
from poolctl.config.values.problems import Finding
from poolctl.feature import FEATURES
from tests.config_files import SERVER, load_text, told
from tests.unit.core.ordered_core import web
from tests.unit.supervisor.desk import Desk

ALL = """
[metrics]
bind = ":9464"
[events]
path = "log/events.jsonl"
max_size = "1MiB"
keep = 2
max_age = "7d"
"""


def test_files_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    config = load_text(tmp_path, SERVER + ALL)
    assert config.problems == []
    metrics = config.tables.get(MetricsTable)
    assert metrics is not None
    assert (metrics.bind, metrics.path) == (":9464", "/metrics")
    assert config.tables.get(EventsTable) == EventsTable(
        path=str(tmp_path / "log/events.jsonl"), max_size=2**20, keep=2, max_age=7 * 86400
    )


def test_without_tables_none_of_their_models_is_made(tmp_path: Path) -> None:
    assert load_text(tmp_path, SERVER).tables == Tables()


def test_later_files_win_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "prod").mkdir()
    first, second = tmp_path / "pool.toml", tmp_path / "prod" / "pool.toml"
    first.write_text(SERVER + ALL)
    second.write_text('[events]\nkeep = 9\npath = "e"\n')
    events = PoolConfig.load([first, second], {}).tables.get(EventsTable)
    assert events is not None
    assert (events.keep, events.max_size) == (9, 2**20)
    assert events.path == str(tmp_path / "prod" / "e")


@pytest.mark.parametrize("stream", STANDARD_STREAMS)
def test_log_on_a_standard_stream_has_a_small_file_at_the_default_place(tmp_path: Path, stream: str) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text(
        f'[events]\npath = "{stream}"\n[defaults]\nlog = {{ path = "{stream}", max_size = "1GiB" }}\n'
        '[[server]]\nname = "printed"\ncommand = ["true"]\n'
        '[[server]]\nname = "own"\ncommand = ["true"]\nlog = { path = "own.log" }\n'
    )
    second.write_text('[events]\npath = "e"\n')
    config = PoolConfig.load([first], {})
    printed, own = config
    events = config.tables.get(EventsTable)
    assert events is not None
    for log in (printed.log, events):
        assert (log.path, log.keep) == (None, 1)
        assert 2 * log.max_size == 2 * 1024 * 1024
    assert (own.log.path, own.log.max_size, own.log.keep) == (str(tmp_path / "own.log"), 1 << 30, 5)
    events = PoolConfig.load([first, second], {}).tables.get(EventsTable)
    assert events == EventsTable(path=str(tmp_path / "e"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[metrics]\nbund = 1\n", "pool.toml:7:1: metrics.bund: unknown key 'bund'; did you mean 'bind'?"),
        ("[metrics]\nbind = 'nowhere'\n", "pool.toml:7:1: metrics.bind"),
        ("[metrics]\nbind = '127.0.0.1:auto'\n", "no fixed address"),
        ("[metrics]\nbind = '127.0.0.1:8080'\n", "is taken by 'web', "),
        ("[metrics]\nbind = ':8080'\n", ":8080 (all addresses) overlaps 127.0.0.1:8080 of 'web', "),
        ("[events]\nkeep = -1\n", "allowed is at least 0"),
        ("events = 1\n", "'events' is 1, not a table; write [events]"),
        ("[metricks]\n", "write [metrics]"),
    ],
)  # fmt: skip
def test_error_is_reported_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    text = text + SERVER if text.startswith("events =") else SERVER + "\n" + text
    assert words in told(tmp_path, text)


def test_they_are_kept_for_another_process(tmp_path: Path) -> None:
    tables = load_text(tmp_path, SERVER + ALL).tables
    assert pickle.loads(pickle.dumps(tables)) == tables
    assert list(tables.to_dict()) == ["metrics", "events"]


async def test_reload_names_the_tables_that_change_and_calls_their_followers() -> None:
    desk = Desk(web("a"))
    told: list[Tables] = []
    desk.files.subscribe(told.append)
    told.clear()
    then = Tables(metrics=MetricsTable(), events=EventsTable(keep=3))
    desk.files.tables_of_files = then
    dry = await desk.ask("reload", dry_run=True)
    assert [(each["name"], each["change"], each["keys"]) for each in dry["changes"]] == [
        ("[metrics]", "update", ["metrics"]), ("[events]", "update", ["events"]),
    ]  # fmt: skip
    assert told == []
    await desk.ask("reload")
    assert told == [then] == [desk.files.tables]
    desk.files.tables_of_files = Tables(metrics=MetricsTable(), events=EventsTable(keep=4))
    assert (await desk.ask("reload"))["changes"][0]["keys"] == ["events.keep"]
    assert (await desk.ask("reload"))["changes"] == []


def test_variables_of_secrets_are_found_in_tables_defaults_and_certificates() -> None:
    tls = {"cert": "/c", "key": "/k", "password_env": "KEY"}
    keys = {"app": "a:b", "env": {"some_env": "no"}}
    servers = [
        ServerConfig(name="a", bind=":1", **keys),
        ServerConfig(name="b", bind=":2", tls=tls, **keys),
        ServerConfig(name="c", bind=":3", tls={**tls, "password_env": None}, **keys),
    ]
    defaults = {
        "tls": {"password_env": "DEFAULT"},
        "hooks": [{"x_env": "LIST"}],
        "env": {"y_env": "no"},
        "z_env": 5,
    }
    assert secret_variable_names(servers, Tables()) == {"KEY"}
    assert secret_variable_names([], Tables(), defaults) == {"DEFAULT", "LIST"}


def test_tables_are_known_by_their_names() -> None:
    assert {"metrics", "events"} <= {*table_names()}
    assert (model_of_table("metrics"), model_of_table("nonsense")) == (MetricsTable, None)
    assert MetricsTable.listed is False
    if "gateway" in FEATURES:
        route = model_of_table("route")
        assert route is not None
        assert route.listed


def test_invalid_table_is_left_out_with_its_findings() -> None:
    findings: list[Finding] = []
    tables = build_tables({"metrics": {"bind": "nonsense"}, "events": {"keep": 3}}, findings)
    events = tables.get(EventsTable)
    assert (tables.get(MetricsTable), events is not None and events.keep) == (None, 3)
    assert [each.path for each in findings] == [("metrics", "bind")]


def test_features_without_these_tables_have_no_rules() -> None:
    assert [*rules_of(["metrics", "events"])] == []
    assert routes_of([], Tables()) is None
    if "gateway" in FEATURES:
        assert len([*rules_of(["route"])]) == 1


@pytest.mark.skipif("gateway" not in FEATURES, reason="there are no routes")
def test_routes_are_those_of_the_features_with_tables(tmp_path: Path) -> None:
    text = '[gateway]\nbind = ":7"\n[[route]]\nalias = "a"\npath = "/a"\nto = "web"\n'
    config = load_text(tmp_path, SERVER + text)
    assert config.problems == []
    routes = routes_of(config, config.tables)
    assert routes is not None
    assert [each.alias for each in routes] == ["a"]
    assert routes_of(config, Tables(gateway=config.tables.by_name()["gateway"])) == ()


@pytest.mark.skipif("notify" not in FEATURES, reason="there is no such table")
def test_url_that_is_invalid_is_not_quoted_and_other_values_are() -> None:
    findings: list[Finding] = []
    build_tables(
        {"notify": [{"type": "ntfy", "url": "ftp://secret@host/topic", "timeout": "soon"}]}, findings
    )
    found = {each.path[-1]: each.found for each in findings}
    assert found["url"] == ""
    assert found["timeout"] != ""


def test_tables_are_found_by_name_and_by_model_and_listed_with_their_places(tmp_path: Path) -> None:
    tables = load_text(tmp_path, SERVER + ALL).tables
    metrics, events = tables.get(MetricsTable), tables.get(EventsTable)
    assert tables.by_name() == {"metrics": metrics, "events": events}
    assert list(tables) == [(("metrics",), metrics), (("events",), events)]
    assert (tables.routes, tables.stop_seconds) == (0, 0.0)
    assert repr(tables) == f"Tables(metrics={metrics!r}, events={events!r})"
    assert (tables == Tables(**tables.by_name()), tables == Tables(), tables == 1) == (True, False, False)
