"""[[notify]]: what it says, what is wrong with it, what is shown, and how it reaches the pool."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from poolctl import PoolConfig
from poolctl.config import EventsTable, Tables, secret_variable_names
from poolctl.config.model.pool_tables import build_tables
from poolctl.config.values.problems import Finding
from poolctl.features.notify.table import Notify
from poolctl.supervisor.takeover.state_store import StoredConfiguration, decoded, encoded
from poolctl.units import format_duration
from tests.config_files import SERVER, load_text, told
from tests.unit.core.ordered_core import web
from tests.unit.supervisor.desk import Desk

DOCUMENTATION = (Path(__file__).parents[3] / "docs" / "events.md").read_text()
BOTH = """
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
"""


def notified(**keys: Any) -> str:
    """What is wrong with a [[notify]] of these keys."""
    findings: list[Finding] = []
    tables = build_tables({"notify": [keys]}, findings)
    assert len(tables.all(Notify)) == (not findings)
    return "; ".join(finding.message for finding in findings)


def test_keys_of_a_file_are_those_of_the_receivers(tmp_path: Path) -> None:
    config = load_text(tmp_path, SERVER + BOTH)
    assert config.problems == []
    receivers = config.tables.all(Notify)
    assert [each.label for each in receivers] == ["ntfy", "mine"]
    assert receivers[0].servers == ("api-*", "tag:web")
    assert receivers[1].command == ("./tell", "--loud")


def test_receivers_of_a_later_file_replace_the_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "prod").mkdir()
    first, second = tmp_path / "pool.toml", tmp_path / "prod" / "pool.toml"
    first.write_text(SERVER + BOTH)
    second.write_text('[[notify]]\ntype = "slack"\nurl_file = "hook"\n')
    receivers = PoolConfig.load([first, second], {}).tables.all(Notify)
    assert [(each.type, each.url_file) for each in receivers] == [("slack", str(tmp_path / "prod/hook"))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[notify]\ntype = 'slack'\n",
            "'notify' is a table, not a list of tables; write [[notify]], with two",
        ),
        ("[[notify]]\ntype = 'mail'\n", 'allowed is "webhook", "ntfy", '),
        ("[[notify]]\ntype = 'slack'\nwritten = 'x'\n", "unknown key 'written'"),
        ("[notfy]\n", "write [[notify]], with two brackets"),
        ("[notify]\n[notify]\n", "write [[notify]], with two brackets, each time"),
    ],
)
def test_error_is_reported_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    assert words in told(tmp_path, f"{SERVER}\n{text}")


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
        (
            {"type": "command", "command": "mail $TO"},
            "a command is a list of words, not a line for a shell",
        ),
        ({"type": "command", "command": ["x"], "url": "https://a"}, "a command has no url"),
        ({"type": "webhook", "url": "ftp://a"}, "this is not an http or https URL"),
        ({"type": "webhook", "url": "http://[::g]:80"}, "this is not an http or https URL"),
        ({"type": "webhook", "url": "http://:80"}, "this is not an http or https URL"),
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
    build_tables({"notify": [{"type": "slack", "url_env": "A"}, {"type": "slack", "url_env": "B"}]}, findings)
    assert [(finding.path, finding.message) for finding in findings] == [
        (("notify", 1), "the name 'slack' is taken")
    ]


def test_secret_address_is_shown_as_written_and_in_no_problem(tmp_path: Path) -> None:
    text = SERVER + '[[notify]]\ntype = "slack"\nurl = "https://hooks.example/${HOOK}"\n'
    env = {"HOOK": "s3cret"}
    (notify,) = load_text(tmp_path, text, env=env).tables.all(Notify)
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
    assert config.check_external() == []
    assert [(problem.key, problem.message) for problem in config.warnings] == [  # type: ignore[attr-defined]
        ("notify[1].url_env", "the environment variable NOT_SET is not set here"),
        ("notify[3].url_file", f"{tmp_path}/none is not there"),
    ]


def test_receivers_are_kept_for_another_process(tmp_path: Path) -> None:
    tables = load_text(tmp_path, SERVER + BOTH).tables
    assert pickle.loads(pickle.dumps(tables)) == tables
    assert list(tables.to_dict()) == ["notify"]


def test_variables_of_a_receiver_are_those_of_the_pool(tmp_path: Path) -> None:
    text = '[[notify]]\ntype = "gotify"\nurl_env = "U"\ntoken_env = "T"\n'
    assert secret_variable_names((), load_text(tmp_path, SERVER + text).tables) == {"U", "T"}


def test_defaults_are_those_of_the_documentation() -> None:
    receiver = Notify(type="slack", url_env="A")
    for key in ("repeat", "delay", "retry_for", "timeout"):
        assert f"`{key}` ({format_duration(getattr(receiver, key))}" in DOCUMENTATION, key
    assert f"(default: {', '.join(receiver.events)})" in DOCUMENTATION
    assert f"`{receiver.min_severity}` (default)" in DOCUMENTATION


def test_successor_is_left_the_receivers(tmp_path: Path) -> None:
    text = '[[notify]]\ntype = "ntfy"\nurl = "${URL}"\ntopic = "t"\n'
    tables = load_text(tmp_path, SERVER + text, env={"URL": "http://ntfy.example"}).tables
    assert decoded(encoded(StoredConfiguration("shop", [], tables=tables))).tables == tables


async def test_reload_names_changed_receivers() -> None:
    desk = Desk(web("a"))
    desk.files.tables_of_files = Tables(events=EventsTable(), notify=(Notify(type="slack", url_env="A"),))
    assert (await desk.ask("reload"))["changes"][-1]["keys"] == ["notify"]
    assert desk.files.tables.all(Notify) == (Notify(type="slack", url_env="A"),)
    desk.files.tables_of_files = Tables(events=EventsTable(), notify=(Notify(type="slack", url_env="B"),))
    assert [each["keys"] for each in (await desk.ask("reload"))["changes"]] == [["notify.slack"]]
