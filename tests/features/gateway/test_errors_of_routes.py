"""Errors of routes: those of their own requests, though workers count all requests of a server together."""

from __future__ import annotations

import pytest

from tests.features.gateway.conftest import GatewayPool
from tests.http_get import get

pytestmark = pytest.mark.integration

APP = """
async def app(scope, receive, send):
    if scope["path"].endswith("/raise"):
        raise ValueError("as it was asked to")
    status = 503 if scope["path"].endswith("/fail") else 200
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
"""
ROUTES = """
[[route]]
alias = "shop"
to = "one"
path = "/shop"
[[route]]
alias = "news"
to = "one"
path = "/news"
"""
FIELDS = "alias,requests,errors"


def test_route_shows_errors_of_its_own_requests_only(gateway: GatewayPool) -> None:
    gateway.pool.write("failing.py", APP)
    gateway.start(ROUTES)
    text = (gateway.pool.directory / "pool.toml").read_text()
    gateway.pool.write("pool.toml", text.replace("tests.load.apps:app", "failing:app"))
    gateway.pool.ok("reload")
    gateway.until(lambda: gateway.get("/news").status == 200)
    for path, status in [("/shop", 200), ("/shop/fail", 503), ("/shop/raise", 500)]:
        assert gateway.get(path).status == status
    for _ in range(3):
        assert get(gateway.ports["one"], "/fail").status == 503  # not through the gateway
    gateway.until(
        lambda: gateway.pool.ok("routes", "-o", FIELDS).stdout.splitlines() == ["shop\t3\t2", "news\t1\t0"]
    )
