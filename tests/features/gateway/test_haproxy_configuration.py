"""The configuration for HAProxy: the real program accepts it, and decides by it as the gateway does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.gateway.haproxy.configuration import (
    UNANSWERED,
    HaproxyConfiguration,
    ProcessPlaces,
    ServerAddresses,
    configuration_of,
    sticky_value,
)
from poolctl.features.gateway.haproxy.limits import REFUSE_FILE, REFUSE_UPLOADS
from poolctl.features.gateway.haproxy.listeners import HaproxyCertificate, HaproxyListener
from poolctl.features.gateway.settings import Endpoint, GatewaySettings
from poolctl.routing.match import explain, normal_host
from poolctl.routing.normal_path import normal_path
from poolctl.routing.route import (
    POLICIES,
    BreakerRule,
    Header,
    Redirect,
    Route,
    StreamRoute,
    Target,
    Timeouts,
    TrafficLimits,
)
from tests.asyncio_server import hang_up, start_server
from tests.certificates import certificate
from tests.features.gateway.scripted_haproxy import gateway_settings
from tests.programs import program

WEB = (Target(server="web"),)
MARK = (Header(name="x-mark", value="m"),)
# How a server's line ends that may close idle connections by itself, with TLS and without.
CLOSED = "pool-purge-delay 125ms"
IDLE = f"{CLOSED} sni var(txn.once)"
AUTHORITIES = str(ssl.get_default_verify_paths().cafile)
ANY = HaproxyListener(("127.0.0.1:8080",))
LOCAL = {"web": Endpoint("tcp", "127.0.0.1", 8081)}


def made(
    *routes: Route,
    settings: GatewaySettings | None = None,
    listeners: Sequence[HaproxyListener] = (ANY,),
    streams: Iterable[StreamRoute] = (),
    endpoints: dict[str, Endpoint] = LOCAL,
    keys: dict[str, str] | None = None,
) -> HaproxyConfiguration:
    return configuration_of(
        settings or gateway_settings(), listeners, routes, streams, ServerAddresses(endpoints), keys or {}
    )


def section(configuration: HaproxyConfiguration, name: str) -> str:
    """The lines of a section of the text."""
    return re.split(r"\n(?=\S)", configuration.text().partition(f"\n{name}\n")[2])[0]


def check(configuration: HaproxyConfiguration, directory: Path) -> None:
    """HAProxy itself finds no problem, and warns of nothing."""
    for name, text in {"haproxy.cfg": configuration.text(), **configuration.all_files}.items():
        (directory / name).write_text(text)
    command = [program("haproxy"), "-c", "-f", str(directory / "haproxy.cfg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_name_of_each_application_has_its_key_wherever_its_requests_are_sent(tmp_path: Path) -> None:
    addresses = ServerAddresses(
        LOCAL,
        waiting={"web": "unix@/wait", "http://10.0.0.7:80": "unix@/machine"},
    )
    route = Route(alias="ä", to=(*WEB, Target(url="http://10.0.0.7:80")))
    found = configuration_of(gateway_settings(), (ANY,), (route,), (), addresses, {"web": "0123456789abcdef"})
    lines = found.text().splitlines()
    of_web = ":0123456789abcdef:c3a4"
    assert [each.split()[1] for each in lines if each.startswith("    server ")] == [
        f"web{of_web}", f"web:wait{of_web}", "10.0.0.7:80", "10.0.0.7:80:wait",
    ]  # fmt: skip
    assert "    http-send-name-header x-poolctl-context" in lines
    check(found, tmp_path)
    assert (
        "http-send-name-header" not in made(Route(alias="a", to=(Target(url="http://10.0.0.7:80"),))).text()
    )


def test_haproxy_warns_of_nothing_in_a_process_that_passes_requests_on_once_replaced(tmp_path: Path) -> None:
    places = ProcessPlaces(next_bind="abns@this", next="abns@next", key="KEY")
    routes = [Route(alias="a", to=WEB), Route(alias="b", to=WEB, methods=("GET",))]
    found = configuration_of(gateway_settings(), (ANY,), routes, (), ServerAddresses(LOCAL), {}, places)
    uses = [each.split()[1] for each in found.text().splitlines() if each.startswith("    use_backend ")]
    assert uses[0] == "next"
    check(found, tmp_path)


RULES: list[tuple[Route, list[str]]] = [
    (Route(alias="a", to=WEB), ["balance roundrobin", "server web 127.0.0.1:8081"]),
    *(
        (Route(alias="a", to=WEB, policy=policy), [f"balance {word}"])
        for policy, word in (
            ("round-robin", "roundrobin"),
            ("weighted", "roundrobin"),
            ("sticky", "roundrobin"),
            ("least-connections", "leastconn"),
            ("random-two", "random(2)"),
            ("first", "first"),
            ("ip-hash", "hash var(txn.client)\n    hash-type consistent"),
        )
    ),
    (
        Route(alias="a", to=(Target(server="web", weight=1000), Target(server="new"))),
        [f"server web 127.0.0.1:8081 {IDLE} weight 256", f"server new ipv4@127.0.0.1:1 {IDLE}"],
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
        ["timeout queue 2000ms", "{ queue ge 9 }", f"server web 127.0.0.1:8081 {IDLE} maxconn 4 maxqueue 9"],
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
        Route(alias="a", to=(Target(url="https://[::1]:8443"),), breaker=BreakerRule(failures=0, rate=0.0)),
        [f"server _::1_:8443 ipv6@::1:8443 ssl verify required ca-file {AUTHORITIES} verifyhost ::1"],
    ),
    (Route(alias="a", to=(Target(url="unix:/run/a b"),)), ["'unix@/run/a b'"]),
]


def test_each_balance_policy_has_a_rule_above() -> None:
    assert {route.policy for route, _ in RULES} == {*POLICIES}


@pytest.mark.parametrize(("route", "lines"), RULES)
def test_a_rule_of_a_route_has_its_line(route: Route, lines: list[str]) -> None:
    text = section(made(route), "backend route:a")
    for line in lines:
        assert line in text


def test_all_rules_are_accepted(tmp_path: Path) -> None:
    routes = [replace(route, alias=f"a{number}") for number, (route, _) in enumerate(RULES)]
    check(made(*routes), tmp_path)


def test_any_number_of_values_and_any_time_is_accepted(tmp_path: Path) -> None:
    many = Route(
        alias="many",
        to=WEB,
        methods=tuple(f"M{chr(65 + number // 26)}{chr(65 + number % 26)}" for number in range(100)),
        host="*.example.com",
        path="/v1",
        headers=tuple(Header(name=f"x-{number}", value="a") for number in range(200)),
        breaker=BreakerRule(statuses=tuple(range(400, 600, 2))),
        probe_responses=tuple(f"/{number}" for number in range(100)),
        timeouts=Timeouts(connect=1e7, head=1e7, idle=1e7),
        backend_limit=TrafficLimits(concurrency=1, queue=1, queue_seconds=1e7),
    )
    redirect = Route(alias="old", host="old.example", redirect=Redirect(to="https"), set_headers=MARK)
    check(made(many, redirect, settings=gateway_settings(head_timeout=1e7)), tmp_path)


ODD = "x!#$%&'*+.^_`|~"  # every character that a name may have beside letters and digits (RFC 9110 §5.6.2)


async def test_names_may_have_every_character_of_a_token(tmp_path: Path) -> None:
    route = Route(alias=ODD, host="a.example", headers=(Header(name=ODD, value=ODD),), to=WEB)
    sticky = replace(route, alias="sticky", host="b.example", headers=(), sticky_cookie=ODD)
    routes = [route, sticky]
    async with haproxy_program(tmp_path, routes, header_for_host=f"{ODD}-host") as running:
        asked = {f"{ODD}-host": "a.example", ODD: ODD}
        assert (await ask(running.port, "GET", "b", "/", asked))[0] == 200
        assert (await ask(running.port, "GET", "b", "/", asked | {ODD: "x"}))[0] == 404
        cookie = {f"{ODD}-host": "b.example", "Cookie": f"{ODD}={sticky_value('web')}"}
        assert (await ask(running.port, "GET", "b", "/", cookie))[0] == 200


async def test_request_without_the_header_that_names_the_host_is_matched_by_its_host(tmp_path: Path) -> None:
    route = Route(alias="a", host="a.example", to=WEB)
    async with haproxy(tmp_path, [route], header_for_host="X-Host") as port:
        for host, fields, status in (
            ("a.example", {}, 200),
            ("a.example", {"X-Host": ""}, 200),
            ("b.example", {"X-Host": "A.example.:80"}, 200),
            ("a.example", {"X-Host": "b.example"}, 404),
            ("b.example", {}, 404),
        ):
            assert (await ask(port, "GET", host, "/", fields))[0] == status, (host, fields)


@pytest.mark.parametrize(
    ("request_line", "fields", "status"),
    [
        ("GET / HTTP/1.1", "", 400),
        ("GET / HTTP/1.0", "", 200),
        ("GET / HTTP/1.1", "Host: a b", 400),
        ("GET / HTTP/1.1", "Host: a/../b", 400),
        ("GET / HTTP/1.1", "Host: user@a", 400),
        ("GET / HTTP/1.1", "Host: [::1]:80", 200),
        ("GET / HTTP/1.2", "Host: a", 505),
        ("GET / HTTP/2.0", "Host: a", 505),
        ("GET / HTTP/0.9", "Host: a", 505),
        ("GET x HTTP/1.1", "Host: a", 400),
        ("GET ftp://a/ HTTP/1.1", "Host: a", 400),
        ("GET http://a/ HTTP/1.1", "Host: a", 200),
        ("OPTIONS * HTTP/1.1", "Host: a", 200),
        ("POST / HTTP/1.0", "Host: a\r\nTransfer-Encoding: chunked", 400),
    ],
)
async def test_invalid_request_is_refused(
    tmp_path: Path, request_line: str, fields: str, status: int
) -> None:
    async with haproxy(tmp_path, [Route(alias="a", to=WEB)]) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        lines = [request_line, "Connection: close", *filter(None, [fields]), "", ""]
        writer.write("\r\n".join(lines).encode())
        # HAProxy 3.0 waits for the rest of a body, and does not close the connection before.
        assert int((await reader.readline()).split()[1]) == status
        writer.close()


@pytest.mark.parametrize(
    "query", ["", "sale=100%", "q=%zz%", "signature=%2f%3D%7e%61", "next=/../a//b;c\\d?e&%00", "a={b}|c"]
)
async def test_query_is_forwarded_as_the_client_has_sent_it(tmp_path: Path, query: str) -> None:
    stripped = Route(alias="b", path="/v1", strip_path=True, to=WEB)
    moved = Route(alias="m", path="/old", redirect=Redirect(to="https://new.example"))
    async with haproxy(tmp_path, [Route(alias="a", to=WEB), stripped, moved]) as port:
        status, got = await ask(port, "GET", "a", f"/x/../%7eb%2fc?{query}", {})
        assert (status, got["target"]) == (200, f"/~b%2Fc?{query}")
        status, got = await ask(port, "GET", "a", f"http://a/v1?{query}", {})
        assert (status, got["target"]) == (200, f"http://a/?{query}")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /old/%7e?{query} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        assert f"location: https://new.example/old/~?{query}\r\n".encode() in await reader.read()
        writer.close()


@pytest.mark.parametrize(("size_bytes", "status"), [(1000, 200), (9000, 431)])
async def test_head_above_a_small_limit_is_refused(tmp_path: Path, size_bytes: int, status: int) -> None:
    async with haproxy(tmp_path, [Route(alias="a", to=WEB)], max_head_size=8192) as port:
        assert (await ask(port, "GET", "a", "/", {"X-A": "a" * size_bytes}))[0] == status
        assert (await ask(port, "GET", "a", f"/{'a' * size_bytes}", {}))[0] == status


async def test_connection_without_a_request_is_closed_silently_and_part_of_one_gets_408(
    tmp_path: Path,
) -> None:
    async with haproxy(tmp_path, [Route(alias="a", to=WEB)], head_timeout=1.0) as port:
        for sent, status in ((b"", []), (b"GET / HTTP/1.1\r\n", [b"408"])):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            assert (await reader.read()).split()[1:2] == status
            writer.close()


UPLOAD = bytes(20_000_000)


@pytest.mark.parametrize(
    ("field", "body", "status"),
    [
        (f"Content-Length: {len(UPLOAD)}", UPLOAD, 413),
        ("Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(UPLOAD), UPLOAD), 413),
        ("Transfer-Encoding: chunked", b"2\r\nok\r\n0\r\n\r\n", 411),
        ("Content-Length: 1000", bytes(1000), 200),
    ],
)
async def test_client_that_sends_all_before_it_reads_learns_that_its_body_is_refused(
    tmp_path: Path, field: str, body: bytes, status: int
) -> None:
    async with haproxy(tmp_path, [Route(alias="a", to=WEB, max_body_bytes=1000)]) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n".encode() + body)
        await writer.drain()
        assert int((await reader.readuntil(b"\r\n\r\n")).split()[1]) == status
        writer.close()


async def test_client_that_asks_first_is_refused_before_it_sends_its_body(tmp_path: Path) -> None:
    async with haproxy(tmp_path, [Route(alias="a", to=WEB, max_body_bytes=1000)]) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
        writer.close()


async def test_client_is_not_told_how_long_the_backend_keeps_connections(tmp_path: Path) -> None:
    async with haproxy(tmp_path, [Route(alias="a", to=WEB)]) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"keep-alive" not in (await reader.readuntil(b"\r\n\r\n")).lower()
        writer.close()


async def test_client_gets_no_tunnel(tmp_path: Path) -> None:
    async with haproxy_program(tmp_path, [Route(alias="a", to=WEB)]) as running:
        for method, target in (("CONNECT", "a.example:80"), ("TRACE", "/")):
            assert (await ask(running.port, method, "a.example:80", target, {}))[0] == 405
        assert not running.requests


def test_path_of_a_socket_may_have_every_character(tmp_path: Path) -> None:
    route = Route(alias="a", to=(Target(url="unix:/run/a'b\"c\\d#e$f{g}\nlisten x"),))
    check(made(route), tmp_path)
    assert "\nlisten" not in made(route).text()


def test_streams_certificates_and_settings_are_accepted(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    (tmp_path / "a.pem").write_bytes(cert.read_bytes() + key.read_bytes())
    (tmp_path / "ca.pem").write_bytes(cert.read_bytes())
    settings = gateway_settings(
        max_connections=100, keep_alive=0.0, header_for_host="X-Host",
        trusted_proxies=tuple(f"10.{number}.0.0/16" for number in range(50)),
    )  # fmt: skip
    certificates = (
        HaproxyCertificate("a.pem", names=("A.example", "*.b.example", "10.0.0.1", "[::1]")),
        HaproxyCertificate("a.pem", "ca.pem", "optional", "1.3", "ECDHE+AESGCM AES, !MD5", ("*.b.example",)),
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
        "a.pem [ssl-min-ver TLSv1.3 verify optional ca-file ca.pem ciphers ECDHE+AESGCM:AES,:!MD5] *.b.example\n"
        "a.pem [ssl-min-ver TLSv1.2] -\n",
        UNANSWERED: "",
        "8443.crt-list.map": "a.example 0\n*.b.example 0.1+\n- 2\n",
    }
    tls = "bind :::8443 v4v6 name 8443.crt-list ssl crt-list 8443.crt-list alpn"
    assert f"{tls} h2,http/1.1 no-tls-tickets\n" in configuration.text()
    assert "tune.ssl.cachesize 0\n" in configuration.text()
    http1 = made(
        settings=settings._replace(table=settings.table.model_copy(update={"http2": False})),
        listeners=listeners[:1],
    )
    assert f"{tls} http/1.1 no-tls-tickets\n" in http1.text()
    open_to_all = made(listeners=[listeners[0]._replace(certificates=certificates[:1])])
    assert open_to_all.files == {"8443.crt-list": "a.pem [ssl-min-ver TLSv1.2]\n", UNANSWERED: ""}
    assert "bind :::8443 v4v6 ssl crt-list 8443.crt-list alpn h2,http/1.1\n" in open_to_all.text()
    assert "421" not in open_to_all.text()
    assert "cachesize" not in open_to_all.text()
    assert "maxconn 7" in section(configuration, "listen stream:pg")
    check(configuration, tmp_path)
    trusting = made(
        settings=settings._replace(table=settings.table.model_copy(update={"trusted_proxies": ("*",)})),
        listeners=listeners[:1],
    )
    assert "{ src 0.0.0.0/0 ::/0 }" in trusting.text()
    check(trusting, tmp_path)


def test_names_that_differ_only_in_other_characters_stay_apart(tmp_path: Path) -> None:
    first, second = Route(alias="a b", host="a.example", to=WEB), Route(alias="a_b", host="b.example", to=WEB)
    configuration = made(first, second)
    assert [each.name for each in configuration.backends] == ["route:a_b", "route:a_b:2"]
    check(configuration, tmp_path)


def every_rule() -> HaproxyConfiguration:
    """The configuration of a pool that uses as many keys as possible."""
    settings = gateway_settings(
        max_connections=100,
        keep_alive=0.0,
        header_for_host="X-Host",
        trusted_proxies=("10.0.0.0/8", "192.0.2.1"),
        drain_timeout=7.5,
        head_timeout=3.0,
        max_head_size=32_768,
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
        timeouts=Timeouts(idle=30.0),
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
        REFUSE_FILE: REFUSE_UPLOADS,
        UNANSWERED: "",
    }


def test_configuration_without_routes_is_written_as_a_whole() -> None:
    found = made()
    assert found.text() == Path(__file__).with_name("no_route.cfg").read_text()
    assert (found.files, found.backends) == ({UNANSWERED: ""}, ())
    no_listener = made(listeners=[])
    assert no_listener.lines[-3:] == found.lines[-3:]
    assert no_listener.lines[:-3] == found.lines[: found.lines.index("frontend gateway") - 1]
    assert no_listener.backends == ()


def section_lines(route: Route, endpoints: dict[str, Endpoint] = LOCAL) -> list[str]:
    """The lines of the route's section, without comments."""
    lines = map(str.strip, section(made(route, endpoints=endpoints), "backend route:a").splitlines())
    return [each for each in lines if not each.startswith("#")]


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
    others = found.index("balance roundrobin") if redirect is None else None
    assert found[:others] == lines


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
        f"server {name} ipv4@127.0.0.1:1 {IDLE}{each}" for name, each in zip("ab", scaled, strict=True)
    ]


@pytest.mark.parametrize(
    ("endpoint", "line"),
    [
        (Endpoint("tcp", "10.0.0.1", 0), f"server web ipv4@127.0.0.1:1 {IDLE}"),
        (Endpoint("tcp", "10.0.0.1", 80), f"server web 10.0.0.1:80 {IDLE}"),
        (Endpoint("tcp", "[fd00::1]", 80), f"server web ipv6@fd00::1:80 {IDLE}"),
        (Endpoint("tcp", "fd00::a", 80, tls=True), f"server web ipv6@fd00::a:80 ssl verify none {CLOSED}"),
        (Endpoint("tcp", "db", 80), f"server web db:80 init-addr last,libc,none {IDLE}"),
        (Endpoint("unix", path="/run/w.sock"), f"server web unix@/run/w.sock {IDLE}"),
        (
            Endpoint("tcp", "10.0.0.1", 443, tls=True, server_name="10.0.0.1"),
            f"server web 10.0.0.1:443 ssl verify required ca-file {AUTHORITIES} verifyhost 10.0.0.1 {CLOSED}",
        ),
    ],
)
def test_server_is_reached_at_its_endpoint(endpoint: Endpoint, line: str) -> None:
    assert section_lines(Route(alias="a", to=WEB), {"web": endpoint})[-1] == line


def test_any_peer_that_is_trusted_claims_no_address_for_limits() -> None:
    settings = gateway_settings(trusted_proxies=("*",))
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


@pytest.mark.parametrize(("size_bytes", "buffer"), [(4096, 20_480), (16_384, 20_480), (65_536, 81_920)])
def test_buffer_is_a_quarter_larger_than_the_longest_head(size_bytes: int, buffer: int) -> None:
    lines = made(settings=gateway_settings(max_head_size=size_bytes)).lines
    assert f"    tune.bufsize {buffer}" in lines


def test_buffer_has_room_for_what_is_added_to_a_head() -> None:
    long = (Header(name="x", value="v" * 8000),)
    wanted = Route(alias="a", to=WEB, set_headers=long), Route(alias="b", to=WEB, response_headers=long)
    for route in wanted:
        assert "    tune.bufsize 27473" in made(route).lines
        assert "    tune.maxrewrite 9041" in made(route).lines


POST = ("POST",)


@pytest.mark.parametrize(
    ("route", "wanted"),
    [
        (Route(alias="a", methods=POST), "route:a:method"),
        (
            Route(alias="a", path="/v1/", methods=POST),
            "{ var(txn.path) -m beg -- /v1/ } route:a:method",
        ),
        (
            Route(alias="a", host="a.b*.c"),
            "{ var(txn.host) -m reg -- '^a\\.b.+\\.c$' }",
        ),
        (
            Route(alias="a", redirect=Redirect(to="https"), methods=POST),
            "!{ req.hdr(x-forwarded-proto,1) -m str -i -- https wss } route:a:method",
        ),
    ],
)
def test_route_that_is_not_in_the_map_has_its_condition(route: Route, wanted: str) -> None:
    configuration = made(route)
    line = next(each for each in configuration.lines if "use_backend" in each)
    assert line == f"    use_backend route:a if {wanted} !{{ var(txn.separated) -m found }}"
    assert configuration.maps == {}


def test_routes_are_looked_up_in_a_map_by_host_and_path() -> None:
    routes = [
        Route(alias="exact", host="H.Example.", path="/v/", to=WEB),
        Route(alias="second", host="h.example", path="/v", to=WEB),
        Route(alias="six", host="[::1]", to=WEB),
        Route(alias="label", host="users", to=WEB),
        Route(alias="domain", host="*.b.example", to=WEB),
        Route(alias="any", to=WEB),
    ]
    entries = {
        "//h.example/v/": "route:exact",
        "//[::1]/": "route:six",
        "//users.*/": "route:label",
        "//*.b.example/": "route:domain",
        "//*/": "route:any",
    }
    found = made(*routes)
    assert found.maps == {"routes.map": entries}
    assert found.all_files["routes.map"].startswith("//h.example/v/ route:exact\n//[::1]/ route:six\n")
    assert not any("use_backend route:" in line for line in found.lines)
    posts = made(*routes, Route(alias="posts", host="h.example", methods=POST, to=WEB))
    assert posts.maps == {
        "routes.map": {key: each for key, each in entries.items() if "h.example" not in key}
    }
    tried = [line.split()[1] for line in posts.lines if "use_backend route:" in line]
    assert [*dict.fromkeys(tried)] == ["route:exact", "route:second", "route:posts"]
    assert made(*routes, listeners=[]).maps == {}, "no request could look it up"


def test_request_over_tls_is_looked_up_among_the_routes_that_do_not_redirect_to_https() -> None:
    to_https = Route(alias="to-https", host="a.example", redirect=Redirect(to="https"))
    found = made(to_https, Route(alias="a", host="a.example", to=WEB), Route(alias="b", path="/v", to=WEB))
    assert found.maps["routes.map"] == {
        "//a.example/": "route:to-https",
        "//a.example:443/": "route:a",
        "//*/v/": "route:b",
        "//*:443/v/": "route:b",
    }


@pytest.mark.parametrize(
    ("proto", "status"), [("https", 200), ("HTTPS, http", 200), ("wss", 200), ("http", 308), ("ws", 308)]
)
async def test_request_of_which_a_trusted_proxy_says_that_it_came_over_tls_is_not_redirected(
    tmp_path: Path, proto: str, status: int
) -> None:
    routes = [Route(alias="to-https", redirect=Redirect(to="https")), Route(alias="a", to=WEB)]
    async with haproxy(tmp_path, routes, trusted_proxies=("127.0.0.1",)) as port:
        assert (await ask(port, "GET", "a.example", "/", {"X-Forwarded-Proto": proto}))[0] == status


# What the program decides.

MANY = {f"x-{number}": "a" for number in range(45)}
ROUTES = [
    Route(alias="exact", host="users.example.com"),
    Route(alias="deep", host="users.example.com", path="/v1/a"),
    Route(alias="posts", host="users.example.com", path="/v1", methods=("POST",)),
    Route(alias="flagged", host="users.example.com", path="/v1", headers=(Header(name="x-flag"),)),
    Route(alias="blue", host="users.example.com", path="/v1", headers=(Header(name="x-flag", value="-m blue"),)),
    Route(alias="many", host="*.example.com", path="/many", headers=tuple(Header(name=each) for each in MANY)),
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
    ("GET", "a.example.com", "/many/b", MANY),
    ("GET", "a.example.com", "/many//b", MANY),
    *(
        ("GET", "a.example.com", "/many", {name: MANY[name] for name in MANY if name != missing})
        for missing in ("x-0", "x-20", "x-44")
    ),
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
        self.pid = 0
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
    log_descriptor: int | None = None,
    stderr: int | None = None,
    **settings: Any,
) -> AsyncIterator[HaproxyProgram]:
    """The real program, before a backend that repeats in JSON what it is asked, and redirects to the X-Location.

    It serves on a Unix socket too, if a name for the file is given.
    """
    executable = program("haproxy")  # skips before there are sockets to close
    running = HaproxyProgram(0, directory / "runtime.sock")

    async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _repeat(reader, writer, running)

    backend = await start_server(repeat, "127.0.0.1", 0)
    addresses = ServerAddresses({"web": Endpoint("tcp", *backend.sockets[0].getsockname())})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listeners = [HaproxyListener((f"fd@{listener.fileno()}",), accept_proxy=accept_proxy)]
        if socket_file:
            listeners.append(HaproxyListener((f"unix@{directory / socket_file}",)))
        places = ProcessPlaces(access_log=f"fd@{log_descriptor}")
        configuration = configuration_of(
            gateway_settings(**settings), listeners, routes, (), addresses, {}, places
        )
        path = directory / "haproxy.cfg"
        runtime = f"global\n    stats socket {directory / 'runtime.sock'} level admin\n"
        files = {path.name: configuration.text(), "runtime.cfg": runtime, **configuration.all_files}
        for name, text in files.items():
            (directory / name).write_text(text)
        descriptors = [listener.fileno(), *([] if log_descriptor is None else [log_descriptor])]
        process = await asyncio.create_subprocess_exec(
            executable,
            "-f",
            str(path),
            "-f",
            str(directory / "runtime.cfg"),
            pass_fds=descriptors,
            stderr=stderr,
        )
        running.pid = process.pid
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
            await hang_up(backend)


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
                location = dict(headers).get("x-location")
                status = f"307 T\r\nLocation: {location}" if location else "200 OK"
                head = f"HTTP/1.1 {status}\r\nKeep-Alive: timeout=9\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
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
                    assert status == (400 if normal is None else 404), request
                    continue
                assert status == 200, request
                assert dict(got["headers"])["x-route"] == taken.alias, request
                target = normal.removeprefix(taken.path if taken.strip_path else "") or "/"
                assert got["target"] == target + question + query, request

    asyncio.run(asyncio.wait_for(work(), 60))


async def test_client_cannot_claim_where_it_comes_from(tmp_path: Path) -> None:
    async with haproxy(tmp_path, [Route(alias="web", to=WEB)]) as port:
        forged = {
            "X-Forwarded-For": "6.6.6.6",
            "X_Forwarded_Host": "x",
            "Forwarded": "for=6.6.6.6",
            "Proxy": "x",
            "Script_Name": "/x",
            "Daphne-Root-Path": "/x",
        }
        status, got = await ask(port, "GET", "a.example:80", "/", forged)
        assert status == 200
        reports = ("x", "f", "p", "s", "d")
        assert {name: value for name, value in got["headers"] if name.startswith(reports)} == {
            "x-forwarded-for": "127.0.0.1",
            "x-forwarded-proto": "http",
            "x-forwarded-host": "a.example:80",
        }


async def test_trusted_proxy_is_believed_in_the_fields_that_proxies_set_alone(tmp_path: Path) -> None:
    routes = [Route(alias="web", to=WEB)]
    async with haproxy(tmp_path, routes, trusted_proxies=("127.0.0.1",)) as port:
        said = {
            "X-Forwarded-For": "192.0.2.1",
            "X_Forwarded_For": "6.6.6.6",
            "X-Forwarded_For": "6.6.6.6",
            "X-Real-IP": "6.6.6.6",
            "X-Poolctl-Route": "other",
            "Proxy": "x",
            "SCRIPT_NAME": "/shop",
        }
        status, got = await ask(port, "GET", "a.example", "/", said)
        assert status == 200
        found = [
            each
            for each in got["headers"]
            if each[0].startswith(("x-r", "x-p", "x-forwarded-f", "x_", "p", "s"))
        ]
        assert found == [["script_name", "/shop"], ["x-forwarded-for", "192.0.2.1, 127.0.0.1"]]


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
    settings = gateway_settings(trusted_proxies=trusted)
    configuration = made(Route(alias="a", to=WEB), settings=settings, listeners=listeners, streams=streams)
    check(configuration, tmp_path)
    text = section(configuration, "frontend gateway")
    assert "    bind 127.0.0.1:8080\n    bind 127.0.0.1:8081 name accept-proxy-protocol\n" in text
    names = "accept-proxy-protocol accept-proxy-protocol-a.crt-list"
    assert f"tcp-request connection expect-proxy layer4 if {{ so_name {names} }} {{ src " in text
    assert "expect-proxy" in section(configuration, "listen stream:pg")
    assert "expect-proxy" not in section(configuration, "listen stream:my")
