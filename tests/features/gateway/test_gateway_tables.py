"""[gateway], [[route]] and [[stream]]: what a file may say, what is wrong with it, and the routes that follow."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from poolctl import PoolConfig
from poolctl.config import Configuration, Draft, Tables, load
from poolctl.errors import PoolValidateError
from poolctl.features.gateway.routes import routes_of
from poolctl.features.gateway.table import GatewayConfig, RouteConfig, StreamConfig
from poolctl.routing.route import (
    POLICIES,
    STICKY,
    ExcludedRoute,
    Header,
    Limit,
    Redirect,
    Route,
    StreamRoute,
    Target,
    proxy_reason,
)
from poolctl.supervisor.takeover.state_store import StoredConfiguration, decoded, encoded
from tests.config_files import load_text, told
from tests.configuration import server
from tests.unit.core.ordered_core import run, web
from tests.unit.supervisor.desk import Desk

WEB = server("web", bind="127.0.0.1:9001", app="a:b", tags=["api"])
MORE = WEB + server("more", bind="127.0.0.1:9002", app="a:b", tags=["api"])
ROUTE = '[[route]]\nto = "web"\n'


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


def test_pool_without_these_tables_has_no_routes(tmp_path: Path) -> None:
    text = server(
        "web", bind=":80", app="a:b", expose="https://example.org", labels={"route.host": "example.org"}
    )
    assert routes(tmp_path, text) == {}
    assert load_text(tmp_path, text).tables.get(GatewayConfig) is None


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


def test_route_has_every_key_in_the_file_s_spelling(tmp_path: Path) -> None:
    found = route(
        tmp_path,
        WEB
        + """
[[route]]
alias = "users"
host = "Users.Example.com."
path = "/v1/"
methods = ["GET"]
headers = { X-Canary = "1" }
to = ["web", { to = "https://Other.example", weight = 3 }, "unix:other.sock", "http://[::1]:90/"]
policy = "least-connections"
mode = "proxy"
sticky = "backend"
strip_path = true
host_header = "internal"
add_headers = { X-Env = "prod" }
set_headers = { X-Set = "1" }
remove_headers = ["X-Gone"]
response_headers = { Strict-Transport-Security = "max-age=1" }
allow = ["10.0.0.0/8", "::1"]
context_headers = true
retries = 2
max_body_size = "1MiB"
limit = { concurrency = 100, queue = 10, queue_timeout = "2s", per_client = { requests_per_second = 2, burst = 3 } }
backend_limit = { requests_per_second = 5, burst = 3 }
timeouts = { connect = "1s", head = "2s", idle = "3s", total = "1m" }
breaker.statuses = [500, 429]
breaker.max_open = 0.3
breaker.failures = 2
breaker.rate = 0.1
breaker.minimum_requests = 7
breaker.window = "20s"
breaker.open_for = "30s"
breaker.probes = 2
waiting_page = true
probe_responses = ["/health"]
""",
    )
    assert found.host == "users.example.com"
    assert (found.path, found.methods, found.headers) == (
        "/v1", ("GET",), (Header(name="x-canary", value="1"),)
    )  # fmt: skip
    assert found.to == (
        Target(server="web"),
        Target(url="https://other.example:443", weight=3),
        Target(url=f"unix:{tmp_path}/other.sock"),
        Target(url="http://[::1]:90"),
    )
    assert (found.policy, found.mode, found.sticky_cookie) == ("least-connections", "proxy", "backend")
    assert (found.strip_path, found.host_header, found.context_headers) == (True, "internal", True)
    assert found.add_headers == (Header(name="x-env", value="prod"),)
    assert found.allow == ("10.0.0.0/8", "::1")
    assert found.set_headers == (Header(name="x-set", value="1"),)
    assert found.remove_headers == ("x-gone",)
    assert found.response_headers == (Header(name="strict-transport-security", value="max-age=1"),)
    assert (found.retries, found.max_body_bytes) == (2, 2**20)
    assert found.limit == Limit(concurrency=100, queue=10, queue_seconds=2.0)
    assert found.client_limit == Limit(requests_per_second=2.0, burst=3)
    assert found.backend_limit == Limit(requests_per_second=5.0, burst=3)
    times = found.timeouts
    assert (times.connect, times.head, times.idle, times.total) == (1, 2, 3, 60)
    rule = found.breaker
    assert (rule.statuses, rule.max_open) == ((429, 500), 0.3)
    assert rule.minimum_requests == 7
    assert (rule.failures, rule.rate, rule.window_seconds, rule.open_seconds, rule.probes) == (
        2, 0.1, 20, 30, 2,
    )  # fmt: skip
    assert (found.waiting_page, found.probe_responses, found.provider) == (True, ("/health",), "file")


def test_stream_has_its_addresses_and_limits(tmp_path: Path) -> None:
    text = (
        '[[stream]]\nalias = "db"\nbind = ":5432"\nto = ["10.0.0.5:5432", { to = "tag:api", weight = 2 }]\n'
        'max_connections = 9\ntimeouts = { connect = "1s", idle = "1m" }\n'
    )
    (found,) = routes(tmp_path, MORE + text).values()
    assert isinstance(found, StreamRoute)
    assert (found.alias, found.bind, found.protocol) == ("db", "0.0.0.0:5432", "tcp")
    assert [each.key for each in found.to] == ["10.0.0.5:5432", "web", "more"]
    assert [each.weight for each in found.to] == [1, 2, 2]
    assert (found.max_connections, found.idle_seconds, found.timeouts.connect) == (9, 60, 1)


@pytest.mark.parametrize("policy", [each for each in POLICIES if each != STICKY])
def test_stream_has_each_policy_that_needs_no_cookie(tmp_path: Path, policy: str) -> None:
    text = f'[[stream]]\nbind = ":5432"\nto = ["10.0.0.5:5432", "web"]\npolicy = "{policy}"\n'
    (found,) = routes(tmp_path, WEB + text).values()
    assert isinstance(found, StreamRoute)
    assert found.policy == policy


@pytest.mark.parametrize(
    ("to", "alias", "keys"),
    [
        ('"more"', "more", ["more"]),
        ('"tag:api"', "api", ["web", "more"]),
        ('["http://10.0.0.7:9000", "web"]', "10.0.0.7:9000", ["http://10.0.0.7:9000", "web"]),
        ('["more", "tag:api"]', "more", ["more", "web"]),
        ('"unix:/run/other.sock"', "other.sock", ["unix:/run/other.sock"]),
    ],
)
def test_route_is_named_for_its_first_target(tmp_path: Path, to: str, alias: str, keys: list[str]) -> None:
    found = route(tmp_path, MORE + f"[[route]]\nto = {to}\n")
    assert found.alias == alias
    assert [each.key for each in found.to] == keys


def test_labels_of_a_server_are_a_route(tmp_path: Path) -> None:
    labels = {
        "team": "a", "route.host": "web.example.org", "route.path": "/v1", "route.methods": "GET, POST",
        "route.strip_path": "true", "route.timeouts.head": "5s", "route.headers.x-env": "prod",
    }  # fmt: skip
    found = route(tmp_path, "[gateway]\n" + server("web", bind=":80", app="a:b", labels=labels))
    assert (found.alias, found.provider, found.to) == ("web", "server", (Target(server="web"),))
    assert (found.host, found.path, found.methods) == ("web.example.org", "/v1", ("GET", "POST"))
    assert (found.strip_path, found.timeouts.head) == (True, 5.0)
    assert found.headers == (Header(name="x-env", value="prod"),)


@pytest.mark.parametrize(
    ("expose", "host_and_path"),
    [
        ("https://example.org", ("example.org", "/")),
        ("https://user@Example.org:8443/v1/?a=b", ("example.org", "/v1")),
        ("wss://example.org/chat", ("example.org", "/chat")),
        ("http://example.org:9001", None),  # its own port
        ("http://10.0.0.1:80", None),
        ("http://[::1]:80", None),
        ("http://localhost:80", None),
        ("example.org", None),
    ],
)
def test_expose_with_a_host_of_its_own_is_a_route(
    tmp_path: Path, expose: str, host_and_path: tuple[str, str] | None
) -> None:
    found = routes(tmp_path, "[gateway]\n" + server("web", bind=":9001", app="a:b", expose=expose))
    assert [(each.host, each.path) for each in found.values() if isinstance(each, Route)] == (
        [host_and_path] if host_and_path else []
    )


def test_written_route_wins_over_that_of_expose(tmp_path: Path) -> None:
    exposed = server("web", bind=":9001", app="a:b", expose="https://example.org/v1")
    text = exposed + server("other", bind=":9002", app="a:b")
    same = '[[route]]\nhost = "example.org"\npath = "/v1"\nto = "other"\n'
    found = routes(tmp_path, text + same)
    reason = "example.org/v1 is taken by the route 'other'"
    assert found["web"] == ExcludedRoute(alias="web", reason=reason, host="example.org", provider="server")
    assert list(routes(tmp_path, text + same.replace('"other"', '["other", "web"]'))) == ["other"]
    twice = text + server("again", bind=":9003", app="a:b", expose="https://example.org/v1")
    found = routes(tmp_path, "[gateway]\n" + twice)
    assert isinstance(found["web"], Route)
    assert isinstance(found["again"], ExcludedRoute)
    both = routes(tmp_path, text + ROUTE)
    assert list(both) == ["web", "web@example.org"]


def test_route_without_an_enabled_server_is_excluded_with_the_reason(tmp_path: Path) -> None:
    text = WEB + server(
        "off", bind=":9003", app="a:b", disabled=True, labels={"route.host": "off.example.org"}
    )
    found = routes(tmp_path, text + '[[route]]\nalias = "both"\nto = ["off", "web"]\n')
    both = found["both"]
    assert isinstance(both, Route)
    assert [each.key for each in both.to] == ["web"]
    assert found["off"] == ExcludedRoute(
        alias="off", reason="off is disabled", host="off.example.org", provider="server"
    )


def test_gateway_gives_its_routes_defaults_key_by_key(tmp_path: Path) -> None:
    text = (
        '[gateway]\nmode = "proxy"\ntimeouts = { connect = "1s", head = "9s" }\nbreaker = { failures = 1 }\n'
        + server("web", bind=":9001", app="a:b", labels={"route.host": "a.example"})
        + '[[route]]\nalias = "x"\nto = "web"\nmode = "pass"\ntimeouts = { head = "2s" }\n'
    )
    found = routes(tmp_path, text)
    one, other = found["x"], found["web"]
    assert isinstance(one, Route)
    assert isinstance(other, Route)
    assert (one.mode, one.timeouts.connect, one.timeouts.head, one.breaker.failures) == ("pass", 1, 2, 1)
    assert (other.mode, other.timeouts.connect, other.timeouts.head) == ("proxy", 1, 9)


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
        ("[[route]]\n", "route[0].to: 'to' is missing"),
        ("[route]\nto = 'web'\n", "write [[route]], with two brackets"),
        ("[[route]]\nto = []\n", "an empty list is not allowed here; allowed is at least one target"),
        ("[[route]]\nto = 'web'\nindex = 3\n", "unknown key 'index'"),
        ("[[route]]\nto = 'web'\nhosts = 'a'\n", "did you mean 'host'?"),
        ("[[route]]\nto = 'web'\nhost = 'http://a'\n", "8:1: route[0].host: 'http://a' is no host"),
        ("[[route]]\nto = 'web'\nhost = 'a:80'\n", "has a port: a route is for every port"),
        ("[[route]]\nto = 'web'\nhost = '.a.b'\n", 'write "*.a.b"'),
        ("[[route]]\nto = 'web'\nhost = 'ä'\n", "xn--"),
        ("[[route]]\nto = 'web'\nhost = 'a..b'\n", "is not a host name"),
        ("[[route]]\nto = 'web'\npath = 'v1'\n", "does not begin with /"),
        ("[[route]]\nto = 'web'\npath = '/v1?x'\n", "holds a blank, ? or #"),
        ("[[route]]\nto = ['web', '10.0.0.1:80']\n", 'route[0].to[1]: \'10.0.0.1:80\' is no target: write "http'),
        ("[[route]]\nto = 'ftp://a'\n", "has the scheme 'ftp'"),
        ("[[route]]\nto = 'http://a/b'\n", "has a path: a route keeps the client's path"),
        ("[[route]]\nto = 'http://a:99999'\n", "out of range"),
        ("[[route]]\nto = 'http://:80'\n", "the host is missing"),
        ("[[route]]\nto = 'http://0.0.0.0:80'\n", "is no address to connect to"),
        (f"[[route]]\nto = 'unix:/{'x' * 107}'\n", "is longer than 107 bytes"),
        ("[[route]]\nto = 5\n", "route[0].to: 5 is not allowed here; allowed is a server's name"),
        ("[[route]]\nto = 'a'\nlimit = 5\n", "allowed is a table such as { concurrency = 100 }"),
        ("[[route]]\nto = 'a'\nheaders = { 'X y' = '' }\n", 'allowed is the name of a header, such as "X-Beta"'),
        ("[gateway]\nbind = 8080\n", "gateway.bind: 8080 is not allowed here; allowed is \"HOST:PORT\", \":PORT\""),
        ("[[route]]\nto = 'tag:'\n", "names no tag"),
        ("[[route]]\nto = { to = 'web', weight = 0 }\n", "weight: 0 is not allowed here; allowed is at least 1"),
        ("[[route]]\nto = 'web'\npolicy = 'ip_hash'\n", 'did you mean "ip-hash"?'),
        ("[[route]]\nto = 'web'\nmode = 'copy'\n", 'allowed is "auto", "pass" or "proxy"'),
        ("[[route]]\nto = 'web'\nmethods = ['get']\n", 'a method such as "GET"'),
        ("[[route]]\nto = 'web'\nlimit = { rate = 1 }\n", "unknown key 'rate'"),
        ("[[route]]\nto = 'web'\ntimeouts = { head = 'soon' }\n", "'soon' is not a duration"),
        ("[gateway]\nbind = 'nowhere'\n", "has no port"),
        ("[gateway]\nbind = ':auto'\n", "no fixed address"),
        ("[gateway]\nbind = []\n", "gateway.bind: there is no address for the routes; add one: bind = \":8080\""),
        ("[gateway]\nbind = { bind = ':443', tls = 'x' }\n", "'x' is not allowed here; allowed is { cert"),
        ("[gateway]\nbind = { bind = ':443', tls = { key = 'x' } }\n", "'cert' is missing"),
        ("[gateway]\nbind = 'unix:" + "x" * 110 + "'\n", "longer than 107 bytes"),
        ("[gateway]\ntrusted_proxies = ['home']\n", "neither an IP address nor a network"),
        ("[gateway]\nhead_timeout = 0\n", "out of range"),
        ("[[stream]]\nto = '10.0.0.5:1'\n", "'bind' is missing"),
        ("[[stream]]\nbind = ':5432'\nto = 'http://a'\n", "is a URL: a stream leads to HOST:PORT"),
        ("[[stream]]\nbind = ':5432'\nto = 'a:1'\nprotocol = 'sctp'\n", 'allowed is "tcp" or "udp"'),
        ("[[stream]]\nbind = ':5432'\nto = 'a:1'\npolicy = 'sticky'\n", "'sticky' is not allowed here"),
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
        ("[metrics]\nlistin = ':1'\n", "known here: bind, path"),
    ],
)
def test_key_of_another_proxy_has_its_counterpart(tmp_path: Path, text: str, fix: str) -> None:
    assert fix in told(tmp_path, WEB + text)


def test_password_in_a_target_is_in_no_problem(tmp_path: Path) -> None:
    config = load_text(tmp_path, WEB + '[[route]]\nto = "http://me:s3cret@a/b"\n')
    assert "write them into add_headers" in str(config.problems[0])
    assert "s3cret" not in str([problem.to_dict() for problem in config.problems])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[gateway]\nbind = "127.0.0.1:9001"\n', "gateway.bind: the address 127.0.0.1:9001 is taken by 'web'"),
        ('[gateway]\nbind = ["127.0.0.1:90", ":9001"]\n', "gateway.bind[1]: :9001 (all addresses) overlaps"),
        ('[gateway]\nbind = ":9464"\n[metrics]\n', "overlaps 127.0.0.1:9464 of '[metrics]'"),
        ('[gateway]\nbind = [":80", ":80"]\n', "is taken by '[gateway]'"),
        ('[gateway]\n[[stream]]\nbind = ":8080"\nto = "a:1"\n', "stream[0].bind: the address 0.0.0.0:8080 is taken"),
        ('[[stream]]\nbind = ":53"\nto = "a:1"\nprotocol = "udp"\n' * 2, "is taken by '[[stream]] a:1'"),
    ],
)  # fmt: skip
def test_address_that_is_taken_is_a_problem(tmp_path: Path, text: str, words: str) -> None:
    assert words in told(tmp_path, WEB + text)


@pytest.mark.parametrize("key", ['program = "/bin/x"', "http2 = true"])
def test_key_of_another_engine_is_a_problem_with_poolctls_own(tmp_path: Path, key: str) -> None:
    text = f'[gateway]\n{key}\n[[server]]\nname = "web"\nbind = ":8081"\napp = "a:b"\n'
    (problem,) = load_text(tmp_path, text).problems
    assert str(problem).startswith(f"{tmp_path}/pool.toml:2:1: gateway.{key.split()[0]}: ")
    assert problem.hint.endswith("take it out")


def test_unknown_engine_is_a_problem_that_names_the_known_ones(tmp_path: Path) -> None:
    (problem,) = load_text(tmp_path, '[gateway]\nengine = "nginx"\n').problems
    assert "pool.toml:2:1: gateway.engine: 'nginx' is not allowed here; allowed is \"poolctl\"" in str(
        problem
    )


def test_engine_whose_feature_was_taken_out_cannot_run(tmp_path: Path) -> None:
    config = load_text(tmp_path, "[gateway]\n")
    assert config.tables.get(GatewayConfig) is not None
    tables = Tables(gateway=config.tables.get(GatewayConfig).but(engine="gone"))
    (problem,) = Configuration([], tables).unusable()
    assert str(problem.message) == "there is no engine 'gone'"
    assert problem.hint.startswith("choose one of poolctl")


def test_datagrams_and_connections_may_have_one_port(tmp_path: Path) -> None:
    stream = '[[stream]]\nalias = "{0}"\nbind = ":9001"\nto = "10.0.0.5:53"\nprotocol = "{0}"\n'
    assert "taken" not in told(tmp_path, stream.format("tcp") + stream.format("udp"))
    assert "taken" not in told(tmp_path, WEB + stream.format("udp"))


def test_tables_are_kept_for_another_process_and_can_be_loaded_again(tmp_path: Path) -> None:
    text = (
        MORE + '[gateway]\nbind = [":80", { bind = ":443", tls = { cert = "c", password_env = "P" } }]\n'
        '[[route]]\nto = "tag:api"\n[[stream]]\nbind = ":1"\nto = "10.0.0.1:1"\n'
    )
    config = load_text(tmp_path, text)
    tables = config.tables
    assert pickle.loads(pickle.dumps(tables)) == tables
    assert list(tables.to_dict()) == ["gateway", "route", "stream"]
    assert config.pool_variables == {"P"}


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
    draft.check()
    draft.write()
    config = PoolConfig.load(path, {})
    assert [(each.name, each.workers) for each in config] == [("web", 3), ("more", 1)]
    assert config.tables == before
    assert "# edge" in path.read_text()


def test_server_to_which_a_route_leads_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(TEXTS["toml"] + server("more", bind=":2", app="a:b"))
    draft = Draft([str(path)], {})
    draft.remove("web")
    with pytest.raises(PoolValidateError) as refused:
        draft.check()
    (problem,) = refused.value.exceptions
    assert str(problem).startswith(f"{path}:10:7: route[0].to[0]: there is no server 'web'")


@pytest.mark.parametrize(
    ("written", "redirect"),
    [
        ('"https"', Redirect(to="https")),
        ('"HTTPS"', Redirect(to="https")),
        ('"https://b.example"', Redirect(to="https://b.example")),
        ('{ to = "http://[::1]:81/a?b=c", status = 301 }', Redirect(to="http://[::1]:81/a?b=c", status=301)),
    ],
)
def test_route_may_redirect_instead_of_having_a_target(
    tmp_path: Path, written: str, redirect: Redirect
) -> None:
    found = route(tmp_path, f'[[route]]\nhost = "a.example"\nredirect = {written}\n')
    assert (found.alias, found.to, found.redirect) == ("redirect-a.example", (), redirect)
    assert proxy_reason(found) == "it redirects"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('redirect = "www"', "'www' is no URL; allowed is \"https\", \"https://HOST\" or \"https://HOST/PATH\""),
        ('redirect = "https://a b"', "'https://a b' has characters that no URL has, or credentials"),
        ('redirect = "https://a\\r\\nX: y"', "has characters that no URL has"),
        ('redirect = "https://me@a.example"', "or credentials"),
        ('redirect = "ftp://a.example"', "is no URL"),
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
    assert decoded(encoded(StoredConfiguration("shop", [], tables=tables)), validate=True).tables == tables


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
        tables = Tables(gateway=gateway, routes=(one, RouteConfig(alias="b", path="/c", to="a", index=1)))
        assert await changes(tables) == [("[route]", ["route.b"])]
        routes = (RouteConfig(alias="b", path="/c", to="a"), RouteConfig(to="a", index=1))
        tables = Tables(gateway=gateway, routes=routes)
        assert await changes(tables) == [("[route]", ["route"])]  # only their order
        tables = Tables(routes=tables.all(RouteConfig)[1:], gateway=GatewayConfig(bind=":81"))
        assert await changes(tables) == [("[gateway]", ["gateway.bind"]), ("[route]", ["route.b"])]

    run(scenario())


@pytest.mark.parametrize(("bind", "taken"), [("127.0.0.1:8443", "'[gateway]'"), (":5432", "'[[stream]] db'")])
def test_server_that_is_added_on_an_address_of_the_gateway_is_refused(bind: str, taken: str) -> None:
    async def scenario() -> None:
        desk = Desk(web("a"))
        stream = StreamConfig(bind="127.0.0.1:5432", to="10.0.0.5:5432", alias="db")
        gateway = GatewayConfig(bind=("127.0.0.1:8080", ":8443"))
        desk.files.tables = Tables(gateway=gateway, streams=(stream,))
        table = {"name": "new", "bind": bind, "app": "a:b"}
        answer = await desk.ask("add", server=table, base_dir="/")
        assert answer["exit_code"] == 8, answer
        assert taken in str(answer["errors"])
        assert list(desk.states()) == ["a"]

    run(scenario())


def test_program_without_a_port_has_no_route(tmp_path: Path) -> None:
    text = '[[server]]\nname = "queue"\ncommand = ["x"]\nlabels = { "route.path" = "/" }\n[gateway]\n'
    assert "a program without a port has no address that a route" in told(tmp_path, text)


def test_a_stream_that_is_there_twice_needs_two_brackets(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text("[stream]\n[stream]\n")
    with pytest.raises(PoolValidateError) as refused:
        load(tmp_path / "pool.toml", {})
    assert ":2:1: [stream] is there twice; write [[stream]], with two brackets" in str(refused.value)


def test_a_target_may_be_a_value_already() -> None:
    assert RouteConfig(to=("web",)).to == RouteConfig(to=[{"to": "web"}]).to
    assert Tables().get(GatewayConfig) is None


FILE = """
[gateway]
bind = [":8080", { bind = ":8443", tls = [
    { cert = "a.pem", password_env = "KEY" }, { cert = "b.pem", password_env='B' },
] }]
[[route]]
to = ["web", { to = "tag:api", weight = 2 }]
[[stream]]
bind = ":5432"
to = "127.0.0.1:5433"
[[server]]
name = "web"
bind = "127.0.0.1:8081"
app = "shop:app"
tags = ["api"]
"""
USES = """
import pickle, sys
servers, tables = pickle.load(open(sys.argv[1], "rb"))
bind = tables.by_name()["gateway"].bind[1]
assert tables.to_dict()["gateway"]["bind"][1]["tls"] == [each.to_dict() for each in bind.tls]
from poolctl.config import conflicts, named_addresses, pool_variables
conflicts([(name, address) for name, address in named_addresses(tables)])
assert pool_variables(servers, tables) == {"KEY", "B"}
found = [name for name in sys.modules if name.partition(".")[0] in ("pydantic", "pydantic_core")]
assert not found, found
"""


def test_process_that_uses_validated_tables_imports_nothing_that_validates(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(FILE)
    config = load(tmp_path / "pool.toml", {})
    assert not config.problems
    assert sorted(config.pool_variables) == ["B", "KEY"]
    (tmp_path / "values").write_bytes(pickle.dumps(([*config], config.tables)))
    command = [sys.executable, "-c", USES, str(tmp_path / "values")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
