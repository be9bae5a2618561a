"""Counts the orders, for those who know the token."""

import os
from collections.abc import Callable, Iterable
from typing import Any

from shop.database import connect


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """The WSGI application."""
    token = os.environ.get("TOKEN")
    if environ["PATH_INFO"] == "/check":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok\n"]
    if token and environ.get("HTTP_AUTHORIZATION") != f"Bearer {token}":
        start_response("401 Unauthorized", [("Content-Type", "text/plain")])
        return [b"the token, please\n"]
    (count,) = connect().execute("select count(*) from orders").fetchone()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{count} orders\n".encode()]
