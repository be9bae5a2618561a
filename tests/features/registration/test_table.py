"""[registration]: its keys, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolctl.config import secret_variable_names
from poolctl.config.values.problems import Finding
from poolctl.features.registration.table import RegistrationTable
from poolctl.supervisor.takeover.state_store import StoredConfiguration, decoded, encoded
from tests.certificates import certificate
from tests.config_files import load_text

ROUTE = '[[route]]\nalias = "users"\nregister = true\n'
CLIENT = '[[registration.client]]\ntoken_env = "REG_TOKEN"\nroutes = ["users"]\n'
TABLE = '[registration]\nbind = "127.0.0.1:8014"\n'


def test_table_has_clients_whose_variables_no_server_gets(tmp_path: Path) -> None:
    text = (
        f'{ROUTE}{TABLE}{CLIENT}allow = ["10.0.0.0/8"]\n{CLIENT.replace("REG_", "SECOND_")}name = "second"\n'
    )
    config = load_text(tmp_path, text)
    assert config.problems == []
    table = config.tables.get(RegistrationTable)
    assert table is not None
    assert [each.label for each in table.client] == ["REG_TOKEN", "second"]
    assert [each.allow for each in table.client] == [("10.0.0.0/8",), ()]
    assert {"REG_TOKEN", "SECOND_TOKEN"} <= secret_variable_names((), config.tables)
    assert config.tables.to_dict()["registration"]["client"][0]["token_env"] == "REG_TOKEN"  # type: ignore[index]


@pytest.mark.parametrize("bind", ["[::1]:8014", "localhost:8014", "unix:reg.sock", "127.9.9.9:1"])
def test_address_of_this_machine_needs_no_tls(tmp_path: Path, bind: str) -> None:
    assert load_text(tmp_path, f'{ROUTE}[registration]\nbind = "{bind}"\n{CLIENT}').problems == []


def test_address_for_other_machines_needs_tls(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    for bind in (
        "0.0.0.0:8014",
        ":8014",
        "[::]:8014",
        "10.0.0.7:8014",
        "[fe80::1]:8014",
        "host.example:8014",
    ):
        table = f'{ROUTE}[registration]\nbind = "{bind}"\n'
        (problem,) = load_text(tmp_path, table + CLIENT).problems
        assert "registration.bind" in str(problem)
        assert "without tls they send tokens in the clear" in str(problem)
        assert (
            load_text(tmp_path, f'{table}tls = {{ cert = "{cert}", key = "{key}" }}\n{CLIENT}').problems == []
        )


def test_mode_is_for_a_unix_socket(tmp_path: Path) -> None:
    for bind, problems in (("127.0.0.1:8014", ["is not a Unix socket"]), ("unix:reg.sock", [])):
        found = load_text(
            tmp_path, f'{ROUTE}[registration]\nbind = "{bind}"\nmode = "0660"\n{CLIENT}'
        ).problems
        assert [text for text in problems if text in str(found)] == problems
        assert len(found) == len(problems)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (TABLE + CLIENT, "without a gateway there are no routes to register for"),
        (ROUTE + TABLE, "registration.client: 'client' is missing"),
        (f"{ROUTE}[registration]\n{CLIENT}", "registration.bind: 'bind' is missing"),
        (f"{ROUTE}{TABLE}client = []\n", "no client may register"),
        (f"{ROUTE}{TABLE}{CLIENT}{CLIENT}", "registration.client[1].token_env: the token of REG_TOKEN is another"),
        (
            f'{ROUTE}{TABLE}{CLIENT}{CLIENT.replace("REG_", "B_")}name = "REG_TOKEN"\n',
            "registration.client[1].name: the name 'REG_TOKEN' is taken",
        ),
        (f'{ROUTE}{TABLE}{CLIENT.replace("users", "user")}', "no route 'user' of the files accepts services"),
        (f'{ROUTE}{TABLE}{CLIENT.replace(chr(34) + "users" + chr(34), "")}', "it may register nothing"),
        (f'{ROUTE}{TABLE}{CLIENT}allow = ["10.0.0.0/99"]\n', "registration.client[0].allow"),
        (f'{ROUTE}{TABLE}{CLIENT}token = "abc"\n', "unknown key 'token'"),
        (f'{ROUTE}[metrics]\nbind = "127.0.0.1:8014"\n{TABLE}{CLIENT}', "8014"),
    ],
)  # fmt: skip
def test_wrong_table_is_a_problem_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    found = "\n".join(map(str, load_text(tmp_path, text).problems))
    assert problem in found


def test_keys_that_are_left_out_have_their_defaults(tmp_path: Path) -> None:
    table = load_text(tmp_path, ROUTE + TABLE + CLIENT).tables.get(RegistrationTable)
    assert table is not None
    (client,) = table.client
    assert dict(client) == {"name": None, "token_env": "REG_TOKEN", "routes": ("users",), "allow": ()}
    assert (table.bind, table.mode, table.tls) == ("127.0.0.1:8014", "0600", False)


def test_check_finds_tokens_that_are_missing_shared_or_short() -> None:
    clients = [{"token_env": name, "routes": ("users",)} for name in ("A", "B", "C", "D")]
    table = RegistrationTable(bind="127.0.0.1:8014", client=tuple(clients))

    def path(index: int) -> tuple[str | int, ...]:
        return "client", index, "token_env"

    tokens = {"A": "x" * 32, "B": f" {'x' * 32}\n", "C": "y" * 31, "D": " "}
    shared, warning, missing = table.check(tokens, ())
    assert shared == Finding(
        path(1), "the token in B is that of A too", "give each client a token of its own"
    )
    assert missing == Finding(path(3), "the environment variable D is not set", "export D=…")
    assert (warning.path, warning.hint, warning.is_warning) == (
        path(2), "make it longer: export C=$(openssl rand -hex 32)", True,
    )  # fmt: skip
    assert warning.message.startswith("the token in C has 31 characters, and can be guessed")


def test_certificate_that_is_missing_is_found_by_check(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    table = RegistrationTable(
        bind=":8014",
        tls={"cert": str(cert), "key": str(key)},
        client=({"token_env": "A", "routes": ("users",)},),
    )
    assert [*table.check({"A": "x" * 32}, ())] == []
    cert.unlink()
    (finding,) = table.check({"A": "x" * 32}, ())
    assert (finding.path, finding.is_warning) == (("tls", "cert"), False)


def test_route_that_accepts_nothing_is_named_with_its_place(tmp_path: Path) -> None:
    closed = '[[route]]\nalias = "closed"\nto = "http://a:80"\npath = "/closed"\n'
    text = ROUTE + closed + TABLE + CLIENT.replace('["users"]', '["users", "closed"]')
    (problem,) = load_text(tmp_path, text).problems
    assert "registration.client[0].routes[1]: no route 'closed' of the files accepts services" in str(problem)
    assert 'add [[route]] with alias = "closed" and register = true' in str(problem)


def test_successor_is_left_the_table(tmp_path: Path) -> None:
    tables = load_text(tmp_path, ROUTE + TABLE + CLIENT).tables
    assert decoded(encoded(StoredConfiguration("shop", [], tables=tables))).tables == tables
