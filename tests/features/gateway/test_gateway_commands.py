"""Commands of every pool in one with a gateway: init, validate, show, config, logs; and the documents of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from poolctl.config import load
from poolctl.features.gateway.routes import routes_of
from poolctl.logs.log_line import stamp
from poolctl.routing.route import Route
from poolctl.routing.route_report import BackendReport, RouteReport
from tests.stand_in import always, item
from tests.unit.cli.conftest import Command, Supervised
from tests.unit.cli.test_answers import FIELDS
from tests.unit.cli.test_logs import NOW, logs

__all__ = ["logs"]

GATEWAY = """
[gateway]
bind = "127.0.0.1:8099"

[[route]]
to = "users"
"""


@pytest.mark.usefixtures("installed_haproxy")
def test_with_a_gateway_two_servers_have_routes_by_path_and_by_host(
    poolctl: Command, directory: Path
) -> None:
    said = poolctl("init", "fresh", "--gateway", "--app")
    assert said == (0, "wrote fresh/pool.toml and fresh/hello.py; next: poolctl start\n", "")
    assert poolctl("-c", "fresh/pool.toml", "validate", "--import") == (0, "2 servers, ok\n", "")
    config = load(str(directory / "fresh" / "pool.toml"), {})
    routes = [each for each in routes_of(config, config.tables) if isinstance(each, Route)]
    assert [(each.alias, each.host, each.path, each.to[0].key) for each in routes] == [
        ("web", "", "/", "web"), ("api", "", "/api", "api"), ("api-by-host", "api.localhost", "/", "api"),
    ]  # fmt: skip


@pytest.mark.usefixtures("installed_haproxy")
def test_routes_to_other_machines_need_no_server(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text('[[route]]\nto = "http://10.0.0.7:9000"\n')
    assert poolctl("validate").out == "no server, 1 route, ok\n"
    assert (poolctl("list").code, poolctl("status").code) == (0, 3)
    (directory / "pool.toml").write_text('[gateway]\nbind = ":8080"\n')
    assert poolctl("validate").code == 5


def test_show_lists_the_routes_that_lead_to_a_server(
    poolctl: Command, directory: Path, supervised: Supervised
) -> None:
    assert "routes" not in poolctl("show", "users", "-o", "json").json["items"][0]
    text = (directory / "pool.toml").read_text()
    routes = '[[route]]\nhost = "a"\npath = "/v1"\nto = ["users", "http://b"]\n'
    routes += '[[stream]]\nbind = "127.0.0.1:7000"\nto = "users"\n'
    (directory / "pool.toml").write_text(text + routes)
    lines = poolctl("show", "users").out.splitlines()
    at = lines.index("  routes     users: http://a/v1")
    assert lines[at + 1].strip() == "users: tcp://127.0.0.1:7000"
    others = {each["name"]: each["routes"] for each in poolctl("show", "-o", "json").json["items"]}
    assert [each["alias"] for each in others.pop("users")] == ["users", "users"]
    assert set(map(tuple, others.values())) == {()}


def test_config_of_a_gateway_can_be_loaded_again(poolctl: Command, directory: Path) -> None:
    tables = '[gateway]\nbind = ":8090"\n[[route]]\nto = "users"\nadd_headers = { X-Token = "s3cret" }\n'
    tables += 'set_headers = { Authorization = "s3cret" }\nresponse_headers = { X-Api-Key = "s3cret" }\n'
    with (directory / "pool.toml").open("a") as file:
        file.write(tables)
    masked = poolctl("config").out
    assert masked.startswith("# ******** stands for secrets")
    assert "s3cret" not in masked
    shown = poolctl("config", "--reveal")
    (directory / "again.toml").write_text(shown.out)
    assert poolctl("-c", "again.toml", "config", "--reveal").out == shown.out
    found = poolctl("config", "--reveal", "-o", "json").json
    assert found["route"][0]["add_headers"] == {"X-Token": "s3cret"}
    assert found["route"][0]["set_headers"] == {"Authorization": "s3cret"}
    assert found["gateway"]["bind"] == [{"bind": ":8090", "tls": False, "accept_proxy_protocol": False}]


@pytest.fixture
def gateway_logs(directory: Path, logs: Path) -> None:
    with (directory / "pool.toml").open("a") as file:
        file.write(GATEWAY)
    (logs.parents[1] / "gateway.log").write_text(f"{stamp(NOW - 90)} WARNING: slow\n")
    (logs.parent / "gateway-access.log").write_text(f"{stamp(NOW - 30)} INFO: a request\n")


@pytest.mark.usefixtures("gateway_logs")
def test_gateway_has_its_own_log_and_its_access_log(poolctl: Command) -> None:
    both = "[gateway] | WARNING: slow\n[access]  | INFO: a request\n"
    assert poolctl("logs", "--gateway").out == poolctl("logs", "gateway").out == both
    assert "gateway" not in poolctl("logs").out, "its requests would hide the servers' lines"
    assert (
        poolctl("logs", "users", "--gateway", "-n1").out
        == poolctl("logs", "users", "gateway", "-n1").out
        == ("[gateway] | WARNING: slow\nusers     | new users\n[access]  | INFO: a request\n")
    )
    assert poolctl("logs", "--gateway", "--raw").out == "WARNING: slow\nINFO: a request\n"
    names = [json.loads(line)["name"] for line in poolctl("logs", "--gateway", "-o", "json").out.splitlines()]
    assert names == ["[gateway]", "[access]"]


@pytest.mark.usefixtures("gateway_logs")
def test_server_called_gateway_wins_its_name(poolctl: Command, directory: Path, logs: Path) -> None:
    with (directory / "pool.toml").open("a") as file:
        file.write('[[server]]\nname = "gateway"\nbind = "127.0.0.1:8083"\ncommand = ["sleep", "60"]\n')
    (logs / "gateway.log").write_text(f"{stamp(NOW)} a line\n")
    assert poolctl("logs", "gateway").out == "gateway | a line\n"
    assert poolctl("logs", "gateway", "--gateway").out.endswith("gateway   | a line\n")


def test_gateway_that_has_logged_nothing_is_noted(poolctl: Command, directory: Path) -> None:
    with (directory / "pool.toml").open("a") as file:
        file.write(GATEWAY)
    said = poolctl("logs", "--gateway")
    assert (said.code, said.out) == (0, "")
    assert "`access_log = true` in [gateway]" in said.err


@pytest.mark.parametrize(
    ("command", "element", "extras"),
    [
        ("backends", BackendReport, []),
        ("backends disable a", BackendReport, []),
        ("routes", RouteReport, ["generation", "refused"]),
    ],
)
def test_document_has_the_fields_of_the_answer(
    poolctl: Command, supervised: Supervised, command: str, element: type[object], extras: list[str]
) -> None:
    with supervised(always(item("a"), refused={})):
        document = poolctl(*command.split(), "-o", "json").json
    assert list(document) == ["schema", *extras, "items", "errors"]
    (found,) = document["items"]
    assert sorted(found) == sorted(FIELDS[element])
