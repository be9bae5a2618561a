"""Reports about routes that their own keys determine."""

from __future__ import annotations

import os
from typing import Any

import pytest

from poolctl.json_form import Table, from_json, to_json
from poolctl.routing.route import ExcludedRoute, Redirect, Route, StreamRoute, Target
from poolctl.routing.route_report import (
    BackendReport,
    RegisteredServiceReport,
    RouteReport,
    TargetMachineReport,
    destinations,
    route_key,
    static_route_report,
    stream_key,
    with_absolute_socket_path,
)

WEB = (Target(server="web"), Target(url="http://10.0.0.1:80"))


def test_route_is_reported_with_what_it_matches_and_where_it_leads() -> None:
    route = Route(alias="a", host="a.test", path="/v1", to=WEB, policy="first")
    assert static_route_report(route) == RouteReport(
        alias="a", host="a.test", path="/v1", to=("web", WEB[1].url), policy="first", provider=route.provider
    )


def test_stream_has_its_own_address_as_host() -> None:
    found = static_route_report(
        StreamRoute(alias="db", bind="0.0.0.0:5432", to=WEB, protocol="tcp", policy="first")
    )
    assert (found.way, found.host, found.path, found.to) == (
        "stream",
        "0.0.0.0:5432",
        "",
        ("web", WEB[1].url),
    )


def test_excluded_route_has_its_reason() -> None:
    found = static_route_report(
        ExcludedRoute(alias="off", reason="off is disabled", host="a.test", provider="server")
    )
    assert (found.way, found.why, found.host, found.provider, found.to) == (
        "excluded", "off is disabled", "a.test", "server", (),
    )  # fmt: skip


def test_redirect_leads_to_its_url() -> None:
    assert destinations(Route(alias="a", redirect=Redirect(to="https"))) == ("redirect to https",)
    assert destinations(Route(alias="a", to=WEB)) == ("web", "http://10.0.0.1:80")


def test_stream_and_route_with_one_alias_have_different_keys() -> None:
    stream = StreamRoute(alias="db", bind="", to=WEB, protocol="tcp", policy="first")
    assert route_key(stream) == stream_key("db") == "stream db"
    assert route_key(Route(alias="db", to=WEB)) == "db"


@pytest.mark.parametrize(
    ("machine", "text"),
    [
        (TargetMachineReport(to="a", kind="node", node="pve1"), "pve1"),
        (TargetMachineReport(to="a", kind="lxc", node="pve1", vmid=101, name="db", state="up"), "pve1/101 db (up)"),
    ],
)  # fmt: skip
def test_machine_is_shown_in_one_text(machine: TargetMachineReport, text: str) -> None:
    assert str(machine) == text


def test_host_is_the_backend_of_the_table() -> None:
    assert BackendReport(host="http://10.0.0.1:80").backend == "http://10.0.0.1:80"


@pytest.mark.parametrize(
    ("url", "absolute"),
    [
        ("http://a:80", "http://a:80"), ("unix:/run/a.sock", "unix:/run/a.sock"),
        ("unix:a.sock", f"unix:{os.getcwd()}/a.sock"), ("UNIX:a.sock", f"unix:{os.getcwd()}/a.sock"),
    ],
)  # fmt: skip
def test_relative_path_of_a_socket_is_made_absolute(url: str, absolute: str) -> None:
    assert with_absolute_socket_path(url) == absolute


@pytest.mark.parametrize(
    ("kind", "given", "others"),
    [
        (
            RouteReport,
            {"alias": "a"},
            {
                "host": "", "path": "", "to": [], "policy": "", "way": "http", "why": "", "provider": "",
                "state": "unknown", "requests": 0, "refused": 0, "waiting": 0, "errors": 0,
            },
        ),
        (
            BackendReport,
            {"host": "h"},
            {
                "routes": [], "state": "active", "since": "", "until": "", "available": True, "health": "unknown",
                "why": "", "breaker": "", "connections": 0, "in_flight": 0, "waiting": 0, "requests": 0, "errors": 0,
            },
        ),
        (TargetMachineReport, {"to": "u", "kind": "node", "node": "n"}, {"vmid": 0, "name": "", "state": ""}),
        (
            RegisteredServiceReport,
            {"name": "n", "url": "u"},
            {"state": "serving", "why": "", "since": "", "weight": 1, "ttl_seconds": 0.0, "probe": ""},
        ),
    ],
)  # fmt: skip
def test_report_without_a_figure_says_so(kind: Any, given: Table, others: Table) -> None:
    assert to_json(from_json(kind, given)) == {**given, **others}
