"""The routes as workers get them: the same decisions, and nothing that a worker need not know."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from poolctl.http.message_head import canonical_head
from poolctl.routing.decision import passed_match
from poolctl.routing.route import PROXY, Header, Limit, Redirect, Route, Target
from poolctl.routing.route_table import RouteTable, write_table
from poolctl.routing.worker_routes import routes_for_workers
from tests.examples import examples

SECRET = "s3cret"
A, B = Target(server="a"), Target(server="b")
URL = Target(url=f"http://{SECRET}.internal:9000")


def file_of(routes: list[Route]) -> bytes:
    fd = write_table(routes, 1)
    try:
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def test_table_of_workers_holds_no_headers_urls_or_limits() -> None:
    added = Header(name="authorization", value=f"Bearer {SECRET}")
    routes = [
        Route(alias="added", host="a.test", to=(A,), add_headers=(added,)),
        Route(alias="condition", host="b.test", to=(A,), headers=(Header(name="x-key", value=SECRET),)),
        Route(alias="host", host="c.test", to=(A,), host_header=SECRET, sticky_cookie=SECRET),
        Route(alias="url", host="d.test", to=(URL, A), limit=Limit(concurrency=7)),
        Route(alias="plain", host="e.test", to=(A,), other_user=SECRET),
        Route(alias="moved", host="f.test", to=(A,), redirect=Redirect(to=f"https://{SECRET}")),
    ]
    assert SECRET.encode() in file_of(routes)
    shown = routes_for_workers(routes)
    assert SECRET.encode() not in file_of(shown)
    assert [(each.alias, each.host, each.mode, each.to) for each in shown] == [
        (each.alias, each.host, PROXY, (A,)) for each in routes
    ]
    assert b"x-key" in file_of(shown)


def test_workers_of_one_user_among_several_get_the_routes_to_its_servers_alone() -> None:
    routes = [
        Route(alias="a", host="a.test", to=(A,)),
        Route(alias="b", host="b.test", to=(B,)),
        Route(alias="both", host="both.test", to=(A, B)),
        Route(alias="url", to=(URL,)),
    ]
    assert [(each.alias, each.to) for each in routes_for_workers(routes, {"a"})] == [
        ("a", (A,)),
        ("both", (A,)),
    ]
    assert [each.alias for each in routes_for_workers(routes)] == ["a", "b", "both", "url"]


def test_route_that_says_no_more_is_the_same_object() -> None:
    route = Route(alias="a", host="a.test", path="/v1", to=(A, B))
    (shown,) = routes_for_workers([route])
    assert shown is route


_ROUTES = st.lists(
    st.fixed_dictionaries(
        {
            "host": st.sampled_from(["", "a.test", "*.test", "a"]),
            "path": st.sampled_from(["/", "/x", "/x/y"]),
            "to": st.sampled_from([(A,), (B,), (A, B), (URL,), (URL, A)]),
            "methods": st.sampled_from([(), ("GET",), ("POST",)]),
            "headers": st.sampled_from([(), (Header(name="x-key", value="1"),)]),
            "retries": st.sampled_from([0, 1]),
            "mode": st.sampled_from(["auto", "pass", "proxy"]),
            "redirect": st.sampled_from([None, None, Redirect(to="https"), Redirect(to="https://b.test")]),
            "allow": st.sampled_from([(), ("10.0.0.0/8",)]),
        }
    ),
    max_size=6,
)


@examples(200)
@given(
    fields=_ROUTES,
    host=st.sampled_from(["a.test", "b.test", "a", "x.org"]),
    path=st.sampled_from(["/", "/x/1"]),
)
def test_workers_decide_by_their_table_as_the_gateway_does(
    fields: list[dict[str, Any]], host: str, path: str
) -> None:
    routes = [Route(alias=str(number), **each) for number, each in enumerate(fields)]
    head = canonical_head(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert head is not None
    found = []
    for each in (routes, routes_for_workers(routes)):
        fd = write_table(each, 1)
        table = RouteTable(fd)
        os.close(fd)
        match = passed_match(head, table)
        decided = match and (match.route.alias, match.servers, match.route.allow)
        found.append(decided)
        table.close()
    assert found[0] == found[1]
