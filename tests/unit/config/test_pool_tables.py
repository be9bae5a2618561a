"""The tables beside the servers: what they say, what is wrong with them, what is shown, and how they reach the pool."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from poolctl import PoolConfig
from poolctl.config import GatewayConfig, RouteConfig
from poolctl.config.model.pool_tables import EventsTable, Notify, Tables
from poolctl.config.rules.tables import made
from poolctl.config.values.problems import Finding
from tests.config_files import SERVER, load_text, told
from tests.unit.supervisor.desk import Desk, run, web


def notified(**keys: Any) -> str:
    """What is wrong with a [[notify]] of these keys."""
    findings: list[Finding] = []
    tables = made({"notify": [keys]}, findings)
    assert len(tables.notify) == (not findings)
    return "; ".join(finding.message for finding in findings)


ALL = """
[metrics]
bind = ":9464"
[dashboard]
bind = "unix:web.sock"
token_file = "token"
[[notify]]
type = "ntfy"
url = "https://ntfy.example"
topic = "pool"
events = ["health"]
servers = ["api-*", "tag:web"]
[[notify]]
name = "mine"
type = "command"
command = ["./tell", "--loud"]
[events]
path = "log/events.jsonl"
max_size = "1MiB"
keep = 2
max_age = "7d"
"""


def test_files_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    config = load_text(tmp_path, SERVER + ALL)
    assert config.problems == []
    tables = config.tables
    assert tables.metrics is not None
    assert (tables.metrics.bind, tables.metrics.path) == (":9464", "/metrics")
    assert tables.dashboard is not None
    assert tables.dashboard.bind == f"unix:{tmp_path}/web.sock"
    assert tables.dashboard.token_file == str(tmp_path / "token")
    assert [each.label for each in tables.notify] == ["ntfy", "mine"]
    assert tables.notify[0].servers == ("api-*", "tag:web")
    assert tables.notify[1].command == ("./tell", "--loud")
    assert tables.events == EventsTable(
        path=str(tmp_path / "log/events.jsonl"), max_size=2**20, keep=2, max_age=7 * 86400
    )


def test_without_tables_none_of_their_models_is_made(tmp_path: Path) -> None:
    assert load_text(tmp_path, SERVER).tables == Tables()


def test_later_files_win_key_by_key_and_lists_are_taken_whole(tmp_path: Path) -> None:
    (tmp_path / "prod").mkdir()
    first, second = tmp_path / "pool.toml", tmp_path / "prod" / "pool.toml"
    first.write_text(SERVER + ALL)
    second.write_text('[events]\nkeep = 9\npath = "e"\n[[notify]]\ntype = "slack"\nurl_file = "hook"\n')
    tables = PoolConfig.load([first, second], {}).tables
    assert tables.events is not None
    assert (tables.events.keep, tables.events.max_size) == (9, 2**20)
    assert tables.events.path == str(tmp_path / "prod" / "e")
    assert [(each.type, each.url_file) for each in tables.notify] == [("slack", str(tmp_path / "prod/hook"))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[metrics]\nbund = 1\n", "pool.toml:7:1: metrics.bund: unknown key 'bund'; did you mean 'bind'?"),
        ("[metrics]\nbind = 'nowhere'\n", "pool.toml:7:1: metrics.bind"),
        ("[metrics]\nbind = '127.0.0.1:auto'\n", "no fixed address"),
        ("[metrics]\nbind = '127.0.0.1:8080'\n", "is taken by 'web', "),
        ("[metrics]\nbind = ':8080'\n", ":8080 (all addresses) overlaps 127.0.0.1:8080 of 'web', "),
        ("[metrics]\nbind = ':9465'\n[dashboard]\n", "overlaps"),
        ("[events]\nkeep = -1\n", "allowed is at least 0"),
        ("events = 1\n", "'events' is 1, not a table; write [events]"),
        ("[notify]\ntype = 'slack'\n", "'notify' is a table, not a list of tables; write [[notify]], with two"),
        ("[[notify]]\ntype = 'mail'\n", 'allowed is "webhook", "ntfy", "gotify", "slack" or "command"'),
        ("[[notify]]\ntype = 'slack'\nwritten = 'x'\n", "unknown key 'written'"),
        ("[metricks]\n", "did you mean 'metrics'?"),
    ],
)  # fmt: skip
def test_error_is_reported_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    text = text + SERVER if text.startswith("events =") else SERVER + "\n" + text
    assert words in told(tmp_path, text)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"type": "slack"}, "the address is missing"),
        ({"type": "slack", "url": "https://a/b", "url_env": "A"}, "the address is given 2 times"),
        ({"type": "slack", "url_env": "A", "command": ["x"]}, "slack runs no command"),
        (
            {"type": "webhook", "url_env": "A", "token_env": "T", "token_file": "t"},
            "the token is given twice",
        ),
        ({"type": "gotify", "url_env": "A"}, "gotify asks for a token"),
        ({"type": "ntfy", "url_env": "A"}, "ntfy sends to a topic"),
        ({"type": "command"}, "a command is missing"),
        ({"type": "command", "command": ["x"], "url": "https://a"}, "a command has no url"),
        ({"type": "webhook", "url": "ftp://a"}, "this is no address of a web service"),
        ({"type": "webhook", "url": "http://[::g]:80"}, "this is no address of a web service"),
        ({"type": "webhook", "url": "http://:80"}, "this is no address of a web service"),
        ({"type": "webhook", "url_env": "A", "events": ["weather"]}, "'weather' is not allowed here"),
        ({"type": "gotify", "url_env": "A", "token_env": "T"}, ""),
        ({"type": "ntfy", "url": "http://a", "topic": "t"}, ""),
        ({"type": "command", "command": ["x"]}, ""),
    ],
)
def test_receiver_needs_an_address_or_a_command(keys: dict[str, Any], words: str) -> None:
    assert notified(**keys) == words


def test_two_receivers_of_the_same_name_are_a_problem() -> None:
    findings: list[Finding] = []
    made({"notify": [{"type": "slack", "url_env": "A"}, {"type": "slack", "url_env": "B"}]}, findings)
    assert [(finding.path, finding.message) for finding in findings] == [
        (("notify", 1), "the name 'slack' is taken")
    ]


def test_secret_address_is_shown_as_written_and_in_no_problem(tmp_path: Path) -> None:
    text = SERVER + '[[notify]]\ntype = "slack"\nurl = "https://hooks.example/${HOOK}"\n'
    env = {"HOOK": "s3cret"}
    (notify,) = load_text(tmp_path, text, env=env).tables.notify
    assert notify.url == "https://hooks.example/s3cret"
    assert notify.to_dict()["url"] == "https://hooks.example/${HOOK}"
    config = load_text(tmp_path, text.replace("https", "htps"), env=env)
    assert config.problems
    assert "s3cret" not in str([problem.to_dict() for problem in config.problems])


def test_a_secret_that_is_not_there_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hook").write_text("https://hooks.example/x")
    monkeypatch.setenv("IS_SET", "https://hooks.example/y")
    told = "".join(
        f'[[notify]]\nname = "{key}{index}"\ntype = "slack"\n{key} = "{value}"\n'
        for index, (key, value) in enumerate(
            [("url_env", "IS_SET"), ("url_env", "NOT_SET"), ("url_file", "hook"), ("url_file", "none")]
        )
    )
    config = load_text(tmp_path, SERVER + told)
    assert config.outside() == []
    assert [(problem.key, problem.message) for problem in config.warnings] == [  # type: ignore[attr-defined]
        ("notify[1].url_env", "the environment variable NOT_SET is not set here"),
        ("notify[3].url_file", f"{tmp_path}/none is not there"),
    ]


def test_they_are_kept_for_another_process(tmp_path: Path) -> None:
    tables = load_text(tmp_path, SERVER + ALL).tables
    assert pickle.loads(pickle.dumps(tables)) == tables
    assert list(tables.to_dict()) == ["metrics", "dashboard", "events", "notify"]


def test_reload_names_the_tables_that_change_and_calls_their_followers() -> None:
    async def scenario() -> None:
        desk = Desk(web("a"))
        told: list[Tables] = []
        desk.files.follow(told.append)
        told.clear()
        then = Tables(events=EventsTable(keep=3), notify=(Notify(type="slack", url_env="A"),))
        desk.files.tables_of_files = then
        dry = await desk.ask("reload", dry_run=True)
        assert [(each["name"], each["change"], each["keys"]) for each in dry["changes"]] == [
            ("[notify]", "update", ["notify"]), ("[events]", "update", ["events"]),
        ]  # fmt: skip
        assert told == []
        await desk.ask("reload")
        assert told == [then] == [desk.files.tables]
        desk.files.tables_of_files = then._replace(events=EventsTable(keep=4))
        assert (await desk.ask("reload"))["changes"][0]["keys"] == ["events.keep"]
        assert (await desk.ask("reload"))["changes"] == []

    run(scenario())


def test_reload_names_the_routes_that_change() -> None:
    async def scenario() -> None:
        desk = Desk(web("a"))
        found: list[Tables] = []
        desk.files.follow(found.append)

        async def changes(tables: Tables) -> list[tuple[str, list[str]]]:
            desk.files.tables_of_files = tables
            answer = await desk.ask("reload")
            assert found[-1] == tables
            return [(each["name"], each["keys"]) for each in answer["changes"]]

        gateway = GatewayConfig(bind=":80")
        one, other = RouteConfig(to="a"), RouteConfig(alias="b", path="/b", to="a", index=1)
        tables = Tables(gateway=gateway, routes=(one, other))
        assert await changes(tables) == [("[gateway]", ["gateway"]), ("[route]", ["route"])]
        assert await changes(tables) == []
        tables = tables._replace(routes=(one, RouteConfig(alias="b", path="/c", to="a", index=1)))
        assert await changes(tables) == [("[route]", ["route.b"])]
        tables = tables._replace(
            routes=(RouteConfig(alias="b", path="/c", to="a"), RouteConfig(to="a", index=1))
        )
        assert await changes(tables) == [("[route]", ["route"])]  # only their order
        tables = tables._replace(routes=tables.routes[1:], gateway=GatewayConfig(bind=":81"))
        assert await changes(tables) == [("[gateway]", ["gateway.bind"]), ("[route]", ["route.b"])]

    run(scenario())
