"""[operator]: what it may say, what is wrong with it, and what its gateway is given of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.config import Tables, secret_variable_names
from poolctl.config.values.problems import Finding
from poolctl.features.operator.pool_operator import settings_of
from poolctl.features.operator.table import OperatorTable
from poolctl.supervisor.takeover.state_store import StoredConfiguration, decoded, encoded
from tests.certificates import certificate
from tests.config_files import SERVER, load_text, told

GATEWAY = '[gateway]\nbind = ":8081"\n'


def operator(tmp_path: Path, *keys: str, env: dict[str, str] | None = None, gateway: str = GATEWAY) -> str:
    """What is wrong with an [operator] of these keys."""
    return told(tmp_path, SERVER + gateway + "[operator]\n" + "\n".join(keys), env=env)


def tables(tmp_path: Path, *keys: str, env: dict[str, str] | None = None) -> Tables:
    config = load_text(tmp_path, SERVER + GATEWAY + "[operator]\n" + "\n".join(keys), env=env)
    assert config.problems == []
    return config.tables


def table(tmp_path: Path, *keys: str) -> OperatorTable:
    found = tables(tmp_path, *keys).get(OperatorTable)
    assert found is not None
    return found


def test_without_the_table_there_is_none(tmp_path: Path) -> None:
    assert load_text(tmp_path, SERVER).tables.get(OperatorTable) is None


def test_defaults_of_a_client(tmp_path: Path) -> None:
    found = table(tmp_path, 'url = "http://operator:8013/"')
    assert dict(found) == {
        "url": "http://operator:8013", "endpoint": "/informer/incoming-request", "retry": 30.0, "namespace": None,
        "token_env": None, "ca": None, "bind": None, "mode": "0600", "tls": False, "trusted": (),
    }  # fmt: skip


def test_table_without_a_role_is_a_problem(tmp_path: Path) -> None:
    assert "neither url nor bind is given" in operator(tmp_path)


@pytest.mark.parametrize(
    "key", ['token_env = "T"', 'trusted = ["10.0.0.0/8"]', 'tls = { cert = "c", key = "k", ca = "a" }']
)
def test_address_needs_a_token_certificates_of_clients_or_trusted_ones(tmp_path: Path, key: str) -> None:
    bind = 'bind = "127.0.0.1:8013"'
    problem = operator(tmp_path, bind)
    assert "127.0.0.1:8013 lets everyone who reaches it start servers" in problem
    assert "add token_env, tls =" in problem
    assert operator(tmp_path, bind, 'tls = { cert = "c", key = "k" }') == problem
    tables(tmp_path, bind, key)


def test_unix_socket_is_guarded_by_its_mode(tmp_path: Path) -> None:
    found = table(tmp_path, 'bind = "unix:operator.sock"')
    assert (found.bind, found.mode) == (f"unix:{tmp_path}/operator.sock", "0600")
    for mode in ('"0660"', '"660"', '"0o660"'):
        found = table(tmp_path, 'bind = "unix:operator.sock"', f"mode = {mode}")
        assert found is not None
        assert found.mode == "0660"


@pytest.mark.parametrize("mode", ["660", "0o660", '"rw"', '"0888"', "true", '"07777"', "-1"])
def test_other_modes_are_refused(tmp_path: Path, mode: str) -> None:
    assert "is not allowed here" in operator(tmp_path, 'bind = "unix:operator.sock"', f"mode = {mode}")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (['url = "http://a:1"', 'trusted = ["10.0.0.0/8"]'], "trusted is for bind, which is missing"),
        (['url = "http://a:1"', 'mode = "0660"'], "mode is for bind, which is missing"),
        (['bind = "unix:o"', 'retry = "5s"'], "retry is for url, which is missing"),
        (['bind = "unix:o"', 'trusted = ["10.0.0.0/8"]'], "clients of a Unix socket have no address"),
        (['bind = ":8013"', 'token_env = "T"', 'mode = "0600"'], "is not a Unix socket"),
        (['bind = ":8013"', 'trusted = ["*"]'], "lets everyone who reaches it start servers"),
        (['bind = ":8013"', 'trusted = ["10.0.0.0/99"]'], "is neither an IP address nor a network"),
        (['url = "ftp://a"'], "this is not the address of an operator"),
        (['url = "http://a:port"'], "this is not the address of an operator"),
        (['url = "http://user:secret@a"'], "the address has credentials"),
        (['url = "http://a/?x=1"'], "the address has more than a path"),
        (['url = "http://a:1"', 'endpoint = "wake"'], "endpoint"),
        (['url = "http://a:1"', 'retry = "0s"'], "out of range"),
        (['bind = "127.0.0.1:8080"', 'token_env = "T"'], "8080"),  # the server's
        (['bind = ":8081"', 'token_env = "T"'], "8081"),  # the gateway's
    ],
)
def test_problems_name_the_place_and_the_fix(tmp_path: Path, keys: list[str], problem: str) -> None:
    found = operator(tmp_path, *keys)
    assert problem in found
    assert "secret" not in found


@pytest.mark.parametrize(
    ("url", "bind"),
    [
        ("http://127.0.0.1:8013", "127.0.0.1:8013"),
        ("http://localhost:8013/base", ":8013"),
        ("http://127.0.0.1", ":80"),
        ("unix:o", "unix:o"),
        ("http://[::1]:8013", ":8013"),
        ("http://127.5.0.1:8013", "0.0.0.0:8013"),
        ("http://10.0.0.7:8013", "10.0.0.7:8013"),
        ("https://localhost", ":443"),
    ],
)
def test_pool_does_not_inform_itself(tmp_path: Path, url: str, bind: str) -> None:
    guard = "" if bind.startswith("unix") else 'trusted = ["10.0.0.0/8"]'
    found = operator(tmp_path, f'url = "{url}"', f'bind = "{bind}"', guard)
    assert "the pool would inform itself" in found


def test_both_roles_stand_side_by_side(tmp_path: Path) -> None:
    tables(tmp_path, 'url = "http://10.0.0.7:8013"', 'bind = ":8013"', 'trusted = ["10.0.0.0/8"]')
    tables(tmp_path, 'url = "http://10.0.0.7:8013"', 'bind = "unix:o"', 'token_env = "T"')


def test_a_token_that_is_sent_to_the_operator_opens_no_address_of_this_pool(tmp_path: Path) -> None:
    url, token = 'url = "http://10.0.0.7:8013"', 'token_env = "T"'
    both = operator(tmp_path, url, 'bind = ":8013"', token)
    assert "operator.token_env: the token of T is sent to url, and opens bind" in both
    assert "tls = { cert = …, key = …, ca = … } for both" in both
    tls = 'tls = { cert = "c", key = "k", ca = "a" }'
    tables(tmp_path, url, 'bind = ":8013"', tls)
    registration = SimpleNamespace(
        client=[SimpleNamespace(token_env="OTHER"), SimpleNamespace(token_env="T")]
    )
    for keys, problems in (
        (
            {"url": "http://a", "token_env": "T"},
            ["the token of T is sent to the operator, and opens [registration]"],
        ),
        ({"url": "http://a", "token_env": "MINE"}, []),
        ({"bind": "127.0.0.1:8013", "token_env": "T"}, []),
    ):
        others: Any = {"gateway": None, "registration": registration}
        found = [*OperatorTable(**keys).findings_against_other_tables(others)]
        assert [each.message.removesuffix(" of this pool") for each in found] == problems


def test_a_short_token_of_clients_is_a_warning(tmp_path: Path) -> None:
    accepting = table(tmp_path, 'bind = ":8013"', 'token_env = "T"')
    assert [*accepting.check({"T": "x" * 32}, ())] == []
    (warning,) = accepting.check({"T": "x" * 31}, ())
    assert (warning.is_warning, warning.path, "31 characters" in warning.message) == (
        True,
        ("token_env",),
        True,
    )
    assert warning.hint == "make it longer: export T=$(openssl rand -hex 32)"
    reporting = table(tmp_path, 'url = "https://a"', 'token_env = "T"')
    assert [*reporting.check({"T": "x"}, ())] == [], "the operator judges it"


def test_client_without_a_gateway_is_a_problem(tmp_path: Path) -> None:
    problem = operator(tmp_path, 'url = "http://a:1"', gateway="")
    assert "without a gateway there are no requests to inform an operator of" in problem
    assert operator(tmp_path, 'bind = "unix:o"', gateway="") == ""


def test_missing_token_and_certificates_are_found_outside(tmp_path: Path) -> None:
    text = SERVER + GATEWAY + '[operator]\nurl = "https://a"\ntoken_env = "POOL_T"\nca = "ca.pem"\n'
    config = load_text(tmp_path, text)
    found = "\n".join(str(each) for each in config.check_external(names=()))
    assert "the environment variable POOL_T is not set" in found
    assert "ca.pem" in found


def test_check_finds_token_certificate_and_authorities(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    tls = f'tls = {{ cert = "{cert}", key = "{key}" }}'
    (tmp_path / "ca.pem").write_bytes(cert.read_bytes())
    whole = table(tmp_path, 'url = "https://a"', 'token_env = "T"', 'ca = "ca.pem"', tls)
    assert [*whole.check({"T": "x"}, ())] == []
    unset = Finding(("token_env",), "the environment variable T is not set", "export T=…")
    assert [*whole.check({"T": " "}, ())] == [*whole.check({}, ())] == [unset]
    for path in (cert, tmp_path / "ca.pem"):
        path.unlink()
    problems = [*whole.check({"T": "x"}, ())]
    assert {each.path for each in problems[:-1]} == {("tls", "cert")}
    assert (problems[-1].path, problems[-1].found) == (("ca",), f"{tmp_path}/ca.pem")
    assert problems[-1].message.startswith(f"{tmp_path}/ca.pem: ")
    assert not any(problem.is_warning for problem in problems)
    assert [*table(tmp_path, 'url = "https://a"').check({}, ())] == []


@pytest.mark.parametrize(
    ("url", "bind"),
    [
        ("http://127.0.0.1:8013", "127.0.0.1:8014"),
        ("http://10.0.0.7:8013", ":8013"),
        ("https://localhost", ":80"),
        ("unix:a", "unix:b"),
        ("http://[::2]:8013", "[::1]:8013"),
    ],
)
def test_pool_may_inform_another_address(tmp_path: Path, url: str, bind: str) -> None:
    tables(
        tmp_path, f'url = "{url}"', f'bind = "{bind}"', "" if "unix" in bind else 'trusted = ["10.0.0.0/8"]'
    )


def test_variables_of_the_table_are_secrets_of_the_pool(tmp_path: Path) -> None:
    tls = 'tls = { cert = "c", key = "k", password_env = "POOL_K" }'
    found = tables(tmp_path, 'url = "https://a"', 'token_env = "POOL_T"', tls)
    assert secret_variable_names((), found) == {"POOL_T", "POOL_K"}


def test_gateway_is_given_the_settings_and_the_name_of_the_pool(tmp_path: Path) -> None:
    found = table(tmp_path, 'url = "https://a/base"', 'token_env = "POOL_T"', 'retry = "5s"', 'ca = "ca.pem"')
    settings = settings_of(found, {"POOL_T": " t0k3n\n"}, "shop")
    assert settings is not None
    assert (settings.url, settings.namespace, settings.token) == ("https://a/base", "shop", "t0k3n")
    assert (settings.retry_seconds, settings.ca) == (5.0, f"{tmp_path}/ca.pem")
    assert settings_of(table(tmp_path, 'bind = "unix:o"'), {}, "shop") is None


def test_successor_is_left_the_table(tmp_path: Path) -> None:
    found = tables(tmp_path, 'url = "https://a"', 'ca = "ca.pem"')
    assert decoded(encoded(StoredConfiguration("shop", [], tables=found))).tables == found
