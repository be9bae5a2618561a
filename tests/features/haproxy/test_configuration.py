"""The configuration for HAProxy: the real program accepts it, and decides by it as the gateway does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.gateway.process.backends.backends import Backends
from poolctl.features.gateway.process.backends.hosts import HostStates
from poolctl.features.gateway.process.settings import Endpoint, GatewaySettings, ListenerSettings, ServerFacts
from poolctl.features.haproxy._configuration import (
    CANARIES,
    Canary,
    CertificateContents,
    HaproxyConfiguration,
    HaproxySetup,
    HeldListener,
    configuration_of,
    host_names,
    runtime_commands,
    setup_of,
)
from poolctl.features.haproxy._listeners import HaproxyCertificate, HaproxyListener
from poolctl.routing.match import explain, normal_host
from poolctl.routing.normal_path import normal_path
from poolctl.routing.route import (
    BreakerRule,
    Header,
    Redirect,
    Route,
    StreamRoute,
    Target,
    Timeouts,
    TrafficLimits,
)
from tests.certificates import certificate
from tests.manual_clock import ManualClock
from tests.programs import program

WEB = (Target(server="web"),)
# Servers of the pool that serve an application.
APPLICATIONS = ("a", "b", "new", "one", "two", "web")
AUTHORITIES = str(ssl.get_default_verify_paths().cafile)
ANY = HaproxyListener(("127.0.0.1:8080",))
LOCAL = {"web": Endpoint("tcp", "127.0.0.1", 8081)}


def made(
    *routes: Route,
    settings: GatewaySettings | None = None,
    listeners: Sequence[HaproxyListener] = (ANY,),
    streams: Iterable[StreamRoute] = (),
    endpoints: dict[str, Endpoint] = LOCAL,
) -> HaproxyConfiguration:
    return configuration_of(
        settings or GatewaySettings(directory="/tmp"), listeners, routes, streams, endpoints, APPLICATIONS
    )


def section(configuration: HaproxyConfiguration, name: str) -> str:
    """The lines of a section of the text."""
    return re.split(r"\n(?=\S)", configuration.text().partition(f"\n{name}\n")[2])[0]


def check(configuration: HaproxyConfiguration, directory: Path) -> None:
    """HAProxy itself finds no problem, and warns of nothing."""
    haproxy = program("haproxy")
    for name, text in {"haproxy.cfg": configuration.text(), **configuration.files}.items():
        (directory / name).write_text(text)
    done = subprocess.run(
        [haproxy, "-c", "-f", str(directory / "haproxy.cfg")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


BALANCE = {
    "round-robin": "roundrobin", "weighted": "roundrobin", "sticky": "roundrobin", "least-connections": "leastconn",
    "ip-hash": "hash", "random-two": "random(2)", "first": "first",
}  # fmt: skip


@pytest.mark.parametrize("policy", BALANCE)
def test_each_policy_has_its_own_word_of_haproxy(policy: str) -> None:
    lines = made(Route(alias="a", to=WEB, policy=policy)).text().splitlines()
    assert [each.split()[1] for each in lines if each.startswith("    balance ")] == [BALANCE[policy]]


def test_unknown_policy_is_no_other_one_silently() -> None:
    with pytest.raises(KeyError):
        made(Route(alias="a", to=WEB, policy="nearest"))


RULES = [
    (Route(alias="a", to=WEB), ["balance roundrobin", "server web 127.0.0.1:8081"]),
    (Route(alias="a", to=WEB, policy="least-connections"), ["balance leastconn"]),
    (Route(alias="a", to=WEB, policy="ip-hash"), ["balance hash var(txn.client)", "hash-type consistent"]),
    (Route(alias="a", to=WEB, policy="random-two"), ["balance random(2)"]),
    (
        Route(alias="a", to=(Target(server="web", weight=1000), Target(server="new"))),
        ["server web 127.0.0.1:8081 weight 256", "server new ipv4@127.0.0.1:1"],
    ),
    (
        Route(alias="a", to=WEB, sticky_cookie="c"),
        ["cookie c insert indirect nocache httponly attr SameSite=Lax"],
    ),
    (
        Route(alias="a", to=WEB, sticky_cookie="c", sticky_secure=True, sticky_same_site="None"),
        ["cookie c insert indirect nocache httponly secure attr SameSite=None"],
    ),
    (
        Route(alias="a", to=WEB, path="/v1", strip_path=True),
        [r"http-request replace-path '^/v1/?(.*)$' '/\1'"],
    ),
    (Route(alias="a", to=WEB, host_header="inner"), ["http-request set-header Host inner"]),
    (
        Route(alias="a", to=WEB, add_headers=(Header(name="x-a", value="100% 'a' \"b\" ${HOME}"),)),
        ["http-request add-header x-a '100%% '\\''a'\\'' \"b\" ${HOME}'"],
    ),
    (
        Route(alias="a", to=WEB, timeouts=Timeouts(connect=1.5, head=90.0, idle=20.0)),
        ["timeout connect 1500ms", "timeout server 90000ms", "timeout tunnel 20000ms"],
    ),
    (Route(alias="a", to=WEB, timeouts=Timeouts(idle=0.0)), ["timeout server 24d", "timeout tunnel 24d"]),
    (Route(alias="a", to=WEB), ["retries 1", "retry-on conn-failure empty-response\n"]),
    (
        Route(alias="a", to=WEB, retries=2),
        ["retries 2", "retry-on conn-failure empty-response junk-response"],
    ),
    (
        Route(alias="a", to=WEB, backend_limit=TrafficLimits(concurrency=4, queue=9, queue_seconds=2.0)),
        ["timeout queue 2000ms", "{ queue ge 9 }", "server web 127.0.0.1:8081 maxconn 4 maxqueue 9"],
    ),
    (
        Route(
            alias="a", to=(*WEB, Target(server="new")), backend_limit=TrafficLimits(concurrency=4, queue=9)
        ),
        ["{ queue ge 18 }"],
    ),
    (
        Route(alias="a", to=WEB, max_body_bytes=1000),
        [
            "http-request deny deny_status 413 if { req.body_size gt 1000 }",
            "http-request wait-for-body time 10s at-least 1 if !{ req.fhdr(content-length) -m found }",
            "'Length Required' if !{ req.fhdr(content-length) -m found } { req.body_len gt 0 }",
        ],
    ),
    (
        Route(alias="a", to=(Target(url="http://10.0.0.7:9000"),), breaker=BreakerRule(failures=3)),
        [
            "server 10.0.0.7:9000 10.0.0.7:9000 check inter 10000ms fall 2 rise 1 observe layer4 error-limit 3 on-"
        ],
    ),
    (
        Route(alias="a", to=(Target(url="https://[::1]:8443"),), breaker=BreakerRule(failures=0, rate=0.0)),
        [f"server _::1_:8443 ipv6@::1:8443 ssl verify required ca-file {AUTHORITIES} verifyhost ::1"],
    ),
    (Route(alias="a", to=(Target(url="unix:/run/a b"),)), ["'unix@/run/a b'"]),
]


@pytest.mark.parametrize(("route", "lines"), RULES)
def test_a_rule_of_a_route_has_its_line(route: Route, lines: list[str]) -> None:
    text = section(made(route), "backend route:a")
    for line in lines:
        assert line in text


def test_all_rules_are_accepted(tmp_path: Path) -> None:
    routes = [replace(route, alias=f"a{number}") for number, (route, _) in enumerate(RULES)]
    check(made(*routes), tmp_path)


def test_streams_certificates_and_settings_are_accepted(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    (tmp_path / "a.pem").write_bytes(cert.read_bytes() + key.read_bytes())
    (tmp_path / "ca.pem").write_bytes(cert.read_bytes())
    settings = GatewaySettings(
        directory="/tmp", max_connections=100, keep_alive_seconds=0.0, header_for_host="X-Host",
        trusted_proxies=tuple(f"10.{number}.0.0/16" for number in range(50)),
    )  # fmt: skip
    certificates = (
        HaproxyCertificate("a.pem", names=("A.example", "*.b.example", "10.0.0.1", "[::1]")),
        HaproxyCertificate("a.pem", "ca.pem", "optional", "1.3", "ECDHE+AESGCM", ("*.b.example",)),
        HaproxyCertificate("a.pem"),
    )
    listeners = (
        HaproxyListener((":::8443 v4v6",), crt_list="8443.crt-list", certificates=certificates),
        HaproxyListener(("127.0.0.1:5432",), alias="pg"),
    )
    stream = StreamRoute(
        alias="pg", bind="127.0.0.1:5432", to=(Target(url="10.0.0.5:5432"),), max_connections=7
    )
    configuration = made(settings=settings, listeners=listeners, streams=[stream])
    assert configuration.files == {
        "8443.crt-list": "a.pem [ssl-min-ver TLSv1.2] a.example *.b.example\n"
        "a.pem [ssl-min-ver TLSv1.3 verify optional ca-file ca.pem ciphers ECDHE+AESGCM] *.b.example\n"
        "a.pem [ssl-min-ver TLSv1.2] -\n",
        "8443.crt-list.map": "a.example 0\n*.b.example 0.1+\n- 2\n",
    }
    tls = "bind :::8443 v4v6 name 8443.crt-list ssl crt-list 8443.crt-list alpn"
    assert f"{tls} h2,http/1.1 no-tls-tickets\n" in configuration.text()
    assert "tune.ssl.cachesize 0\n" in configuration.text()
    http1 = made(settings=replace(settings, http2=False), listeners=listeners[:1])
    assert f"{tls} http/1.1 no-tls-tickets\n" in http1.text()
    open_to_all = made(listeners=[listeners[0]._replace(certificates=certificates[:1])])
    assert open_to_all.files == {"8443.crt-list": "a.pem [ssl-min-ver TLSv1.2]\n"}
    assert "bind :::8443 v4v6 ssl crt-list 8443.crt-list alpn h2,http/1.1\n" in open_to_all.text()
    assert "421" not in open_to_all.text()
    assert "cachesize" not in open_to_all.text()
    assert "maxconn 7" in section(configuration, "listen stream:pg")
    check(configuration, tmp_path)
    trusting = made(settings=replace(settings, trusted_proxies=("*",)), listeners=listeners[:1])
    assert "{ src 0.0.0.0/0 ::/0 }" in trusting.text()
    check(trusting, tmp_path)


def test_names_that_differ_only_in_other_characters_stay_apart(tmp_path: Path) -> None:
    first, second = Route(alias="a b", host="a.example", to=WEB), Route(alias="a_b", host="b.example", to=WEB)
    configuration = made(first, second)
    assert [each.name for each in configuration.backends] == ["route:a_b", "route:a_b:2"]
    check(configuration, tmp_path)


def test_listener_of_a_stream_offers_no_http2() -> None:
    listener = HaproxyListener((":8443",), "pg", "pg.crt-list", (HaproxyCertificate("pg.pem"),))
    assert list(listener.bind_lines()) == ["    bind :8443 ssl crt-list pg.crt-list alpn http/1.1"]
    assert list(listener.bind_lines(http2=True)) == [
        "    bind :8443 ssl crt-list pg.crt-list alpn h2,http/1.1"
    ]


def test_disabled_server_is_written_as_such() -> None:
    text = made(Route(alias="a", to=WEB)).text([("route:a", "web")])
    assert "server web 127.0.0.1:8081 disabled" in text


def every_rule() -> HaproxyConfiguration:
    """The configuration of a pool that uses as many keys as possible."""
    settings = GatewaySettings(
        directory="/tmp",
        max_connections=100,
        keep_alive_seconds=0.0,
        header_for_host="X-Host",
        trusted_proxies=("10.0.0.0/8", "192.0.2.1"),
        drain_seconds=7.5,
        head_seconds=3.0,
        max_head_bytes=32_768,
    )
    demanding = HaproxyCertificate(
        "b.pem", "ca.pem", "required", names=("B.example.", "*.b.example", "10.0.0.1")
    )
    certificates = (HaproxyCertificate("a.pem", names=("a.example",)), demanding)
    listeners = (
        HaproxyListener(("127.0.0.1:8080",), accept_proxy=True),
        HaproxyListener((":8443", ":::8443"), crt_list="t", certificates=certificates),
        HaproxyListener(("127.0.0.1:5432",), alias="pg", accept_proxy=True),
        HaproxyListener(("127.0.0.1:5433",), alias="idle"),
    )
    routes = [
        Route(
            alias="api",
            host="api.example",
            path="/v1",
            to=(*WEB, Target(url="https://up.example:8443", weight=3)),
            strip_path=True,
            methods=("GET", "POST"),
            headers=(Header(name="x-a"), Header(name="x-b", value="two words")),
            host_header="in%side",
            set_headers=(Header(name="x-set_a", value="s"),),
            remove_headers=("x-gone",),
            add_headers=(Header(name="x-add", value="50%"),),
            response_headers=(Header(name="x-res", value="r%"),),
            allow=("10.0.0.0/8",),
            retries=2,
            limit=TrafficLimits(concurrency=9, requests_per_second=2.5),
            backend_limit=TrafficLimits(concurrency=4, queue=5, queue_seconds=0.001),
            client_limit=TrafficLimits(concurrency=3, requests_per_second=0.4),
            max_body_bytes=2000,
            timeouts=Timeouts(connect=0.0001, head=0.0, idle=5.0),
            sticky_cookie="c",
        ),
        Route(alias="old", host="old.example", redirect=Redirect(to="https://new.example", status=302)),
        Route(
            alias="older", host="*.old.example", redirect=Redirect(to="https://new.example/50%", status=301)
        ),
        Route(alias="all", host="first", to=WEB, policy="ip-hash"),
    ]
    stream = StreamRoute(
        alias="pg",
        bind="",
        to=(Target(url="10.0.0.5:5432", weight=2),),
        max_connections=7,
        accept_proxy=True,
        idle_seconds=30.0,
    )
    other = StreamRoute(alias="gone", bind="", to=(Target(url="10.0.0.5:5432"),))
    return made(*routes, settings=settings, listeners=listeners, streams=[stream, other])


def test_configuration_of_a_pool_with_every_rule_is_written_as_a_whole() -> None:
    found = every_rule()
    text = Path(__file__).with_name("every_rule.cfg").read_text()
    assert found.text() == text.replace("AUTHORITIES", AUTHORITIES)
    assert found.files == {
        "t": "a.pem [ssl-min-ver TLSv1.2] a.example\n"
        "b.pem [ssl-min-ver TLSv1.2 verify required ca-file ca.pem] b.example *.b.example\n",
        "t.map": "a.example 0\nb.example 1+\n*.b.example 1+\n",
    }


def test_configuration_without_routes_is_written_as_a_whole() -> None:
    found = made()
    assert found.text() == Path(__file__).with_name("no_route.cfg").read_text()
    assert (found.files, found.backends) == ({}, ())
    no_listener = made(listeners=[])
    assert no_listener.lines == found.lines[: found.lines.index("frontend gateway") - 1]
    assert no_listener.backends == ()


def section_lines(route: Route, endpoints: dict[str, Endpoint] = LOCAL) -> list[str]:
    return [
        line.strip() for line in section(made(route, endpoints=endpoints), "backend route:a").splitlines()
    ]


@pytest.mark.parametrize(
    ("redirect", "allow", "lines"),
    [
        (Redirect(to="https://b/x"), (), ["http-request redirect location https://b/x code 308"]),
        (Redirect(to="https://b"), (), ["http-request redirect location 'https://b%[pathq]' code 308"]),
        (Redirect(to="https://b?c=1"), (), ["http-request redirect location 'https://b?c=1' code 308"]),
        (
            Redirect(to="https"),
            (),
            [
                "http-request deny deny_status 400 unless { var(txn.host) -m found }",
                "http-request redirect location 'https://%[var(txn.host)]%[pathq]' code 308",
            ],
        ),
        (None, ("*", "10.0.0.0/8"), []),
        (
            None,
            tuple(f"10.0.0.{number}" for number in range(20)),
            [
                "acl client_is_allowed var(txn.client) -m ip "
                + " ".join(f"10.0.0.{number}" for number in range(20)),
                "http-request deny deny_status 403 unless client_is_allowed",
            ],
        ),
        (
            None,
            tuple(f"10.0.0.{number}" for number in range(21)),
            [
                "acl client_is_allowed var(txn.client) -m ip "
                + " ".join(f"10.0.0.{number}" for number in range(20)),
                "acl client_is_allowed var(txn.client) -m ip 10.0.0.20",
                "http-request deny deny_status 403 unless client_is_allowed",
            ],
        ),
    ],
)
def test_clients_are_refused_and_redirected_first(
    redirect: Redirect | None, allow: tuple[str, ...], lines: list[str]
) -> None:
    found = section_lines(Route(alias="a", redirect=redirect, allow=allow))
    assert found[: found.index("balance roundrobin")] == lines


@pytest.mark.parametrize(
    ("weights", "scaled"),
    [
        ((1, 1), ("", "")),
        ((256, 2), (" weight 256", " weight 2")),
        ((257, 2), (" weight 256", "")),
        ((512, 100), (" weight 256", " weight 50")),
    ],
)
def test_weights_stay_in_proportion_up_to_the_heaviest_that_haproxy_knows(
    weights: tuple[int, int], scaled: tuple[str, str]
) -> None:
    targets = tuple(Target(server=name, weight=each) for name, each in zip("ab", weights, strict=True))
    assert section_lines(Route(alias="a", to=targets))[-2:] == [
        f"server {name} ipv4@127.0.0.1:1{each}" for name, each in zip("ab", scaled, strict=True)
    ]


@pytest.mark.parametrize(
    ("endpoint", "line"),
    [
        (Endpoint("tcp", "10.0.0.1", 0), "server web ipv4@127.0.0.1:1"),
        (Endpoint("tcp", "10.0.0.1", 80), "server web 10.0.0.1:80"),
        (Endpoint("tcp", "[fd00::1]", 80), "server web ipv6@fd00::1:80"),
        (Endpoint("tcp", "fd00::a", 80, tls=True), "server web ipv6@fd00::a:80 ssl verify none"),
        (Endpoint("tcp", "db", 80), "server web db:80 init-addr last,libc,none"),
        (Endpoint("unix", path="/run/w.sock"), "server web unix@/run/w.sock"),
        (
            Endpoint("tcp", "10.0.0.1", 443, tls=True, server_name="10.0.0.1"),
            f"server web 10.0.0.1:443 ssl verify required ca-file {AUTHORITIES} verifyhost 10.0.0.1",
        ),
    ],
)
def test_server_is_reached_at_its_endpoint(endpoint: Endpoint, line: str) -> None:
    assert section_lines(Route(alias="a", to=WEB), {"web": endpoint})[-1] == line


def test_any_peer_that_is_trusted_claims_no_address_for_limits() -> None:
    settings = GatewaySettings(directory="/tmp", trusted_proxies=("*",))
    lines = made(Route(alias="a", to=WEB, allow=("10.0.0.0/8",)), settings=settings).lines
    assert "    http-request set-var(txn.client) src" in lines
    assert not any("client_is_proxy" in line for line in lines)
    lines = made(Route(alias="a", to=WEB, allow=("10.0.0.0/8",))).lines
    assert not any("client_is_proxy" in line for line in lines), "no proxy is trusted"
    limited = made(
        Route(alias="a", to=WEB, client_limit=TrafficLimits(concurrency=1)), Route(alias="b", to=WEB)
    )
    assert "    http-request set-var(txn.client) src" in limited.lines
    assert "txn.client" not in made(Route(alias="a", to=WEB)).text()


@pytest.mark.parametrize(("size_bytes", "buffer"), [(0, 17_408), (16_384, 17_408), (16_385, 17_409)])
def test_buffer_holds_a_head_and_additions(size_bytes: int, buffer: int) -> None:
    settings = GatewaySettings(directory="/tmp", max_head_bytes=size_bytes)
    assert f"    tune.bufsize {buffer}" in made(settings=settings).lines


def condition(route: Route) -> str:
    (line,) = (each for each in made(route).lines if "use_backend" in each)
    return line.removeprefix("    use_backend route:a").removeprefix(" if ")


@pytest.mark.parametrize(
    ("route", "wanted"),
    [
        (Route(alias="a"), ""),
        (Route(alias="a", path="/"), ""),
        (Route(alias="a", path="/v1/"), "{ var(txn.path) -m beg -- /v1/ }"),
        (Route(alias="a", host="a.b*.c"), "{ var(txn.host) -m reg -- '^a\\.b.+\\.c$' }"),
        (
            Route(alias="a", redirect=Redirect(to="https")),
            "!{ req.hdr(x-forwarded-proto,1) -m str -i -- https }",
        ),
    ],
)
def test_route_has_its_condition(route: Route, wanted: str) -> None:
    assert condition(route) == wanted


@pytest.mark.parametrize(("count", "mapped"), [(16, False), (17, True)])
def test_many_exact_hosts_are_looked_up_in_a_map(count: int, mapped: bool) -> None:
    routes = [
        Route(alias=f"r{number}", host=f"H{number}.example.", path="/v", to=WEB) for number in range(count)
    ]
    routes[0] = replace(routes[0], path="/")
    other = Route(alias="other", host="other.example", to=WEB, methods=("GET",))
    same = [replace(other, alias=f"same{number}", methods=(), path=f"/{number}") for number in range(20)]
    found = made(*routes, other, *same)
    used = {line.split()[1] for line in found.lines if line.startswith("    use_backend route:")}
    others = {"route:other", *(f"route:{each.alias}" for each in same)}
    if not mapped:
        assert (found.files, len(used)) == ({}, count + 21)
        assert not any("routes.map" in line for line in found.lines)
        return
    wanted = {f"h{number}.example/v/ route:r{number}" for number in range(1, count)} | {
        "h0.example/ route:r0"
    }
    assert {*found.files} == {"routes.map"}
    assert {*found.files["routes.map"].splitlines()} == wanted
    assert used == others
    place = found.lines.index("    http-request set-var(txn.place) var(txn.host),concat(,txn.path)")
    assert found.lines[place + 1] == (
        "    use_backend %[var(txn.place),map_beg(routes.map)] if { var(txn.place),map_beg(routes.map) -m found }"
    )
    assert made(*routes, listeners=[]).files == {}, "no request could look it up"


# What the program decides.

ROUTES = [
    Route(alias="exact", host="users.example.com"),
    Route(alias="deep", host="users.example.com", path="/v1/a"),
    Route(alias="posts", host="users.example.com", path="/v1", methods=("POST",)),
    Route(alias="flagged", host="users.example.com", path="/v1", headers=(Header(name="x-flag"),)),
    Route(alias="blue", host="users.example.com", path="/v1", headers=(Header(name="x-flag", value="-m blue"),)),
    Route(alias="label", host="users"),
    Route(alias="domain", host="*.example.com"),
    Route(alias="below", host="*.sub.example.com"),
    Route(alias="pattern", host="a*z.example.*"),
    Route(alias="six", host="[::1]", path="/x"),
    Route(alias="stripped", path="/strip", strip_path=True),
]  # fmt: skip
REQUESTS: list[tuple[str, str, str, dict[str, str]]] = [
    ("GET", "users.example.com", "/", {}),
    ("GET", "USERS.example.com.:8080", "/v1/a/b", {}),
    ("GET", "users.example.com", "/v1/ab", {}),
    ("POST", "users.example.com", "/v1", {}),
    ("GET", "users.example.com", "/v1", {"x-flag": "any"}),
    ("GET", "users.example.com", "/v1", {"x-flag": "-m blue"}),
    ("GET", "users.example.com", "/other/../v1/./%61", {}),
    ("GET", "users.other.org", "/", {}),
    ("GET", "x.example.com", "/", {}),
    ("GET", "example.com", "/", {}),
    ("GET", "y.sub.example.com", "/", {}),
    ("GET", "a.b.z.example.org", "/", {}),
    ("GET", "az.example.org", "/", {}),
    ("GET", "[::1]:8080", "/x/y?q=1", {}),
    ("GET", "[::1]", "/y", {}),
    ("GET", "10.0.0.1", "/", {}),
    ("GET", "else.org", "/strip", {}),
    ("GET", "else.org", "/strip/a/b?c", {}),
    ("GET", "else.org", "/strip/..%2fa", {}),
    ("GET", "else.org", "/strip//a", {}),
    ("GET", "else.org", "/strip/%00", {}),
    ("GET", "else.org", "/strip/%zz", {}),
]


class HaproxyProgram:
    """The real program on a port, and the number of requests that its backends have got, by their port."""

    def __init__(self, port: int, runtime_socket: Path) -> None:
        self.port = port
        self.canary_port = 0
        self.requests: Counter[int] = Counter()
        self._runtime_socket = runtime_socket

    async def command(self, command: str) -> str:
        """The answer to a command on the runtime socket."""
        reader, writer = await asyncio.open_unix_connection(self._runtime_socket)
        writer.write(f"{command}\n".encode())
        answer = await reader.read()
        writer.close()
        return answer.decode()


@contextlib.asynccontextmanager
async def haproxy(directory: Path, routes: Iterable[Route], **settings: Any) -> AsyncIterator[int]:
    """The port of the real program; see `haproxy_program`."""
    async with haproxy_program(directory, routes, **settings) as running:
        yield running.port


@contextlib.asynccontextmanager
async def haproxy_program(
    directory: Path,
    routes: Iterable[Route],
    *,
    accept_proxy: bool = False,
    socket_file: str = "",
    canary_share: float = 0.0,
    log_descriptor: int | None = None,
    **settings: Any,
) -> AsyncIterator[HaproxyProgram]:
    """The real program, before a backend that repeats in JSON what it is asked.

    It serves on a Unix socket too, if a name for the file is given. With a share the backend has a canary.
    """
    executable = program("haproxy")  # skips before there are sockets to close
    running = HaproxyProgram(0, directory / "runtime.sock")

    async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _repeat(reader, writer, running)

    backend = await asyncio.start_server(repeat, "127.0.0.1", 0)
    canary = await asyncio.start_server(repeat, "127.0.0.1", 0)
    endpoints = {"web": Endpoint("tcp", *backend.sockets[0].getsockname())}
    running.canary_port = canary.sockets[0].getsockname()[1]
    canaries = {
        "web": Canary("web (canary)", Endpoint("tcp", *canary.sockets[0].getsockname()), canary_share)
    }
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listeners = [HaproxyListener((f"fd@{listener.fileno()}",), accept_proxy=accept_proxy)]
        if socket_file:
            listeners.append(HaproxyListener((f"unix@{directory / socket_file}",)))
        given = GatewaySettings(directory=str(directory), **settings)
        configuration = configuration_of(
            given, listeners, routes, (), endpoints, APPLICATIONS,
            canaries if canary_share else {}, f"fd@{log_descriptor}",
        )  # fmt: skip
        path = directory / "haproxy.cfg"
        runtime = f"global\n    stats socket {directory / 'runtime.sock'} level admin\n"
        shares = "".join(f"{key} {value}\n" for key, value in configuration.canary_shares.items())
        files = {path.name: configuration.text(), "runtime.cfg": runtime, **configuration.files}
        for name, text in (files | ({CANARIES: shares} if shares else {})).items():
            (directory / name).write_text(text)
        descriptors = [listener.fileno(), *([] if log_descriptor is None else [log_descriptor])]
        process = await asyncio.create_subprocess_exec(
            executable, "-f", str(path), "-f", str(directory / "runtime.cfg"), pass_fds=descriptors
        )
        try:
            running.port = port = listener.getsockname()[1]
            serving = asyncio.ensure_future(_until_it_serves(port))
            ended = asyncio.ensure_future(process.wait())
            await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
            assert not ended.done(), "HAProxy does not accept the configuration"
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            backend.close()
            canary.close()


async def _until_it_serves(port: int) -> None:
    """Return once HAProxy has refused a connection that begins with neither a request nor a PROXY header."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        writer.write(b"?\r\n\r\n")
        await reader.read()
    writer.close()


async def _repeat(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, running: HaproxyProgram
) -> None:
    try:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
                running.requests[writer.get_extra_info("sockname")[1]] += 1
                headers = [line.partition(": ")[::2] for line in lines]
                body = json.dumps({"target": first.split()[1], "headers": headers}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    finally:
        writer.close()


async def ask(
    port: int | Path, method: str, host: str, path: str, headers: dict[str, str]
) -> tuple[int, dict[str, Any]]:
    """The status, and what the backend was asked."""
    if isinstance(port, Path):
        reader, writer = await asyncio.open_unix_connection(port)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", "Content-Length: 0"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status = int(head.split()[1])
    return status, json.loads(body) if body.startswith(b"{") else {}


# So many that exact hosts are looked up in a map.
MANY = [
    *ROUTES,
    *(Route(alias=f"host{number}", host=f"h{number}.example.net") for number in range(20)),
    *(Route(alias=f"path{number}", host="h1.example.net", path="/v" * number) for number in range(1, 5)),
]
MORE_REQUESTS: list[tuple[str, str, str, dict[str, str]]] = [
    ("GET", host, path, {})
    for host in (
        "h1.example.net",
        "H1.example.net.:80",
        "h19.example.net",
        "h20.example.net",
        "xh1.example.net",
    )
    for path in ("/", "/v", "/v/v/v/x", "/v/v/vv", "/v/v/v/v/v", "/strip/x")
]


@pytest.mark.parametrize("routes", [ROUTES, MANY], ids=["few", "many"])
def test_haproxy_decides_as_the_gateway_does(tmp_path: Path, routes: list[Route]) -> None:
    routes = [
        replace(each, to=WEB, add_headers=(Header(name="x-route", value=each.alias),)) for each in routes
    ]

    async def work() -> None:
        async with haproxy(tmp_path, routes) as port:
            for method, host, path, headers in REQUESTS + MORE_REQUESTS:
                plain, question, query = path.partition("?")
                normal = normal_path(plain)
                steps = explain(routes, normal_host(host), normal or "", method, headers)
                taken = next((each.route for each in steps if each.matched), None)
                status, got = await ask(port, method, host, path, headers)
                request = f"{method} {host} {path} {headers}"
                if normal is None or taken is None:
                    assert status == (400 if normal is None and "%2f" not in path else 404), request
                    continue
                if "//" in path:  # can be read in two ways, and there are routes with paths
                    assert status == 404, request
                    continue
                assert status == 200, request
                assert dict(got["headers"])["x-route"] == taken.alias, request
                target = normal.removeprefix(taken.path if taken.strip_path else "") or "/"
                assert got["target"] == target + question + query, request

    asyncio.run(asyncio.wait_for(work(), 60))


def test_client_cannot_claim_where_it_comes_from(tmp_path: Path) -> None:
    async def work() -> None:
        async with haproxy(tmp_path, [Route(alias="web", to=WEB)]) as port:
            forged = {
                "X-Forwarded-For": "6.6.6.6",
                "X_Forwarded_Host": "x",
                "Forwarded": "for=6.6.6.6",
                "Proxy": "x",
            }
            status, got = await ask(port, "GET", "a.example:80", "/", forged)
            assert status == 200
            assert {name: value for name, value in got["headers"] if name.startswith(("x", "f", "p"))} == {
                "x-forwarded-for": "127.0.0.1",
                "x-forwarded-proto": "http",
                "x-forwarded-host": "a.example:80",
                "forwarded": 'for=127.0.0.1;proto=http;host="a.example:80"',
            }

    asyncio.run(asyncio.wait_for(work(), 60))


def test_trusted_proxy_is_believed_in_the_fields_that_proxies_set_alone(tmp_path: Path) -> None:
    async def work() -> None:
        routes = [Route(alias="web", to=WEB)]
        async with haproxy(tmp_path, routes, trusted_proxies=("127.0.0.1",)) as port:
            said = {
                "X-Forwarded-For": "192.0.2.1",
                "X_Forwarded_For": "6.6.6.6",
                "X-Forwarded_For": "6.6.6.6",
                "X-Real-IP": "6.6.6.6",
                "X-Poolctl-Route": "other",
                "Proxy": "x",
            }
            status, got = await ask(port, "GET", "a.example", "/", said)
            assert status == 200
            found = [
                each
                for each in got["headers"]
                if each[0].startswith(("x-r", "x-p", "x-forwarded-f", "x_", "p"))
            ]
            assert found == [["x-forwarded-for", "192.0.2.1, 127.0.0.1"]]

    asyncio.run(asyncio.wait_for(work(), 60))


@pytest.mark.parametrize("trusted", [("*",), tuple(f"10.{number}.0.0/16" for number in range(50))])
def test_trusted_proxies_may_use_the_proxy_protocol_where_it_is_accepted(
    tmp_path: Path, trusted: tuple[str, ...]
) -> None:
    listeners = [
        ANY,
        HaproxyListener(("127.0.0.1:8081",), accept_proxy=True),
        HaproxyListener(("127.0.0.1:5432",), alias="pg", accept_proxy=True),
        HaproxyListener(("127.0.0.1:5433",), alias="my"),
    ]
    cert, key = certificate(tmp_path)
    (tmp_path / "a.pem").write_bytes(cert.read_bytes() + key.read_bytes())
    demanding = HaproxyCertificate("a.pem", str(cert), "required")
    listeners.append(
        HaproxyListener(
            ("127.0.0.1:8443",), crt_list="a.crt-list", certificates=(demanding,), accept_proxy=True
        )
    )
    streams = [
        StreamRoute(alias=each, bind="", to=(Target(url="10.0.0.5:5432"),), accept_proxy=each == "pg")
        for each in ("pg", "my")
    ]
    settings = GatewaySettings(directory="/tmp", trusted_proxies=trusted)
    configuration = made(Route(alias="a", to=WEB), settings=settings, listeners=listeners, streams=streams)
    check(configuration, tmp_path)
    text = section(configuration, "frontend gateway")
    assert "    bind 127.0.0.1:8080\n    bind 127.0.0.1:8081 name accept-proxy-protocol\n" in text
    names = "accept-proxy-protocol accept-proxy-protocol-a.crt-list"
    assert f"tcp-request connection expect-proxy layer4 if {{ so_name {names} }} {{ src " in text
    assert "expect-proxy" in section(configuration, "listen stream:pg")
    assert "expect-proxy" not in section(configuration, "listen stream:my")


ONE, TWO = Target(server="one"), Target(server="two")


PORTS = {"one": 8081, "two": 8082}


def setup(
    *targets: Target,
    states: dict[str, str] | None = None,
    hosts: dict[str, str] | None = None,
    bundle: bytes = b"A\n\nB\n",
    inode: int = 1,
    **rules: Any,
) -> HaproxySetup:
    """Of one route "r" with these targets; all of its servers are ready but for those with other states."""
    endpoints = {
        name: Endpoint("tcp", (hosts or {}).get(name, "127.0.0.1"), port) for name, port in PORTS.items()
    }
    if "unix" in (hosts or {}):
        endpoints["one"] = Endpoint("unix", path="/run/one.sock")
    route = Route(alias="r", to=targets, **rules)
    made = configuration_of(
        GatewaySettings(directory=""), [HaproxyListener(("fd@3",))], [route], [], endpoints, APPLICATIONS
    )
    names = [server.name for section in made.backends for server in section.servers]
    all_states = {("route:r", name): (states or {}).get(name, "ready") for name in names}
    return HaproxySetup(made, all_states, {"c.pem": bundle}, {}, ((3, inode),))


URL, OTHER_URL = Target(url="http://10.0.0.7:9000"), Target(url="http://10.0.0.8:9000")


CHECKED = "check inter 10000ms fall 2 rise 1 observe layer4 error-limit 5 on-error mark-down"


@pytest.mark.parametrize(
    ("before", "after", "commands"),
    [
        (setup(ONE), setup(ONE), []),
        (setup(ONE), setup(ONE, states={"one": "maint"}), ["set server route:r/one state maint"]),
        (
            setup(ONE, states={"one": "drain"}),
            setup(ONE),
            ["set server route:r/one state ready"],
        ),
        (
            setup(ONE),
            setup(ONE, hosts={"one": "10.0.0.1"}),
            ["set server route:r/one addr 10.0.0.1 port 8081"],
        ),
        (setup(ONE), setup(ONE, hosts={"one": "::1"}), ["set server route:r/one addr ::1 port 8081"]),
        (
            setup(ONE, TWO),
            setup(ONE, replace(TWO, weight=3)),
            ["set server route:r/two weight 3"],
        ),
        (
            setup(ONE),
            setup(ONE, TWO),
            ["add server route:r/two 127.0.0.1:8082", "set server route:r/two state ready"],
        ),
        (
            setup(ONE, OTHER_URL),
            setup(ONE, OTHER_URL, URL),
            [
                f"add server route:r/10.0.0.7:9000 10.0.0.7:9000 {CHECKED} pool-purge-delay 125ms",
                "enable health route:r/10.0.0.7:9000",
                "set server route:r/10.0.0.7:9000 state ready",
            ],
        ),
        (
            setup(ONE)._replace(maps={"m.map": {"a": "1", "b": "2"}}),
            setup(ONE)._replace(maps={"m.map": {"b": "3", "c": "4"}}),
            ["set map m.map b 3", "add map m.map c 4", "del map m.map a"],
        ),
        # Connections to a URL, which may end when they are idle, are not for every request.
        (setup(ONE), setup(ONE, URL), None),
        (
            setup(ONE, TWO),
            setup(TWO),
            ["set server route:r/one state maint", "del server route:r/one"],
        ),
        (
            setup(ONE),
            setup(TWO),
            [
                "add server route:r/two 127.0.0.1:8082",
                "set server route:r/two state ready",
                "set server route:r/one state maint",
                "del server route:r/one",
            ],
        ),
        (
            setup(ONE, TWO, states={"two": "maint"}),
            setup(ONE, TWO, states={"one": "maint"}),
            ["set server route:r/two state ready", "set server route:r/one state maint"],
        ),
        (
            setup(ONE),
            setup(ONE, bundle=b"C\n\nD\n"),
            ["set ssl cert c.pem <<\nC\nD\n", "commit ssl cert c.pem"],
        ),
        (setup(ONE), setup(ONE, TWO, states={"two": "maint"}), ["add server route:r/two 127.0.0.1:8082"]),
        (
            setup(ONE, states={"one": "maint"}),
            setup(ONE, replace(TWO, weight=2), states={"one": "drain", "two": "drain"}),
            [
                "add server route:r/two 127.0.0.1:8082 weight 2",
                "set server route:r/one state drain",
                "set server route:r/two state drain",
            ],
        ),
        (
            setup(ONE, TWO),
            setup(
                replace(ONE, weight=2), replace(TWO, weight=3), hosts={"one": "10.0.0.1", "two": "10.0.0.2"}
            ),
            [
                "set server route:r/one weight 2",
                "set server route:r/one addr 10.0.0.1 port 8081",
                "set server route:r/two weight 3",
                "set server route:r/two addr 10.0.0.2 port 8082",
            ],
        ),
    ],
)
def test_change_of_servers_and_certificates_is_made_by_commands(
    before: HaproxySetup, after: HaproxySetup, commands: list[str]
) -> None:
    assert runtime_commands(before, after) == commands


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (setup(ONE), setup(ONE, path="/v1")),
        (setup(ONE), setup(ONE, policy="least-connections")),
        (setup(ONE), setup(ONE, inode=2)),
        (setup(ONE), setup(ONE, hosts={"one": "localhost"})),
        (setup(ONE), setup(ONE, hosts={"unix": ""})),
        (setup(ONE, sticky_cookie="c"), setup(ONE, TWO, sticky_cookie="c")),
        (setup(ONE, policy="first"), setup(ONE, TWO, policy="first")),
        (setup(ONE, TWO, policy="first"), setup(ONE, policy="first")),
        (setup(ONE, hosts={"unix": ""}), setup(ONE)),
        (setup(URL), setup(URL, breaker=BreakerRule(failures=9))),
        (setup(ONE), setup(ONE)._replace(bundles={})),
        (setup(ONE), setup(ONE)._replace(bundles={"c.pem": b"A\n\nB\n", "d.pem": b"D"})),
        (setup(ONE), setup(ONE)._replace(authorities={"ca.pem": b""})),
        (setup(ONE), setup(ONE)._replace(configuration=setup(ONE).configuration._replace(files={"a": ""}))),
        (setup(ONE), setup(ONE)._replace(configuration=setup(ONE).configuration._replace(lines=()))),
        (
            setup(ONE),
            setup(ONE)._replace(
                configuration=setup(ONE).configuration._replace(
                    backends=setup(ONE).configuration.backends * 2
                )
            ),
        ),
    ],
)
def test_other_changes_need_another_start(before: HaproxySetup, after: HaproxySetup) -> None:
    assert runtime_commands(before, after) is None


def test_start_rests_servers_that_are_not_ready_and_drains_those_that_are_to_be() -> None:
    made = setup(ONE, TWO, states={"one": "maint", "two": "drain"})
    assert "server one 127.0.0.1:8081 disabled" in made.text
    assert "server two 127.0.0.1:8082 disabled" in made.text
    assert made.drain_commands() == ["set server route:r/two state drain"]
    assert made.descriptor_numbers == [3]


def test_servers_are_found_by_the_numbers_of_their_lines_and_can_be_left_out() -> None:
    whole = setup(ONE, TWO, URL)
    lines = whole.text.splitlines()
    found = dict(whole.configuration.servers_by_line_number())
    assert [lines[number - 1].split()[:2] for number in found] == [
        ["server", "one"], ["server", "two"], ["server", "10.0.0.7:9000"],
    ]  # fmt: skip
    two = next(server for server in found.values() if server[1].name == "two")
    assert whole.without([two]) == setup(ONE, URL)
    assert whole.without([]) is whole


class Held:
    """Listeners with sockets of their own, and the backends of a route and a stream, as the supervisor has them."""

    def __init__(self) -> None:
        self.sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        self.stream = StreamRoute(alias="pg", bind="127.0.0.1:5432", to=(Target(url="10.0.0.5:5432"),))
        self.listeners = [
            HeldListener(ListenerSettings(bind=":8443", tls=True, accept_proxy=True), None, self.sockets[:2]),
            HeldListener(
                ListenerSettings(bind="127.0.0.1:5432", protocol="tcp", alias="pg"),
                self.stream,
                self.sockets[2:],
            ),
        ]
        self.certificates = {
            (":8443", ("a.example",)): CertificateContents(_rules(), [b"CERT\n\n", b"KEY\n"]),
            (":8443", ()): CertificateContents(
                _rules("optional", "1.3", "AES"), [b"BOTH\n", b"BOTH\n", b"CA\n"]
            ),
            (":9443", ("b.example",)): CertificateContents(_rules(), [b"other", b"other"]),
        }
        self.routes = [Route(alias="r", to=(ONE, TWO, Target(server="gone"), URL))]
        self.servers = {
            "one": ServerFacts(name="one", bind="127.0.0.1:8081", state="running", ready=True),
            "two": ServerFacts(name="two", bind="127.0.0.1:8082", tls=True, state="sleeping"),
            "gone": ServerFacts(name="gone", bind="no address", state="stopped"),
        }
        clock = ManualClock()
        self.hosts = HostStates(clock.monotonic, wall=clock.time)
        self.backends = Backends(self.hosts, clock.monotonic)
        self.addresses: dict[str, str] = {}

    def close(self) -> None:
        for each in self.sockets:
            each.close()

    def made(self) -> HaproxySetup:
        self.backends.apply([*self.routes, self.stream], self.servers)
        return setup_of(
            GatewaySettings(directory="/tmp"), self.listeners, self.certificates, self.routes, self.servers,
            self.backends, self.addresses,
        )  # fmt: skip

    def states(self, *disabled: str) -> list[str]:
        """The states of the route's servers one, two, gone and of the URL, and of the stream's."""
        for each in disabled:
            self.hosts.disable(each)
        try:
            return [*self.made().states.values()]
        finally:
            for each in disabled:
                self.hosts.enable(each)


def _rules(client_auth: str = "none", min_version: str = "1.2", ciphers: str | None = None) -> dict[str, Any]:
    return {"client_auth": client_auth, "min_version": min_version, "ciphers": ciphers}


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.close()


def test_setup_has_the_sockets_and_certificates_of_its_listeners(held: Held) -> None:
    found = held.made()
    numbers = [each.fileno() for each in held.sockets]
    assert found.descriptors == tuple(
        (each.fileno(), os.fstat(each.fileno()).st_ino) for each in held.sockets
    )
    assert found.bundles == {"certificate-1.pem": b"CERT\nKEY\n", "certificate-2.pem": b"BOTH\n"}
    assert found.authorities == {"certificate-2.pem.ca": b"CA\n"}
    certificates = (
        HaproxyCertificate("certificate-1.pem", names=("a.example",)),
        HaproxyCertificate("certificate-2.pem", "certificate-2.pem.ca", "optional", "1.3", "AES"),
    )
    listeners = [
        HaproxyListener(
            (f"fd@{numbers[0]}", f"fd@{numbers[1]}"),
            "",
            f"listener-{numbers[0]}.crt-list",
            certificates,
            True,
        ),
        HaproxyListener((f"fd@{numbers[2]}",), "pg", f"listener-{numbers[2]}.crt-list"),
    ]
    endpoints = {
        "one": Endpoint("tcp", "127.0.0.1", 8081), "two": Endpoint("tcp", "127.0.0.1", 8082, tls=True),
    }  # fmt: skip
    assert found.configuration == configuration_of(
        GatewaySettings(directory="/tmp"), listeners, held.routes, [held.stream], endpoints
    )
    assert found.text == found.configuration.text([("route:r", "two"), ("route:r", "gone")])
    assert found.frontends == ["gateway", "stream:pg"]
    del held.listeners[0]
    assert held.made().frontends == ["stream:pg"]


def test_server_with_a_host_name_is_reached_at_the_address_that_is_known(held: Held) -> None:
    held.routes = [
        Route(alias="r", to=(Target(url="https://a.example:8443"), Target(url="http://b.example")))
    ]
    held.stream = replace(held.stream, to=(Target(url="[::1]:1"),))
    assert host_names([*held.routes, held.stream], held.servers) == {"a.example", "b.example"}
    held.addresses = {"b.example": "fd00::1"}
    a, b, _ = (server for section in held.made().configuration.backends for server in section.servers)
    assert (a.address, b.address) == ("ipv4@127.0.0.1:1", "ipv6@fd00::1:80")
    assert a.options.startswith("ssl verify required ")
    assert a.options.endswith(f" {CHECKED} pool-purge-delay 125ms")
    assert held.states()[:2] == ["maint", "ready"]
    before = held.made()
    held.addresses = {"a.example": "10.0.0.1", "b.example": "fd00::1"}
    assert runtime_commands(before, held.made()) == [
        "set server route:r/a.example:8443 addr 10.0.0.1 port 8443",
        "set server route:r/a.example:8443 state ready",
    ]


def test_best_servers_that_are_available_get_the_traffic(held: Held) -> None:
    assert {*held.made().states} == {
        ("route:r", "one"), ("route:r", "two"), ("route:r", "gone"), ("route:r", "10.0.0.7:9000"),
        ("stream:pg", "10.0.0.5:5432"),
    }  # fmt: skip
    assert held.states() == ["ready", "maint", "maint", "ready", "ready"]
    assert held.states("one") == ["maint", "maint", "maint", "ready", "ready"]
    assert held.states("one", URL.url) == ["maint", "ready", "maint", "maint", "ready"], "it sleeps"
    assert held.states("one", "two", URL.url) == ["maint", "maint", "maint", "maint", "ready"]
    held.hosts.drain("one")
    assert held.states() == ["drain", "maint", "maint", "ready", "ready"]
    assert held.made().used_targets == {"one", URL.url, "10.0.0.5:5432"}
    held.hosts.disable("10.0.0.5:5432")
    assert held.states() == ["drain", "maint", "maint", "ready", "maint"]


def test_servers_that_sleep_or_start_are_in_the_map(held: Held) -> None:
    held.routes = [Route(alias="r", to=(ONE, TWO), waiting_page=True), Route(alias="other", to=(TWO,))]
    assert (held.made().maps, held.made().shows_waiting_page) == ({"sleeping.map": {}}, False)
    held.servers["one"] = replace(held.servers["one"], state="stopped", ready=False)
    made = held.made()
    assert (made.maps, made.shows_waiting_page) == ({"sleeping.map": {"route:r": "asleep"}}, True)
    assert made.files["sleeping.map"] == b"route:r asleep\n"
    held.servers["two"] = replace(held.servers["two"], state="starting")
    assert (held.made().maps, held.made().shows_waiting_page) == (
        {"sleeping.map": {"route:r": "starts"}},
        False,
    )


def test_canary_drains_by_maintenance(held: Held) -> None:
    held.servers["one"] = replace(
        held.servers["one"], canary="one (canary)", canary_bind="127.0.0.1:9081", canary_share=0.25
    )
    held.routes = [Route(alias="r", to=(ONE,))]
    made = held.made()
    assert made.maps == {"canaries.map": {"route:r/one:canary": "250"}}
    assert made.files["canaries.map"] == b"route:r/one:canary 250\n"
    assert {made.states["route:r", name] for name in ("one", "one:canary")} == {"ready"}
    assert {"one", "one (canary)"} <= made.used_targets
    held.hosts.drain("one")
    assert [held.made().states["route:r", name] for name in ("one", "one:canary")] == ["drain", "maint"]
