"""[dashboard]: its keys, what is wrong with them, and how it reaches the pool."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.config import load, secret_variable_names
from poolctl.features.dashboard.table import Dashboard
from poolctl.supervisor.takeover.state_store import StoredConfiguration, decoded, encoded
from tests.certificates import certificate
from tests.config_files import SERVER, load_text, told

GOOD = '[dashboard]\nbind = "unix:web.sock"\ntoken_file = "token"\n'


def test_files_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    config = load_text(tmp_path, SERVER + GOOD)
    assert config.problems == []
    assert config.tables.get(Dashboard) == Dashboard(
        bind=f"unix:{tmp_path}/web.sock", token_file=str(tmp_path / "token")
    )


def test_keys_that_are_left_out_have_their_defaults() -> None:
    assert dict(Dashboard()) == {
        "bind": "127.0.0.1:9465", "token_file": None, "token_env": None, "hosts": (), "tls": False,
        "insecure": False,
    }  # fmt: skip


def test_other_machines_need_tls_unless_that_is_taken_into_account(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    problem = told(tmp_path, f'{SERVER}[dashboard]\nbind = ":9465"\n')
    assert "add tls = { cert = …, key = … }, or bind 127.0.0.1 behind a proxy" in problem
    for keys in ("insecure = true", f'tls = {{ cert = "{cert}", key = "{key}" }}'):
        assert told(tmp_path, f'{SERVER}[dashboard]\nbind = ":9465"\n{keys}\n') == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('bind = "127.0.0.1:8080"\n', "is taken by 'web', "),
        ('[metrics]\nbind = ":9465"\n', "overlaps"),
        ('bind = ":9465"\n', "can be reached from other machines, and without tls they send the token"),
        ('token_env = "A"\ntoken_file = "b"\n', "the token is given twice"),
    ],
)
def test_problem_is_reported(tmp_path: Path, text: str, words: str) -> None:
    assert words in told(tmp_path, f"{SERVER}[dashboard]\n{text}")


def test_variables_that_it_names_are_the_pools_own(tmp_path: Path) -> None:
    text = '[dashboard]\ntoken_env = "A"\ntls = { cert = "c", key = "k", password_env = "B" }\n'
    assert secret_variable_names((), load_text(tmp_path, SERVER + text).tables) == {"A", "B"}


def test_token_and_certificate_are_checked(tmp_path: Path) -> None:
    certificate(tmp_path, days=3)
    path = tmp_path / "pool.toml"
    text = '[dashboard]\ntls = { cert = "localhost.pem", key = "localhost.key" }\n'

    def found(more: str) -> tuple[list[str], list[str]]:
        path.write_text(text + more + SERVER)
        config = load(path, {"BLANK": " "})
        problems = [*config.problems, *config.check_external()]
        return [str(each) for each in problems], [str(each) for each in config.warnings]

    problems, (warning,) = found("")
    assert problems == []
    assert "dashboard.tls.cert" in warning
    assert "the certificate expires on" in warning
    (problem,), _ = found('token_env = "BLANK"\n')
    assert "dashboard.token_env: the environment variable BLANK is not set" in problem
    (problem,), _ = found('token_file = "token"\n')
    assert "dashboard.token_file" in problem
    (tmp_path / "token").write_text("\n")
    (problem,), _ = found('token_file = "token"\n')
    assert "there is no token in it" in problem


def test_successor_is_left_the_table(tmp_path: Path) -> None:
    tables = load_text(tmp_path, SERVER + GOOD).tables
    assert decoded(encoded(StoredConfiguration("shop", [], tables=tables))).tables == tables


def test_file_without_a_token_is_named_with_its_fix(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" \n")
    table = Dashboard(bind="127.0.0.1:9465", token_file=str(tmp_path / "token"))
    (finding,) = table.check({}, ())
    assert (finding.path, finding.message, finding.hint) == (
        ("token_file",), f"{tmp_path}/token: there is no token in it", "write one into it",
    )  # fmt: skip
    assert not finding.is_warning
    (tmp_path / "token").write_text("x" * 40)
    assert [*table.check({}, ())] == []
    missing = Dashboard(bind="127.0.0.1:9465", token_file=str(tmp_path / "none"))
    (finding,) = missing.check({}, ())
    assert (finding.path, finding.message.startswith(f"{tmp_path}/none: ")) == (("token_file",), True)


def test_variable_without_a_token_is_named_with_its_fix() -> None:
    table = Dashboard(bind="127.0.0.1:9465", token_env="TOKEN")
    for env in ({}, {"TOKEN": " "}):
        (finding,) = table.check(env, ())
        assert (finding.path, finding.message, finding.hint) == (
            ("token_env",), "the environment variable TOKEN is not set", "export TOKEN=…",
        )  # fmt: skip
    assert [*table.check({"TOKEN": "x" * 32}, ())] == []


def test_a_short_token_that_somebody_chose_is_a_warning(tmp_path: Path) -> None:
    (warning,) = Dashboard(bind="127.0.0.1:9465", token_env="TOKEN").check({"TOKEN": "x" * 31}, ())
    assert (warning.is_warning, warning.path, warning.hint) == (
        True,
        ("token_env",),
        "make it longer: export TOKEN=$(openssl rand -hex 32)",
    )
    path = tmp_path / "my token"
    path.write_text("short\n")
    (warning,) = Dashboard(bind="127.0.0.1:9465", token_file=str(path)).check({}, ())
    assert (warning.is_warning, warning.path, warning.hint) == (
        True,
        ("token_file",),
        f"make it longer: openssl rand -hex 32 > '{path}'",
    )
    assert "has 5 characters" in warning.message


def test_a_token_that_is_sent_to_an_operator_does_not_open_the_page() -> None:
    table = Dashboard(bind="127.0.0.1:9465", token_env="T")
    for url, name, count in (("http://a", "T", 1), ("http://a", "OTHER", 0), (None, "T", 0)):
        others: Any = {"operator": SimpleNamespace(url=url, token_env=name)}
        assert len([*table.findings_against_other_tables(others)]) == count
    assert [*table.findings_against_other_tables({})] == []
