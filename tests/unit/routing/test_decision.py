"""Which requests may take their connection to a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from poolctl.http.messages import canonical_head
from poolctl.routing.decision import (
    EVERY,
    can_pass_peer_to_worker,
    is_within,
    passable_match,
    passable_tls_host_match,
)
from poolctl.routing.route import Header, Route, Target
from poolctl.routing.route_table import RouteTable, write_table

USERS, SHOP, WEB = ((Target(server=name),) for name in ("users", "shop", "web"))
ROUTES = [
    Route(alias="users", to=USERS, host="users.example.com"),
    Route(alias="shop", to=SHOP, host="shop.example.com"),
    Route(alias="shop-api", to=(Target(url="http://10.0.0.1:80"),), host="shop.example.com", path="/api"),
    Route(alias="beta", to=USERS, host="web.example.com", path="/new", headers=(Header(name="x-beta"),)),
    Route(alias="web", to=WEB, host="web.example.com"),
]


@pytest.fixture(scope="module")
def table() -> Iterator[RouteTable]:
    fd = write_table(ROUTES, 1)
    table = RouteTable(fd)
    os.close(fd)
    yield table
    table.close()


@pytest.mark.parametrize(
    ("host", "target", "servers"),
    [
        ("users.example.com", "/", {"users"}),
        ("USERS.example.com.:8080", "/a?b", {"users"}),
        ("users.example.com", "/a/../b", None),  # not every server removes dot segments
        ("users.example.com", "/%2e%2E/b", None),
        ("users.example.com", "/%61", {"users"}),  # every server reads "/a" (RFC 3986 §6.2.2.2)
        ("users.example.com", "/%7Euser/caf%c3%a9", {"users"}),
        ("shop.example.com", "/%61pi/v1", None),  # another machine, as "/api/v1"
        ("shop.example.com", "/c%61rt", {"shop"}),
        ("shop.example.com", "/cart", {"shop"}),
        ("shop.example.com", "/api/v1", None),  # another machine
        ("shop.example.com", "/api/../cart", None),
        ("web.example.com", "/old", {"web"}),
        ("web.example.com", "/new", None),  # depends on a header
        ("unknown.example.com", "/", None),
        ("", "/", None),
    ],
)
def test_connection_is_passed_if_every_such_request_goes_to_servers_of_the_pool(
    table: RouteTable, host: str, target: str, servers: set[str] | None
) -> None:
    parsed = canonical_head(head(host, target))
    assert parsed is not None
    match = passable_match(parsed, table)
    assert (match and match.servers) == servers


def test_request_for_the_whole_server_is_decided_by_its_root(table: RouteTable) -> None:
    parsed = canonical_head(b"OPTIONS * HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
    assert parsed is not None
    match = passable_match(parsed, table)
    assert match is not None
    assert match.servers == {"shop"}


def test_tls_is_passed_where_the_whole_host_belongs_to_one_route(table: RouteTable) -> None:
    found = {
        host: passable_tls_host_match(host, table)
        for host in ("users.example.com", "shop.example.com", "x.example.com", "")
    }
    assert {host for host, match in found.items() if match} == {"users.example.com"}


def head(host: str, target: str = "/") -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("peer", "trusted", "admitted"),
    [
        ("10.1.2.3", False, True),
        ("::ffff:10.1.2.3", False, True),  # IPv4 on a listener for both
        ("10.1.2.3", True, False),  # a proxy that forwards requests of others
        ("11.1.2.3", False, False),
        ("2001:db8::1", False, True),
        ("2001:db9::1", False, False),
        ("", False, False),  # a Unix socket
        ("a.test", False, False),
    ],
)
def test_connection_is_passed_from_allowed_clients_that_come_directly(
    peer: str, trusted: bool, admitted: bool
) -> None:
    allowed = Route(alias="users", to=USERS, allow=("10.0.0.0/8", "2001:db8::/32"))
    assert can_pass_peer_to_worker(allowed, peer, trusted=trusted) is admitted
    assert can_pass_peer_to_worker(Route(alias="users", to=USERS), peer, trusted=trusted), (
        "every client is allowed"
    )


def test_star_contains_every_address_but_no_unix_socket() -> None:
    found = {address: is_within(address, (EVERY,)) for address in ("10.1.2.3", "2001:db8::1", "", "a.test")}
    assert found == {"10.1.2.3": True, "2001:db8::1": True, "": False, "a.test": False}
    assert is_within("10.1.2.3", ("11.0.0.0/8", EVERY))
    assert not is_within("10.1.2.3", ())
    assert is_within("10.1.2.3", ("10.1.2.3",))
    assert is_within("10.1.2.3", ("10.1.9.9/16",)), "the bits after the prefix do not matter"
