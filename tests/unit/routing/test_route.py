"""Why connections of a route are not handed to a worker, one reason after the other."""

from __future__ import annotations

from typing import Any

import pytest

from poolctl.routing.route import Route, Target, proxy_reason

WEB = (Target(server="web"),)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"to": WEB}, ""),
        ({"to": ()}, "it has no target"),
        ({"to": (), "mode": "proxy"}, 'its mode is "proxy"'),
        ({"to": (*WEB, Target(url="http://10.0.0.7"))}, "it leads to a URL"),
        ({"to": WEB, "waiting_page": "<p>wait</p>"}, "it has a waiting page"),
    ],
)
def test_reason_is_the_same_with_and_without_tls(fields: dict[str, Any], reason: str) -> None:
    route = Route(alias="a", **fields)
    assert (proxy_reason(route), proxy_reason(route, tls=True)) == (reason, reason)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"path": "/a"}, "its path is not seen within TLS"),
        ({"probe_responses": True}, "its probes are not seen within TLS"),
    ],
)
def test_route_that_looks_into_requests_is_proxied_only_with_tls(fields: dict[str, Any], reason: str) -> None:
    route = Route(alias="a", to=WEB, **fields)
    assert (proxy_reason(route), proxy_reason(route, tls=True)) == ("", reason)
