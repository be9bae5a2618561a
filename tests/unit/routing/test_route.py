"""Routes as values."""

from __future__ import annotations

from typing import Any

import pytest

from poolctl.json_form import Table, from_json, to_json
from poolctl.routing.route import (
    HTTPS,
    ExcludedRoute,
    Header,
    Redirect,
    Route,
    StreamRoute,
    Target,
    TrafficLimits,
)

WEB = (Target(server="web"),)


def test_target_has_the_servers_name_or_its_url_as_key() -> None:
    assert Target(server="web", url="http://a").key == "web"
    assert Target(url="http://a").key == "http://a"


def test_only_a_redirect_to_https_takes_only_requests_without_tls() -> None:
    assert Route(alias="a").redirects_to_https is False
    assert Route(alias="a", redirect=Redirect(to="https://example.com")).redirects_to_https is False
    assert Route(alias="a", redirect=Redirect(to=HTTPS)).redirects_to_https is True


def test_json_of_each_kind_of_route_has_its_values() -> None:
    assert Route(alias="a", to=WEB, host="h").to_json()["to"][0]["server"] == "web"
    assert StreamRoute(alias="a", bind="127.0.0.1:5432").to_json()["bind"] == "127.0.0.1:5432"
    assert ExcludedRoute(alias="a", reason="r").to_json()["reason"] == "r"


TIMEOUTS = {"connect": 5.0, "head": 60.0, "idle": 60.0, "keep_alive": 1.0}
BREAKER = {
    "failures": 5, "rate": 0.5, "minimum_requests": 20, "window_seconds": 10.0, "open_seconds": 10.0, "probes": 1,
    "statuses": [], "max_open": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "given", "others"),
    [
        (
            Route,
            {"alias": "a"},
            {
                "to": [], "host": "", "path": "/", "methods": [], "headers": [], "policy": "round-robin",
                "provider": "file", "strip_path": False, "host_header": "", "add_headers": [],
                "set_headers": [], "remove_headers": [], "response_headers": [], "sticky_cookie": "",
                "sticky_secure": False, "sticky_same_site": "Lax", "buffer_requests": False, "retries": 0,
                "max_body_bytes": 0, "allow": [], "timeouts": TIMEOUTS, "breaker": BREAKER,
                "repeatable": False, "waiting_page": False, "probe_responses": [],
            },
        ),
        (
            StreamRoute,
            {"alias": "a", "bind": "127.0.0.1:53"},
            {
                "to": [], "protocol": "tcp", "policy": "round-robin", "provider": "file", "accept_proxy": False,
                "max_connections": 0, "timeouts": TIMEOUTS | {"head": 0.0, "idle": 600.0}, "breaker": BREAKER,
            },
        ),
        (TrafficLimits, {},
         {"concurrency": 0, "requests_per_second": 0.0, "burst": 0, "queue": 0, "queue_seconds": 5.0}),
        (Target, {}, {"server": "", "url": "", "weight": 1, "ca": "", "sni": "", "verify": True}),
        (Redirect, {"to": "https"}, {"status": 308}),
        (ExcludedRoute, {"alias": "a", "reason": "r"}, {"host": "", "provider": "file"}),
        (Header, {"name": "x"}, {"value": ""}),
    ],
)  # fmt: skip
def test_key_that_is_not_given_has_its_documented_default(kind: Any, given: Table, others: Table) -> None:
    assert to_json(from_json(kind, given)) == {**given, **others}
