"""`${server.NAME.url}`, `.host` and `.port` in env and command."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolctl import PoolConfig
from poolctl.config import with_addresses
from poolctl.config.edit.toml_writer import escaped, table_text
from tests.config_files import load_text, told

POOL = """
[[server]]
name = "users.v1"
bind = ":8081"
app = "a:b"
[[server]]
name = "chosen"
bind = "127.0.0.1:auto"
app = "a:b"
[[server]]
name = "six"
bind = "[::1]:8082"
app = "a:b"
tls = { cert = "c.pem", key = "k.pem" }
[[server]]
name = "sock"
bind = "unix:/run/a.sock"
app = "a:b"
[[server]]
name = "given"
bind = "fd:3"
expose = "https://shop.example"
app = "a:b"
[[server]]
name = "inherited"
bind = "fd:4"
app = "a:b"
[[server]]
name = "queue"
command = ["q"]
"""


def front(env: str) -> str:
    return f"{POOL}[[server]]\nname = 'front'\nbind = '127.0.0.1:80'\napp = 'a:b'\nenv = {{ X = '{env}' }}\n"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${server.users.v1.url}", "http://localhost:8081"),
        ("${server.users.v1.host}:${server.users.v1.port}", "127.0.0.1:8081"),
        ("${server.six.url} ${server.six.host} ${server.six.port}", "https://[::1]:8082 ::1 8082"),
        ("${server.sock.url}", "unix:/run/a.sock"),
        ("${server.given.url}", "https://shop.example"),
        ("${server.front.port}", "80"),
        ("$${server.users.v1.url}", "${server.users.v1.url}"),
        ("$$${server.users.v1.port}", "$${server.users.v1.port}"),
        ("${HELD}", "${server.users.v1.url} $${server.a}"),
        ("a $${B} ${server.sock.url}", "a ${B} unix:/run/a.sock"),
    ],
)
def test_reference_becomes_the_address_of_the_server(tmp_path: Path, written: str, value: str) -> None:
    env = {"HELD": "${server.users.v1.url} $${server.a}"}
    config = load_text(tmp_path, front(written), env=env)
    assert config.problems == []
    assert with_addresses(config)[-1].env["X"] == value


def test_reference_waits_for_a_port_that_is_not_chosen(tmp_path: Path) -> None:
    config = load_text(tmp_path, front("${server.chosen.url}"))
    assert with_addresses(config)[-1].env["X"] == "${server.chosen.url}"
    chosen = config[1].at(config[1].address.with_port(8100))
    assert with_addresses([config[-1]], [chosen])[0].env["X"] == "http://127.0.0.1:8100"


def test_reference_works_in_a_command_and_in_defaults(tmp_path: Path) -> None:
    text = '[defaults]\nenv = { USERS = "${server.users.v1.url}" }\n' + POOL
    text += (
        '[[server]]\nname = "c"\nbind = ":90"\ncommand = ["c", "--to=${server.users.v1.port}", "{port}"]\n'
    )
    config = load_text(tmp_path, text)
    assert config.problems == []
    found = with_addresses(config)
    assert found[-1].command == ("c", "--to=8081", "{port}")
    assert {each.env["USERS"] for each in found} == {"http://localhost:8081"}
    assert found[-1].given == config[-1].given | {"env"}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("${server.user.v1.url}", "there is no server 'user.v1'; did you mean 'users.v1'?"),
        ("${server.zzzzz.url}", "there is no server 'zzzzz'; name a server of this pool"),
        (
            "${server.sock.uri}",
            "${server.sock.uri} is no reference; write ${server.sock.url} or ${server.sock.host} or",
        ),
        ("${server.sock}", "${server.sock} is no reference; write ${server.sock.url}"),
        ("${server.sock.port}", "'sock' has a Unix socket and no port; write ${server.sock.url}"),
        ("${server.queue.url}", "'queue' has no address; refer to a server with 'bind'"),
        ("${server.inherited.url}", "the address of 'inherited' is that of the socket it inherits"),
        ("${server.given.port}", "the address of 'given' is that of the socket it inherits"),
    ],
)
def test_wrong_reference_is_reported_with_its_place(tmp_path: Path, written: str, said: str) -> None:
    text = told(tmp_path, front(written))
    assert said in text
    assert text.startswith(f"{tmp_path}/pool.toml:35:9: server[7].env.X: ")
    assert len(text.splitlines()) == 1


def test_reference_in_a_server_with_other_problems_is_reported_too(tmp_path: Path) -> None:
    text = told(tmp_path, front("${server.nope.url}") + "workers = 'x'\n")
    assert "there is no server 'nope'" in text
    assert len(text.splitlines()) == 2


def test_reference_to_a_server_with_problems_is_no_second_problem(tmp_path: Path) -> None:
    assert len(told(tmp_path, front("${server.bad.url}") + "[[server]]\nname = 'bad'\n").splitlines()) == 1


def test_reference_elsewhere_is_reported(tmp_path: Path) -> None:
    text = told(tmp_path, front("x") + 'tags = ["${server.sock.url}"]\n')
    assert "server[7].tags[0]: the address of a server can be used in 'env' and 'command' only" in text


def test_configuration_with_references_can_be_written_and_read_again(tmp_path: Path) -> None:
    config = load_text(tmp_path, front("${server.sock.url} $${server.a} $${B}"))
    written = "\n".join(table_text("[[server]]", escaped(each.to_dict())) for each in config)
    again = load_text(tmp_path, written)
    assert again.problems == []
    assert with_addresses(again)[-1].env == {"X": "unix:/run/a.sock ${server.a} ${B}"}


def test_python_pool_of_a_file_has_the_addresses(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(
        '[[server]]\nname = "a"\nbind = "127.0.0.1:auto"\napp = "a:b"\n'
        '[[server]]\nname = "b"\nbind = "127.0.0.1:auto"\napp = "a:b"\nenv = { A = "${server.a.url}" }\n'
    )
    first, second = PoolConfig.load(file).pool().values()
    assert second.config.env["A"] == first.expose
    assert "auto" not in first.expose
