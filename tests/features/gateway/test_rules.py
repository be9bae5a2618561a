"""The rules of the gateway's tables: among each other, and with the servers of the pool."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from poolctl import PoolConfig
from poolctl.config import Draft, Tables, json_schema, load
from poolctl.config.model.pool_tables import NONE
from poolctl.errors import PoolValidateError
from poolctl.features.gateway.rules import GatewayRules
from poolctl.features.gateway.table import GatewayConfig, RouteConfig, StreamConfig
from tests.config_files import load_text, told
from tests.configuration import server
from tests.features.gateway.test_table import WEB
from tests.unit.core.ordered_core import web
from tests.unit.supervisor.desk import Desk

ROUTE = '[[route]]\nto = "web"\n'


@pytest.mark.parametrize(
    ("text", "binds"),
    [
        ("[gateway]\n", [(":8080", False)]),
        (ROUTE, [(":8080", False)]),
        ('[[stream]]\nbind = ":5432"\nto = "10.0.0.5:5432"\n', []),
        ('[gateway]\nbind = "127.0.0.1:80"\n', [("127.0.0.1:80", False)]),
        ('[gateway]\nbind = [":80", { bind = ":443", tls = true }]\n', [(":80", False), (":443", True)]),
    ],
)
def test_each_of_these_tables_turns_the_gateway_on(
    tmp_path: Path, text: str, binds: list[tuple[str, bool]]
) -> None:
    gateway = load_text(tmp_path, text + WEB).tables.get(GatewayConfig)
    assert gateway is not None
    assert [(each.bind, each.tls) for each in gateway.bind] == binds


def test_routes_of_several_files_add_up_and_merge_by_alias(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text(WEB + '[[route]]\nalias = "x"\nhost = "a.example"\nto = "web"\n[[route]]\nto = "web"\n')
    second.write_text(
        '[[route]]\nalias = "x"\npath = "/v2"\n[[route]]\nalias = "y"\nto = "wob"\nmethod = 1\n'
    )
    config = PoolConfig.load([first, second], {})
    assert [(each.label, each.host, each.path) for each in config.tables.all(RouteConfig)] == [
        ("x", "a.example", "/v2"), ("web", "", "/"),
    ]  # fmt: skip
    (problem,) = (str(each) for each in config.problems)
    assert problem.startswith(f"{second}:7:1: route[1].method: unknown key 'method'; did you mean 'methods'?")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[gateway]\nbind = "127.0.0.1:9001"\n', "gateway.bind: the address 127.0.0.1:9001 is taken by 'web'"),
        ('[gateway]\nbind = ["127.0.0.1:90", ":9001"]\n', "gateway.bind[1]: :9001 (all addresses) overlaps"),
        ('[gateway]\nbind = ":9464"\n[metrics]\n', "overlaps 127.0.0.1:9464 of '[metrics]'"),
        ('[gateway]\nbind = [":80", ":80"]\n', "is taken by '[gateway]'"),
        ('[gateway]\n[[stream]]\nbind = ":8080"\nto = "a:1"\n', "stream[0].bind: the address 0.0.0.0:8080 is taken"),
        ('[[stream]]\nbind = ":53"\nto = "a:1"\n' * 2, "is taken by '[[stream]] a:1'"),
    ],
)  # fmt: skip
def test_address_that_is_taken_is_a_problem(tmp_path: Path, text: str, words: str) -> None:
    assert words in told(tmp_path, WEB + text)


TEXTS = {
    "toml": WEB + '[gateway]\nbind = ":80"  # edge\n\n[[route]]\nto = ["web"]\n',
    "yaml": "gateway: { bind: ':80' }  # edge\n"
    "server:\n- name: web\n  bind: 127.0.0.1:9001\n  app: a:b\nroute:\n- to: [web]\n",
    "json": '{"gateway": {"bind": ":80"}, "server": [{"name": "web", "bind": "127.0.0.1:9001", "app": "a:b"}],'
    ' "route": [{"to": ["web"]}]}',
}


def test_server_to_which_a_route_leads_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(TEXTS["toml"] + server("more", bind=":2", app="a:b"))
    draft = Draft([str(path)], {})
    draft.remove("web")
    with pytest.raises(PoolValidateError) as refused:
        draft.load_validated()
    (problem,) = refused.value.exceptions
    assert str(problem).startswith(f"{path}:10:7: route[0].to[0]: there is no server 'web'")


@pytest.mark.parametrize(("bind", "taken"), [("127.0.0.1:8443", "'[gateway]'"), (":5432", "'[[stream]] db'")])
async def test_server_that_is_added_on_an_address_of_the_gateway_is_refused(bind: str, taken: str) -> None:
    desk = Desk(web("a"))
    stream = StreamConfig(bind="127.0.0.1:5432", to="10.0.0.5:5432", alias="db")
    gateway = GatewayConfig(bind=("127.0.0.1:8080", ":8443"))
    desk.files.tables = Tables(gateway=gateway, stream=(stream,))
    table = {"name": "new", "bind": bind, "app": "a:b"}
    answer = await desk.ask("add", server=table, base_dir="/")
    assert answer["exit_code"] == 8, answer
    assert taken in str(answer["errors"])
    assert list(desk.states()) == ["a"]


def test_a_stream_that_is_there_twice_needs_two_brackets(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text("[stream]\n[stream]\n")
    with pytest.raises(PoolValidateError) as refused:
        load(tmp_path / "pool.toml", {})
    assert ":2:1: [stream] is there twice; write [[stream]], with two brackets" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[route]]\n", "route[0].to: 'to' is missing; add to = …, or register = true for services"),
        ("[[route]]\nregister = true\n", "route[0].alias: 'alias' is missing; add alias = …"),
        ('[[route]]\nto = ["web", "10.0.0.1:80"]\n', "route[0].to[1]: '10.0.0.1:80' is not a target"),
        ('[[route]]\nto = "ftp://a"\n', "route[0].to: 'ftp://a' has the scheme 'ftp'"),
        ('[gateway]\nbind = ["nowhere:port"]\n', "gateway.bind[0]: "),
        (
            '[[route]]\nto = "web"\n[[route]]\nto = "wob"\npath = "/b"\n',
            "route[1].to: there is no server 'wob'",
        ),
    ],
)
def test_problem_is_reported_at_its_key_with_the_fix(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in told(tmp_path, WEB + text)


@pytest.mark.parametrize(
    "text", ["[[route]]\nregister = true\nalias = 'a'\n", "[[route]]\nredirect = 'https'\n"]
)
def test_route_without_a_target_registers_or_redirects(tmp_path: Path, text: str) -> None:
    assert "missing" not in told(tmp_path, WEB + text)


def test_rules_are_those_of_the_gateways_tables(tmp_path: Path) -> None:
    rules = GatewayRules()
    stream = '[[stream]]\nbind = "127.0.0.1:53"\nto = "10.0.0.5:53"\n'
    text = f'{WEB}[gateway]\nbind = ["127.0.0.1:80", ":443"]\n[[route]]\nto = "http://a:80"\nhealth = "/up"\n{stream}'
    config = load_text(tmp_path, text)
    tables, servers = config.tables, [*config]
    assert [(each.path, each.name, each.address.key) for each in rules.listed_bind_addresses(tables)] == [
        (("gateway", "bind", 0), "[gateway]", "127.0.0.1:80"),
        (("gateway", "bind", 1), "[gateway]", "0.0.0.0:443"),
        (("stream", 0, "bind"), "[[stream]] 10.0.0.5:53", "127.0.0.1:53"),
    ]
    assert [*rules.listed_bind_addresses(Tables())] == []
    assert [each.alias for each in rules.routes(servers, tables)] == ["a:80", "10.0.0.5:53"]
    assert [*rules.problems(servers, tables, NONE)] == [*rules.warnings(servers, tables, complete=True)] == []
    assert [*rules.check(servers, tables, {}, datetime.now(UTC))] == []


def test_pool_without_haproxy_does_not_start(tmp_path: Path) -> None:
    rules, servers = GatewayRules(), [*load_text(tmp_path, WEB)]
    missing = Tables(gateway=GatewayConfig(program="/no/haproxy"))
    ((server, finding),) = rules.startup_problems(servers, missing)
    assert (server, finding.message) == (None, "/no/haproxy is not installed")


def test_schema_allows_the_short_forms() -> None:
    found = json_schema()["$defs"]
    tls = found["GatewayListener"]["properties"]["tls"]
    one, listed = tls["anyOf"][1:3]
    assert tls["anyOf"][0] == {"type": "boolean"}
    assert listed == {"type": "array", "items": one, "minItems": 1}
    assert not {"type", "items"} & {*tls}
    for table, key, least in (
        ("GatewayConfig", "bind", 0),
        ("RouteConfig", "to", 1),
        ("StreamConfig", "to", 1),
    ):
        value = found[table]["properties"][key]
        text, single, several = value["anyOf"]
        assert text == {"type": "string"}
        assert several == {"type": "array", "items": {"anyOf": [text, single]}, "minItems": least}
        assert not {"type", "items"} & {*value}
    assert found["GatewayConfig"]["properties"]["bind"]["default"] == ":8080"
    for table, key in (("RouteConfig", "redirect"), ("RouteConfig", "sticky"), ("RouteTarget", "health")):
        assert "string" in [each.get("type") for each in found[table]["properties"][key]["anyOf"]]
    assert found["RouteConfig"]["anyOf"] == [
        {"required": ["to"]},
        {"required": ["redirect"]},
        {"properties": {"register": {"const": True}}, "required": ["register", "alias"]},
    ]
