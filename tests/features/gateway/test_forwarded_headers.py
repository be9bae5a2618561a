"""Which client and prefix the real program reports to backends, and believes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from poolctl.routing.route import Route
from tests.features.gateway.test_haproxy_configuration import WEB, ask, haproxy

DEADLINE = 30.0
HOPS = "x-forwarded-for"


async def received(port: int | Path, path: str = "/", **headers: str) -> dict[str, list[str]]:
    """The lines of each field about the client that the backend gets."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    status, got = await ask(port, "GET", "a.test", path, named)
    assert status == 200
    found: dict[str, list[str]] = {}
    for name, value in got["headers"]:
        if name.startswith(("x-forwarded-", "forwarded")):
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.capability
async def test_application_behind_trusted_proxies_knows_its_client(tmp_path: Path) -> None:
    routes = [Route(alias="a", path="/v1", strip_path=True, to=WEB)]
    async with haproxy(tmp_path, routes, trusted_proxies=("127.0.0.1",)) as port:
        found = await received(port, "/v1/x", X_Forwarded_For="192.0.2.7:41234", X_Forwarded_Proto="https")
        assert found == {
            HOPS: ["192.0.2.7:41234, 127.0.0.1"],
            "x-forwarded-proto": ["https"],
            "x-forwarded-host": ["a.test"],
            "x-forwarded-prefix": ["/v1"],
        }, "no Forwarded, which would say http"
        found = await received(
            port, "/v1", Forwarded="for=192.0.2.7;proto=https", X_Forwarded_Prefix="/outer"
        )
        assert found["forwarded"] == ["for=192.0.2.7;proto=https, for=127.0.0.1"]
        assert found["x-forwarded-prefix"] == ["/outer/v1"]


@pytest.mark.capability
@pytest.mark.parametrize(
    ("forwarded", "hops", "proto", "host", "status"),
    [
        ("for=192.0.2.7;proto=https", "192.0.2.7", "https", "a.test", 200),
        (
            'By=1.1.1.1; For="[2001:db8::7]:4711";Proto=HTTPS;host="B.test:8443"',
            "[2001:db8::7]:4711",
            "https",
            "b.test:8443",
            200,
        ),
        # As with X-Forwarded-For, the client is the last one that is not a proxy.
        ("for=192.0.2.7;proto=https, for=198.51.100.1", "192.0.2.7, 198.51.100.1", "https", "a.test", 403),
        ("for=198.51.100.1, for=192.0.2.7, for=10.0.0.1", "198.51.100.1, 192.0.2.7, 10.0.0.1", "http", "a.test", 200),
        ("proto=https", "unknown", "https", "a.test", 403),
        ("xfor=192.0.2.7;proto=ftp", "unknown", "http", "a.test", 403),
        # What the client has chosen, and the proxy quotes, is not another element.
        ('for=198.51.100.1;host="x, for=192.0.2.7"', "", "http", "a.test", 403),
        (r'for=198.51.100.1;host="x\", for=192.0.2.7"', "", "http", "a.test", 403),
        ('for=198.51.100.1;host="x, for=192.0.2.7', "", "http", "a.test", 403),
    ],
)  # fmt: skip
async def test_proxy_that_sends_only_forwarded_is_believed_and_not_contradicted(
    tmp_path: Path, forwarded: str, hops: str, proto: str, host: str, status: int
) -> None:
    routes = [
        Route(alias="inner", path="/inner", to=WEB, allow=("192.0.2.7", "2001:db8::7")),
        Route(alias="a", to=WEB),
    ]
    async with haproxy(tmp_path, routes, trusted_proxies=("127.0.0.1", "10.0.0.0/8")) as port:
        found = await received(port, Forwarded=forwarded)
        assert found[HOPS] == [f"{hops}, 127.0.0.1" if hops else "127.0.0.1"]
        assert (found["x-forwarded-proto"], found["x-forwarded-host"]) == ([proto], [host])
        assert found.get("forwarded") == ([f"{forwarded}, for=127.0.0.1"] if hops else None)
        asked = await ask(port, "GET", "a.test", "/inner", {"Forwarded": forwarded})
        assert asked[0] == status


@pytest.mark.slow
async def test_fields_of_the_clients_own_connection_are_not_forwarded(tmp_path: Path) -> None:
    async with haproxy(tmp_path, [Route(alias="a", to=WEB)]) as port:
        sent = {
            "Keep-Alive": "timeout=9",
            "Proxy-Connection": "keep-alive",
            "TE": "trailers",
            "X-Own": "1",
        }
        status, got = await ask(port, "GET", "a.test", "/", sent)
        names = {name for name, _ in got["headers"]}
        assert status == 200
        assert names & {"keep-alive", "proxy-connection", "te", "x-own"} == {"x-own"}


@pytest.mark.slow
async def test_client_that_is_no_trusted_proxy_reports_nothing(tmp_path: Path) -> None:
    async with haproxy(tmp_path, [Route(alias="a", to=WEB)], trusted_proxies=("10.0.0.0/8",)) as port:
        found = await received(
            port, X_Forwarded_For="192.0.2.7", X_Forwarded_Prefix="/x", Forwarded="for=1.1.1.1"
        )
        assert found == {
            HOPS: ["127.0.0.1"],
            "x-forwarded-proto": ["http"],
            "x-forwarded-host": ["a.test"],
        }


@pytest.mark.slow
async def test_client_cannot_have_the_next_proxy_remove_fields_nor_speak_http2_past_the_rules(
    tmp_path: Path,
) -> None:
    async with haproxy(tmp_path, [Route(alias="a", to=WEB)]) as port:

        async def forwarded(connection: str, upgrade: str = "") -> dict[str, str]:
            sent = {"Connection": f"close, {connection}", "HTTP2-Settings": "AAMAAABk"}
            status, got = await ask(
                port, "GET", "a.test", "/", sent | ({"Upgrade": upgrade} if upgrade else {})
            )
            assert status == 200
            names = ("connection", "upgrade", "http2-settings")
            return {name: value for name, value in got["headers"] if name in names}

        assert await forwarded("X-Forwarded-For, X-Forwarded-Proto") == {}
        assert "upgrade" not in await forwarded("Upgrade, HTTP2-Settings", "h2c")
        assert await forwarded("Upgrade, X-Forwarded-For", "other") == {
            "connection": "upgrade", "upgrade": "other",
        }  # fmt: skip


@pytest.mark.slow
async def test_lines_of_a_field_are_joined_to_one(tmp_path: Path) -> None:
    async with haproxy(tmp_path, [Route(alias="a", to=WEB)], trusted_proxies=("*",)) as port:
        lines = "192.0.2.1\r\nX-Forwarded-For: 192.0.2.2, 192.0.2.3\r\nX-Forwarded-For: 192.0.2.4"
        found = await received(port, X_Forwarded_For=lines, Forwarded="for=a\r\nForwarded: for=b")
        assert found[HOPS] == ["192.0.2.1, 192.0.2.2, 192.0.2.3, 192.0.2.4, 127.0.0.1"]
        assert found["forwarded"] == ["for=a, for=b, for=127.0.0.1"]
        found = await received(port, X_Forwarded_For="", Forwarded="")
        assert (found[HOPS], found["forwarded"]) == (["127.0.0.1"], [""])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hops", "status"),
    [
        ("192.0.2.7", 200),
        ("192.0.2.7:41234", 200),
        ("192.0.2.7:41234, 127.0.0.1:9000", 200),
        ("[2001:db8::7]", 200),
        ("[2001:db8::7]:41234 ,127.0.0.1", 200),
        ("2001:db8::7", 200),
        ("192.0.2.7, 198.51.100.1:41234", 403),
        ("198.51.100.1:41234", 403),
        ("[2001:db9::7]:1", 403),
        ("192.0.2.7, unknown", 200),
        ("unknown", 403),
    ],
)
async def test_client_with_its_port_or_in_brackets_is_known_by_its_address(
    tmp_path: Path, hops: str, status: int
) -> None:
    routes = [Route(alias="a", to=WEB, allow=("192.0.2.0/24", "2001:db8::/32"))]
    async with haproxy(tmp_path, routes, trusted_proxies=("127.0.0.0/8",)) as port:
        assert (await ask(port, "GET", "a.test", "/", {"X-Forwarded-For": hops}))[0] == status


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trusted", "believed"),
    [(("unix",), True), (("*",), True), (("unix", "192.0.2.9"), True), (("127.0.0.1",), False)],
)
async def test_peer_on_a_unix_socket_is_trusted_if_the_file_says_so(
    tmp_path: Path, trusted: Sequence[str], believed: bool
) -> None:
    routes = [Route(alias="inner", path="/inner", to=WEB, allow=("192.0.2.7",)), Route(alias="a", to=WEB)]
    async with haproxy(tmp_path, routes, socket_file="s", trusted_proxies=tuple(trusted)) as port:
        hops = "192.0.2.7, 192.0.2.9" if len(trusted) == 2 else "192.0.2.7"
        claims = {"X_Forwarded_For": hops, "X_Forwarded_Proto": "https"}
        found = await received(tmp_path / "s", **claims)
        assert found.get(HOPS) == ([hops] if believed else None)
        assert found["x-forwarded-proto"] == ["https" if believed else "http"]
        asked = await ask(tmp_path / "s", "GET", "a.test", "/inner", {"X-Forwarded-For": hops})
        assert asked[0] == (200 if believed else 403)
        if trusted == ("unix",):
            assert (await received(port, **claims))[HOPS] == ["127.0.0.1"], "a port is no Unix socket"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "got"),
    [
        ("/items/", "/api.v1/items/"),
        ("/", "/api.v1/"),
        ("/apixv1/a?b=%25", "/api.v1/apixv1/a?b=%25"),
        ("http://a.test:80/items", "http://a.test:80/api.v1/items"),
        ("https://a.test:80", "https://a.test:80/api.v1"),
        # An application that knows the prefix has it in its own Location already.
        ("/api.v1/items", "/api.v1/items"),
        ("/api.v1?x", "/api.v1?x"),
        ("http://a.test:80/api.v1", "http://a.test:80/api.v1"),
        # What is not below the route's prefix.
        ("http://b.test/items", "http://b.test/items"),
        ("//b.test/items", "//b.test/items"),
        ("items", "items"),
    ],
)
async def test_location_of_a_backend_gets_the_prefix_back(tmp_path: Path, sent: str, got: str) -> None:
    route = Route(alias="a", path="/api.v1", to=WEB, strip_path=True)
    async with haproxy(tmp_path, [route]) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with closing(writer):
            writer.write(f"GET /api.v1/x HTTP/1.1\r\nHost: a.test:80\r\nX-Location: {sent}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert f"location: {got}\r\n".encode() in head.lower()
