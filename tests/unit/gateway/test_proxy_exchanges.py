"""Requests that are proxied, and their responses: what passes through, on both kinds of loop."""

from __future__ import annotations

import pytest

from tests.unit.gateway.proxy_stage import LOOPS, Stage, ok, play

GET = b"GET /a?b=c HTTP/1.1\r\nHost: a.example\r\n\r\n"
pytestmark = pytest.mark.parametrize("loop", LOOPS)


def test_a_request_and_its_response_pass_through_over_one_connection_each(loop: str) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        client = await stage.client()
        for _ in range(3):
            await client.send(GET)
            head, body = await client.response()
            assert head == b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\n"
            assert body == b"hello"
        assert backend.connections == 1
        assert backend.heads[0].startswith(
            b"GET /a?b=c HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-For: 127.0.0.1\r\n"
        )

    play(loop, scene)
