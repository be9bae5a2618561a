"""The routes of a pool: from its files, and from its servers' labels and expose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.config import Tables
from poolctl.features.gateway.routes import probe_with_host, probed_targets, routes_of
from poolctl.features.gateway.table import GatewayConfig, RouteConfig, StreamConfig
from poolctl.routing.route import (
    POLICIES,
    STICKY,
    BreakerRule,
    ExcludedRoute,
    Header,
    Redirect,
    Route,
    StreamRoute,
    Target,
    Timeouts,
    TrafficLimits,
)
from tests.config_files import load_text, told
from tests.configuration import server
from tests.features.gateway.test_table import MORE, WEB, route, routes

ROUTE = '[[route]]\nto = "web"\n'


def test_sticky_cookie_may_have_a_table(tmp_path: Path) -> None:
    def cookie(line: str) -> tuple[str, bool, str]:
        config = load_text(tmp_path, f'{server("web", bind="127.0.0.1:9001")}[[route]]\nto = "web"\n{line}\n')
        (route,) = (each for each in routes_of(config, config.tables) if isinstance(each, Route))
        return route.sticky_cookie, route.sticky_secure, route.sticky_same_site

    assert cookie('sticky = "c"') == ("c", False, "Lax")
    assert cookie('sticky = { cookie = "c", secure = true, same_site = "none" }') == ("c", True, "None")


def test_routes_to_other_targets_have_sticky_cookies_of_their_own(tmp_path: Path) -> None:
    def cookies(*targets: str) -> list[str]:
        tables = "".join(
            f'[[route]]\nalias = "{number}"\npath = "/{number}"\npolicy = "sticky"\nto = {to}\n'
            for number, to in enumerate(targets)
        )
        found = routes(tmp_path, f"{WEB}{tables}").values()
        return [each.sticky_cookie for each in found if isinstance(each, Route)]

    web, other, both = cookies('"web"', '"http://10.0.0.7:80"', '["web", "http://10.0.0.7:80"]')
    assert web != other, "a client of both routes stays where it is"
    assert web == both, "sessions are shared, and outlast an added target"


def test_pool_without_these_tables_has_no_routes(tmp_path: Path) -> None:
    text = server(
        "web", bind=":80", app="a:b", expose="https://example.org", labels={"route.host": "example.org"}
    )
    assert routes(tmp_path, text) == {}
    assert load_text(tmp_path, text).tables.get(GatewayConfig) is None


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
sticky = "backend"
strip_path = true
host_header = "internal"
add_headers = { X-Env = "prod" }
set_headers = { X-Set = "1" }
remove_headers = ["X-Gone"]
response_headers = { Strict-Transport-Security = "max-age=1" }
allow = ["10.0.0.0/8", "::1"]
retries = 2
max_body_size = "1MiB"
buffer_requests = true
limit = { concurrency = 100, requests_per_second = 5, burst = 3, per_client = { requests_per_second = 2, burst = 3 } }
backend_limit = { concurrency = 7, queue = 10, queue_timeout = "2s" }
timeouts = { connect = "1s", head = "2s", idle = "3s", keep_alive = "4s" }
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
    assert (found.policy, found.sticky_cookie, found.buffer_requests) == (
        "least-connections",
        "backend",
        True,
    )
    assert (found.strip_path, found.host_header) == (True, "internal")
    assert found.add_headers == (Header(name="x-env", value="prod"),)
    assert found.allow == ("10.0.0.0/8", "::1")
    assert found.set_headers == (Header(name="x-set", value="1"),)
    assert found.remove_headers == ("x-gone",)
    assert found.response_headers == (Header(name="strict-transport-security", value="max-age=1"),)
    assert (found.retries, found.max_body_bytes) == (2, 2**20)
    assert found.limit == TrafficLimits(concurrency=100, requests_per_second=5.0, burst=3)
    assert found.client_limit == TrafficLimits(requests_per_second=2.0, burst=3)
    assert found.backend_limit == TrafficLimits(concurrency=7, queue=10, queue_seconds=2.0)
    times = found.timeouts
    assert (times.connect, times.head, times.idle, times.keep_alive) == (1, 2, 3, 4)
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
    assert (found.alias, found.bind, found.protocol) == ("db", ":5432", "tcp")
    assert [each.key for each in found.to] == ["10.0.0.5:5432", "web", "more"]
    assert [each.weight for each in found.to] == [1, 2, 2]
    assert (found.max_connections, found.timeouts.idle, found.timeouts.connect) == (9, 60, 1)


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
        '[gateway]\ntimeouts = { connect = "1s", head = "9s" }\nbreaker = { failures = 1 }\n'
        + server("web", bind=":9001", app="a:b", labels={"route.host": "a.example"})
        + '[[route]]\nalias = "x"\nto = "web"\ntimeouts = { head = "2s" }\n'
    )
    found = routes(tmp_path, text)
    one, other = found["x"], found["web"]
    assert isinstance(one, Route)
    assert isinstance(other, Route)
    assert (one.timeouts.connect, one.timeouts.head, one.breaker.failures) == (1, 2, 1)
    assert (other.timeouts.connect, other.timeouts.head) == (1, 9)


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


def test_program_without_a_port_has_no_route(tmp_path: Path) -> None:
    text = '[[server]]\nname = "queue"\ncommand = ["x"]\nlabels = { "route.path" = "/" }\n[gateway]\n'
    assert "a program without a port has no address that a route" in told(tmp_path, text)


def test_targets_outside_the_pool_are_probed_as_they_or_their_routes_say(tmp_path: Path) -> None:
    text = (
        WEB
        + """
[[route]]
alias = "one"
to = ["http://a:1", { to = "http://b:1", health = { http = "/b" } }, "web"]
health = { http = "/a" }
[[route]]
alias = "two"
path = "/two"
to = ["http://a:1", "http://c:1"]
health = { http = "/other" }
[[route]]
alias = "three"
path = "/three"
to = "http://d:1"
[[stream]]
bind = ":5432"
to = "e:5432"
health = { tcp = true }
"""
    )
    probed = probed_targets(load_text(tmp_path, text).tables)
    assert {url: probe.http for url, (_, probe, _) in probed.items()} == {
        "http://a:1": "/a", "http://b:1": "/b", "http://c:1": "/other", "e:5432": None,
    }  # fmt: skip
    assert probed_targets(load_text(tmp_path, WEB).tables) == {}


@pytest.mark.parametrize(
    ("keys", "host"),
    [
        ('host_header = "shop.internal"\nhost = "shop.example.com"', "shop.internal"),
        ('host = "Shop.Example.com"', "shop.example.com"),
        ('host = "shop"', ""),
        ('host = "*.example.com"', ""),
        ("", ""),
    ],
)
def test_probe_has_the_host_of_requests_where_clients_have_no_choice(
    tmp_path: Path, keys: str, host: str
) -> None:
    text = f'[gateway]\nbind = ":8080"\n[[route]]\nto = "http://a:1"\nhealth = "/up"\n{keys}\n'
    ((_, _, sent_host),) = probed_targets(load_text(tmp_path, text).tables).values()
    assert sent_host == host


def test_probe_keeps_a_host_of_its_own(tmp_path: Path) -> None:
    text = """
[gateway]
bind = ":8080"
[[route]]
to = "http://a:1"
host = "shop.example.com"
health = { http = "/up", headers = { host = "probe" } }
"""
    ((_, probe, host),) = probed_targets(load_text(tmp_path, text).tables).values()
    assert probe_with_host(probe, host).headers == {"host": "probe"}


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({"route.host": "a:80"}, "server[0].labels.route.host: 'a:80' has a port"),
        ({"route.to": "db"}, "server[0].labels.route.to: the route of a server leads to that server"),
        ({"route.strip": "1"}, "server[0].labels.route.strip"),
    ],
)
def test_wrong_label_is_reported_by_its_name(tmp_path: Path, labels: dict[str, str], problem: str) -> None:
    assert problem in told(tmp_path, "[gateway]\n" + server("web", bind=":80", app="a:b", labels=labels))


def known_servers(**keys: Any) -> list[ServerConfig]:
    return [
        ServerConfig(name="web", bind="127.0.0.1:9001", app="a:b", tags=("api",), **keys),
        ServerConfig(name="off", bind="127.0.0.1:9002", app="a:b", disabled=True, tags=("api",)),
        ServerConfig(name="job", job=True, command=["true"]),
    ]


def test_alias_of_an_earlier_route_excludes_a_later_one_of_its_kind_only() -> None:
    tables = Tables(
        gateway=GatewayConfig(),
        route=(RouteConfig(alias="a", to=("web",)), RouteConfig(alias="a", to=("web",), path="/x")),
        stream=(
            StreamConfig(alias="a", bind="127.0.0.1:1", to=("10.0.0.5:1",)),
            StreamConfig(alias="a", bind="127.0.0.1:2", to=("10.0.0.5:1",)),
        ),
    )
    first, second, stream, other = routes_of(known_servers(), tables)
    assert isinstance(first, Route)
    assert isinstance(stream, StreamRoute)
    assert second == other == ExcludedRoute(alias="a", reason="the alias 'a' is taken")


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        (("gone", "tag:none"), "there is no server 'gone'; there is no tag 'none'"),
        (("job", "off"), "job is a job; off is disabled"),
    ],
)
def test_route_and_stream_without_a_target_are_excluded_with_all_reasons(
    to: tuple[str, ...], reason: str
) -> None:
    tables = Tables(
        gateway=GatewayConfig(),
        route=(RouteConfig(alias="r", to=to, host="a.example"),),
        stream=(StreamConfig(alias="s", bind="127.0.0.1:1", to=to),),
    )
    assert routes_of(known_servers(), tables) == (
        ExcludedRoute(alias="r", reason=reason, host="a.example"),
        ExcludedRoute(alias="s", reason=reason),
    )


def test_target_that_is_named_twice_is_one_with_its_first_weight() -> None:
    to = [{"to": "tag:api", "weight": 2}, "web", {"to": "http://a:80", "weight": 3}, "http://a:80"]
    (found,) = routes_of(
        known_servers(), Tables(gateway=GatewayConfig(), route=(RouteConfig(alias="a", to=to),))
    )
    assert isinstance(found, Route)
    assert found.to == (Target(server="web", weight=2), Target(url="http://a:80", weight=3))


def test_stream_has_every_key() -> None:
    breaker = {"failures": 1, "rate": 0.2, "minimum_requests": 3, "window": 4.0, "open_for": 5.0, "probes": 6}
    stream = StreamConfig(
        bind=":53", to=("10.0.0.5:53",), policy="first", accept_proxy_protocol=True,
        max_connections=9, timeouts={"connect": 1.0, "idle": 2.0}, breaker=breaker,
    )  # fmt: skip
    assert routes_of([], Tables(gateway=GatewayConfig(), stream=(stream,))) == (
        StreamRoute(
            alias="10.0.0.5:53", bind=":53", to=(Target(url="10.0.0.5:53"),), policy="first",
            accept_proxy=True, max_connections=9,
            timeouts=Timeouts(connect=1.0, head=0.0, idle=2.0),
            breaker=BreakerRule(
                failures=1, rate=0.2, minimum_requests=3, window_seconds=4.0, open_seconds=5.0, probes=6
            ),
        ),
    )  # fmt: skip


def test_label_with_an_alias_names_the_route(tmp_path: Path) -> None:
    text = "".join(
        server(name, bind=f":{port}", app="a:b", labels={"route.host": f"{name}.example", **labels})
        for name, port, labels in (("a", 1, {"route.alias": "first"}), ("b", 2, {}))
    )
    assert [*routes(tmp_path, f"[gateway]\n{text}")] == ["first", "b"]
