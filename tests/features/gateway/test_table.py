"""[gateway], [[route]] and [[stream]]: what a file may say, and what is wrong with it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from poolctl import PoolConfig
from poolctl.config import Draft, Tables
from poolctl.config.model.section import Section
from poolctl.features.gateway.routes import routes_of
from poolctl.features.gateway.table import (
    GatewayConfig,
    RouteConfig,
    RouteRedirect,
    StreamConfig,
)
from poolctl.routing.route import (
    ExcludedRoute,
    Route,
    StreamRoute,
)
from poolctl.supervisor.takeover.state_store import StoredConfiguration, decoded, encoded
from tests.config_files import load_text, told
from tests.configuration import server
from tests.unit.core.ordered_core import web
from tests.unit.supervisor.desk import Desk

WEB = server("web", bind="127.0.0.1:9001", app="a:b", tags=["api"])
MORE = WEB + server("more", bind="127.0.0.1:9002", app="a:b", tags=["api"])


def routes(directory: Path, text: str) -> dict[str, Route | StreamRoute | ExcludedRoute]:
    """The routes of a file without problems, by alias."""
    config = load_text(directory, text)
    assert [str(problem) for problem in config.problems] == []
    found = routes_of(config, config.tables)
    assert len({each.alias for each in found}) == len(found)
    return {each.alias: each for each in found}


def route(directory: Path, text: str) -> Route:
    """The only route of a file without problems."""
    (found,) = routes(directory, text).values()
    assert isinstance(found, Route)
    return found


TIMEOUTS = {"connect": 5.0, "head": 60.0, "idle": 60.0, "total": 0.0, "keep_alive": 1.0}
RATES = {"concurrency": 0, "requests_per_second": 0.0, "burst": 0}
QUEUE = {"queue": 0, "queue_timeout": 5.0}
BACKEND_LIMIT = {"concurrency": 0, **QUEUE}
STREAM_BREAKER = {
    "failures": 5, "rate": 0.5, "minimum_requests": 20, "window": 10.0, "open_for": 10.0, "probes": 1,
}  # fmt: skip
BREAKER = {**STREAM_BREAKER, "statuses": (), "max_open": 0.5}


def test_routes_and_streams_count_as_routes_of_a_pool() -> None:
    route, stream = (
        RouteConfig(to="http://10.0.0.7:80"),
        StreamConfig(bind="0.0.0.0:1", to=("10.0.0.9:5432",)),
    )
    assert Tables(route=(route, route), stream=(stream,)).routes == 3
    assert Tables(gateway=GatewayConfig()).routes == 0


def values(section: Section) -> dict[str, Any]:
    """The value of each key, also of those that were not given."""
    return {key: values(value) if isinstance(value, Section) else value for key, value in section}


def test_keys_that_are_left_out_have_their_defaults() -> None:
    gateway = values(GatewayConfig())
    assert [values(each) for each in gateway.pop("bind")] == [
        {"bind": ":8080", "mode": "0666", "owner": None, "tls": False, "accept_proxy_protocol": False}
    ]
    assert gateway == {
        "program": None, "threads": 1, "user": None, "http2": True, "header_for_host": "Host",
        "traffic_re_enable": 30.0, "trusted_proxies": (), "head_timeout": 10.0, "max_head_size": 16384,
        "max_connections": None, "keep_alive": 75.0, "drain_timeout": 30.0, "access_log": False,
        "timeouts": TIMEOUTS, "backend_limit": BACKEND_LIMIT, "breaker": BREAKER,
    }  # fmt: skip
    route = values(RouteConfig(to=("web",)))
    assert [values(each) for each in route.pop("to")] == [
        {"to": "web", "weight": 1, "health": None, "ca": None, "sni": None, "verify": True}
    ]
    assert route == {
        "alias": None, "host": "", "path": "/", "methods": (), "headers": {}, "register": False,
        "policy": "round-robin", "sticky": None, "strip_path": False, "host_header": "",
        "add_headers": {}, "set_headers": {}, "remove_headers": (), "response_headers": {}, "redirect": None,
        "allow": (), "retries": 0, "max_body_size": None, "buffer_requests": False,
        "repeatable": False,
        "limit": {**RATES, "per_client": RATES}, "backend_limit": BACKEND_LIMIT, "timeouts": TIMEOUTS,
        "breaker": BREAKER, "health": None, "waiting_page": False, "probe_responses": (), "index": 0,
    }  # fmt: skip
    stream = values(StreamConfig(bind=":1", to=("a:1",)))
    assert [values(each) for each in stream.pop("to")] == [{"to": "a:1", "weight": 1, "health": None}]
    assert stream == {
        "alias": None, "bind": ":1", "mode": "0666", "owner": None, "policy": "round-robin",
        "accept_proxy_protocol": False,
        "max_connections": 0, "timeouts": {"connect": 5.0, "idle": 600.0}, "health": None,
        "breaker": STREAM_BREAKER, "index": 0,
    }  # fmt: skip
    assert values(RouteRedirect(to="https")) == {"to": "https", "status": 308}


def test_mode_is_written_for_unix_sockets_only() -> None:
    gateway = GatewayConfig(bind=(":8080", {"bind": "unix:/run/g", "owner": "daemon"})).to_dict()
    assert [(each.get("mode"), each.get("owner")) for each in gateway["bind"]] == [
        (None, None),
        ("0666", "daemon"),
    ]
    streams = [StreamConfig(bind=bind, to=("a:1",)).to_dict().get("mode") for bind in (":1", "unix:/run/s")]
    assert streams == [None, "0666"]


def test_table_is_written_without_what_nothing_sets() -> None:
    route = RouteConfig(to=("web",))
    assert "register" not in route.to_dict()
    assert RouteConfig(alias="a", register=True).to_dict()["register"] is True
    assert not {"limit", "backend_limit", "redirect", "allow", "host"} & {*route.to_dict()}
    limited = RouteConfig(to=("web",), backend_limit={"concurrency": 3}).to_dict()
    assert limited["backend_limit"] == {**QUEUE, "concurrency": 3}
    assert "limit" not in limited
    assert "backend_limit" not in GatewayConfig().to_dict()
    assert GatewayConfig(backend_limit={"queue": 3}).to_dict()["backend_limit"] == {
        **QUEUE,
        "concurrency": 0,
        "queue": 3,
    }


COOKIE_OF_WEB = "poolctl_backend_2bef5066"


@pytest.mark.parametrize(
    ("line", "cookie", "is_secure", "same_site"),
    [
        ("", "", False, "Lax"),
        ('sticky = ""', "", False, "Lax"),
        ('sticky = "shop"', "shop", False, "Lax"),
        ('policy = "sticky"', COOKIE_OF_WEB, False, "Lax"),
        ('sticky = { secure = true, same_site = "none" }', COOKIE_OF_WEB, True, "None"),
        ('policy = "sticky"\nsticky = { cookie = "shop", same_site = "strict" }', "shop", False, "Strict"),
    ],
)
def test_sticky_is_the_name_of_a_cookie_or_a_table(
    tmp_path: Path, line: str, cookie: str, is_secure: bool, same_site: str
) -> None:
    found = route(tmp_path, f'{WEB}[[route]]\nto = "web"\n{line}\n')
    assert (found.sticky_cookie, found.sticky_secure, found.sticky_same_site) == (
        cookie,
        is_secure,
        same_site,
    )


def test_gateway_adds_its_drain_timeout_to_a_stop() -> None:
    gateway = GatewayConfig(drain_timeout=7.0, keep_alive=1.0, timeouts={"head": 3.0})
    assert (gateway.stop_seconds, gateway.has_startup_warnings) == (7.0, True)
    assert gateway.defaults_of_routes() == {"timeouts": {"head": 3.0}}
    assert StreamConfig(bind=":1", to=("a:1",)).label == "a:1"
    assert StreamConfig(alias="db", bind=":1", to=("a:1",)).label == "db"


def test_paths_of_a_listener_are_relative_to_the_file(tmp_path: Path) -> None:
    text = (
        '[gateway]\nbind = [{ bind = "unix:edge.sock", tls = { cert = "edge.pem" } },\n'
        '{ bind = ":443", tls = [{ cert = "a.pem", key = "a.key" }, { cert = "b.pem" }] }]\n'
    )
    gateway = load_text(tmp_path, text + WEB).tables.get(GatewayConfig)
    assert gateway is not None
    one, other = gateway.bind
    assert one.bind == f"unix:{tmp_path}/edge.sock"
    assert [each.cert for each in one.tls] == [f"{tmp_path}/edge.pem"]
    assert [(each.cert, each.key) for each in other.tls] == [
        (f"{tmp_path}/a.pem", f"{tmp_path}/a.key"), (f"{tmp_path}/b.pem", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[route]]\n", "route[0].to: 'to' is missing"),
        ("[route]\nto = 'web'\n", "write [[route]], with two brackets"),
        ("[routes]\nto = 'web'\n", "write [[route]], with two brackets"),
        ("[route]]\nto = 'web'\n", "'[route]]' is no header of a table; write [[route]]"),
        ("[[gateway]\n", "'[[gateway]' is no header of a table; write [gateway]"),
        ("[[route]]\nto = 'web'\nindex = 3\n", "unknown key 'index'"),
        ("[[route]]\nto = 'web'\nhosts = 'a'\n", "did you mean 'host'?"),
        ("[[route]]\nto = 'web'\nhost = 'http://a'\n", "8:1: route[0].host: 'http://a' is not a host"),
        ("[[route]]\nto = ['web', '10.0.0.1:80']\n", 'route[0].to[1]: \'10.0.0.1:80\' is not a target: write "http'),
        ("[[route]]\nto = 5\n", "route[0].to: 5 is not allowed here; allowed is a server's name"),
        ("[[route]]\nto = 'a'\nlimit = 5\n", "allowed is a table such as { concurrency = 100 }"),
        ("[[route]]\nto = 'a'\nheaders = { 'X y' = '' }\n", 'allowed is the name of a header, such as "X-Beta"'),
        ("[[route]]\nto = { to = 'web', weight = 0 }\n", "weight: 0 is not allowed here; allowed is at least 1"),
        ("[[route]]\nto = 'web'\npolicy = 'ip_hash'\n", 'did you mean "ip-hash"?'),
        ("[[route]]\nto = 'web'\nsticky = 'a b'\n", 'route[0].sticky: \'a b\' is not allowed here; allowed is'),
        ("[[route]]\nto = 'web'\nsticky = { same_site = 'any' }\n", 'allowed is "lax", "strict" or "none"'),
        ("[[route]]\nto = 'web'\nmethods = ['get']\n", 'a method such as "GET"'),
        ("[[route]]\nto = 'web'\nlimit = { rate = 1 }\n", "unknown key 'rate'"),
        ("[[route]]\nto = 'web'\ntimeouts = { head = 'soon' }\n", "'soon' is not a duration"),
        ("[gateway]\nbind = 'nowhere'\n", "has no port"),
        ("[gateway]\nbind = ':auto'\n", "no fixed address"),
        ("[gateway]\nbind = []\n", "gateway.bind: no listen address is configured for the routes; add one"),
        ("[gateway]\nbind = { bind = ':443', tls = 'x' }\n", "'x' is not allowed here; allowed is { cert"),
        ("[gateway]\nbind = { bind = ':443', tls = { key = 'x' } }\n", "'cert' is missing"),
        ("[gateway]\nbind = 'unix:" + "x" * 110 + "'\n", "longer than 107 bytes"),
        ("[gateway]\ntrusted_proxies = ['home']\n", "neither an IP address nor a network"),
        ("[gateway]\nhead_timeout = 0\n", "out of range"),
        ("[[stream]]\nto = '10.0.0.5:1'\n", "'bind' is missing"),
    ],
)  # fmt: skip
def test_bad_value_is_reported_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    assert words in told(tmp_path, WEB + text)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("[gateway]\nlisten = ':80'\n", '\'listen\' is a key of another tool; write bind = ":80", or [":80"'),
        ("[gateway]\nroutes = []\n", "write [[route]] tables"),
        (
            "[[route]]\nto = 'web'\nproxy_pass = 'http://a'\n",
            'write to = "SERVER", or ["http://HOST:PORT", …]',
        ),
        ("[[route]]\nto = 'web'\nserver_name = 'a'\n", 'write host = "HOST"'),
        ("[[route]]\nto = 'web'\nlocation = '/'\n", 'write path = "/PREFIX"'),
        ("[[route]]\nto = 'web'\nweight = 2\n", 'write to = [{ to = "SERVER", weight = 2 }]'),
        ("[[stream]]\nbind = ':1'\nto = 'a:1'\nproxy_timeout = 1\n", "write timeouts = { connect"),
        (
            "[[stream]]\nbind = ':1'\nto = 'a:1'\nprotocol = 'udp'\n",
            "a stream is TCP; UDP is forwarded by nginx (stream)",
        ),
        ("[gateway]\nclient_max_body_size = '1m'\n", 'write max_body_size = "1MiB" in a [[route]]'),
        ("[gateway]\nserver_name = 'a'\n", 'write host = "HOST" in a [[route]]'),
        ("[gateway]\nhost = 'a'\n", "'host' belongs elsewhere; write host = \"HOST\" in a [[route]]"),
        (
            "[[route]]\nto = 'web'\nverify = false\n",
            "'verify' belongs elsewhere; write to = [{ to = \"https://HOST\", verify = false }]",
        ),
        (
            "[[route]]\nto = 'web'\nrewrite = 'x'\n",
            "take it out: a path is passed as it is, or without the prefix",
        ),
        (
            "[[route]]\nto = 'web'\ntimeouts = { read = '5s' }\n",
            'write idle = "60s", the time without data; in a',
        ),
        ("[metrics]\nlistin = ':1'\n", "known here: bind, path"),
    ],
)
def test_key_of_another_proxy_has_its_counterpart(tmp_path: Path, text: str, fix: str) -> None:
    assert fix in told(tmp_path, WEB + text)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (
            '[[route]]\nto = "web"\nset_headers = { X-A = "a\\nb" }\n',
            "text without line breaks and other control",
        ),
        ('[[route]]\nto = [{ to = "https://a", sni = "-" }]\n', 'a host name such as "example.com"'),
        ('[metrics]\nbind = ":1"\npath = "/a?b"\n', 'a path without a query, such as "/metrics"'),
    ],
)
def test_text_of_another_form_is_answered_in_words(tmp_path: Path, text: str, allowed: str) -> None:
    assert f"allowed is {allowed}" in told(tmp_path, WEB + text)


def test_password_in_a_target_is_in_no_problem(tmp_path: Path) -> None:
    config = load_text(tmp_path, WEB + '[[route]]\nto = "http://me:s3cret@a/b"\n')
    assert "write them into add_headers" in str(config.problems[0])
    assert "s3cret" not in str([problem.to_dict() for problem in config.problems])


def test_tables_are_kept_for_another_process_and_can_be_loaded_again(tmp_path: Path) -> None:
    text = (
        MORE + '[gateway]\nbind = [":80", { bind = ":443", tls = { cert = "c", password_env = "P" } }]\n'
        '[[route]]\nto = "tag:api"\n[[stream]]\nbind = ":1"\nto = "10.0.0.1:1"\n'
    )
    config = load_text(tmp_path, text)
    tables = config.tables
    assert pickle.loads(pickle.dumps(tables)) == tables
    assert list(tables.to_dict()) == ["gateway", "route", "stream"]
    assert config.secret_variable_names == {"P"}


def test_same_tables_in_yaml_and_json(tmp_path: Path) -> None:
    toml = load_text(tmp_path, WEB + '[gateway]\nbind = ":80"\n[[route]]\nto = ["web"]\nhost = "a"\n').tables
    yaml = (
        "gateway: { bind: ':80' }\nroute:\n  - to: [web]\n    host: a\n"
        "server:\n  - { name: web, bind: '127.0.0.1:9001', app: 'a:b', tags: [api] }\n"
    )
    assert load_text(tmp_path, yaml, "pool.yaml").tables == toml
    json = (
        '{"gateway": {"bind": ":80"}, "route": [{"to": ["web"], "host": "a"}],'
        ' "server": [{"name": "web", "bind": "127.0.0.1:9001", "app": "a:b", "tags": ["api"]}]}'
    )
    assert load_text(tmp_path, json, "pool.json").tables == toml


TEXTS = {
    "toml": WEB + '[gateway]\nbind = ":80"  # edge\n\n[[route]]\nto = ["web"]\n',
    "yaml": "gateway: { bind: ':80' }  # edge\n"
    "server:\n- name: web\n  bind: 127.0.0.1:9001\n  app: a:b\nroute:\n- to: [web]\n",
    "json": '{"gateway": {"bind": ":80"}, "server": [{"name": "web", "bind": "127.0.0.1:9001", "app": "a:b"}],'
    ' "route": [{"to": ["web"]}]}',
}


def test_saved_change_of_a_server_keeps_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(TEXTS["toml"])
    before = PoolConfig.load(path, {}).tables
    draft = Draft([str(path)], {})
    draft.scale("web", 3)
    draft.add({"name": "more", "bind": "127.0.0.1:9002", "app": "a:b"})
    draft.load_validated()
    draft.write()
    config = PoolConfig.load(path, {})
    assert [(each.name, each.workers) for each in config] == [("web", 3), ("more", 1)]
    assert config.tables == before
    assert "# edge" in path.read_text()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('redirect = "www"', 'allowed is "https", "https://HOST", "https://HOST/PATH" or "/PATH"'),
        ('redirect = "https://a.example:65536/"', "'https://a.example:65536/' is not a URL"),
        ('redirect = "https://[::1"', "is not a URL"),
        ('redirect = { to = "https", status = 302 }', "route[0].redirect.status: "),
        ('redirect = true', '"https", a URL, or a table'),
        ('redirect = "https"\nto = "web"', "a route that redirects asks no server, and to has no effect; take one of"),
        ('to = "web"\nallow = ["10.0.0.0/33"]', "'10.0.0.0/33' is neither an IP address nor a network"),
        ('host = "x"', "'to' is missing; add to = …, or register = true for services that register themselves, or"),
    ],
)  # fmt: skip
def test_redirect_or_network_that_cannot_be_one_is_a_problem(tmp_path: Path, line: str, problem: str) -> None:
    assert problem in told(tmp_path, f"{WEB}[[route]]\n{line}\n")


def test_successor_is_left_the_tables(tmp_path: Path) -> None:
    route = '[[route]]\nto = "web"\nlimit = { per_client = { concurrency = 2 } }\n'
    tables = load_text(tmp_path, WEB + route).tables
    assert decoded(encoded(StoredConfiguration("shop", [], tables=tables))).tables == tables


async def test_reload_names_the_routes_that_change() -> None:
    desk = Desk(web("a"))
    found: list[Tables] = []
    desk.files.subscribe(found.append)

    async def changes(tables: Tables) -> list[tuple[str, list[str]]]:
        desk.files.tables_of_files = tables
        answer = await desk.ask("reload")
        assert found[-1] == tables
        return [(each["name"], each["keys"]) for each in answer["changes"]]

    gateway = GatewayConfig(bind=":80")
    one, other = RouteConfig(to="a"), RouteConfig(alias="b", path="/b", to="a", index=1)
    tables = Tables(gateway=gateway, route=(one, other))
    assert await changes(tables) == [("[gateway]", ["gateway"]), ("[route]", ["route"])]
    assert await changes(tables) == []
    tables = Tables(gateway=gateway, route=(one, RouteConfig(alias="b", path="/c", to="a", index=1)))
    assert await changes(tables) == [("[route]", ["route.b"])]
    routes = (RouteConfig(alias="b", path="/c", to="a"), RouteConfig(to="a", index=1))
    tables = Tables(gateway=gateway, route=routes)
    assert await changes(tables) == [("[route]", ["route"])]  # only their order
    tables = Tables(route=tables.all(RouteConfig)[1:], gateway=GatewayConfig(bind=":81"))
    assert await changes(tables) == [("[gateway]", ["gateway.bind"]), ("[route]", ["route.b"])]


@pytest.mark.parametrize(
    ("keys", "label"),
    [
        ({"to": "web"}, "web"), ({"to": "tag:api", "alias": "x"}, "x"), ({"to": "http://a:80"}, "a:80"),
        ({"redirect": "https", "host": "a.test"}, "redirect-a.test"), ({"redirect": "https"}, "redirect"),
    ],
)  # fmt: skip
def test_route_has_a_name(keys: dict[str, str], label: str) -> None:
    assert RouteConfig(**keys).label == label
