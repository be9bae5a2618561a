"""Known attacks on a gateway that passes connections on: no application sees a request that was not sent.

Nor another one than a client that asks the worker on its own port.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from tests.conformance_collections import COLLECTIONS, Collection, TabledCollections
from tests.http_corpus import REQUESTS, RequestCase
from tests.ports import claim_port

from .conftest import GatewayPool

pytestmark = pytest.mark.integration

APP = """
import json

async def app(scope, receive, send):
    if scope["type"] != "http":
        while scope["type"] == "lifespan":
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                break
        return
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    # Whitespace around a value is no part of it; httptools leaves what is behind it.
    hosts = [value.decode("latin-1").strip() for name, value in scope["headers"] if name == b"host"]
    seen = {"path": scope["path"], "hosts": hosts, "body": body.decode("latin-1")}
    data = json.dumps(seen).encode()
    headers = [(b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": data})
"""
FILE = """
[gateway]
bind = "127.0.0.1:{port}"
[[route]]
to = "web"
[[route]]
to = "admin"
path = "/admin"
[[server]]
name = "web"
bind = "127.0.0.1:{own}"
app = "attacked:app"
http = {{ implementation = "{parser}" }}
[[server]]
name = "admin"
bind = "127.0.0.1:{other}"
app = "attacked:app"
http = {{ implementation = "{parser}" }}
"""
AT_ONCE = 60
# uvicorn's protocol for h11 takes the whole URL for the path. The gateway proxies it, as a path.
ABSOLUTE = "absolute form"
QUIET_SECONDS = 0.3
DEADLINE_SECONDS = 60.0
# Where a worker's parser and the table differ, and the request is the same in any case: limits of the table's server, a
# space that both parsers refuse, a trailer that h11 unfolds.
EITHER = re.compile(
    "too large|too many|too long|without an end|space before an extension|folded trailer"
).search
_answer = re.compile(
    rb"HTTP/1\.1 (\d\d\d) [^\r]*\r\n(?:[^\r]+\r\n)*?(?i:content-length): (\d+)\r\n(?:[^\r]+\r\n)*\r\n"
)

Answer = tuple[int, dict[str, Any]]


def answers(data: bytes) -> list[Answer]:
    """Status of each answer, and what the application saw."""
    found: list[Answer] = []
    at = 0
    while (head := _answer.match(data, at)) is not None:
        at = head.end() + int(head[2])
        body = data[head.end() : at]
        found.append((int(head[1]), json.loads(body) if body.startswith(b"{") else {}))
    return found


async def ask(port: int, case: RequestCase, places: asyncio.Semaphore) -> list[Answer]:
    """All answers to the bytes of a case."""
    wanted = 0 if EITHER(case.name) else expected(case)
    async with places:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            writer.write(case.data)
            await writer.drain()
            while True:
                missing = len(answers(data)) < wanted
                async with asyncio.timeout(DEADLINE_SECONDS if missing else QUIET_SECONDS):
                    piece = await reader.read(65536)
                if not piece:
                    break
                data += piece
        writer.close()
    return answers(data)


def start(gateway: GatewayPool, parser: str) -> int:
    """The port of a worker, once the gateway serves."""
    own_port = claim_port()
    gateway.pool.write("attacked.py", APP)
    gateway.pool.write(
        "pool.toml", FILE.format(port=gateway.port, own=own_port, other=claim_port(), parser=parser)
    )
    gateway.pool.ok("start")
    gateway.until(lambda: accepts(gateway.port))
    return own_port


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def expected(case: RequestCase) -> int:
    return 1 + case.rest.startswith(b"GET /") if case.status == 200 else 0


async def ask_all(port: int, cases: Sequence[RequestCase] = REQUESTS) -> list[list[Answer]]:
    places = asyncio.Semaphore(AT_ONCE)
    return list(await asyncio.gather(*(ask(port, case, places) for case in cases)))


@pytest.mark.heavy_variants
@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_application_sees_each_request_once_and_nothing_smuggled(gateway: GatewayPool, parser: str) -> None:
    own_port = start(gateway, parser)

    async def ask_both() -> tuple[list[list[Answer]], list[list[Answer]]]:
        return await asyncio.gather(ask_all(gateway.port), ask_all(own_port))

    wrong = []
    for case, found, own in zip(REQUESTS, *asyncio.run(ask_both()), strict=True):
        served = [seen for status, seen in found if status == 200]
        alone = [seen for status, seen in own if status == 200]
        if case.name != ABSOLUTE and any(one != other for one, other in zip(served, alone, strict=False)):
            wrong.append(f"{case.name}: {served} by the gateway, {alone} on the worker's own port")
        paths = ["/admin" if seen["path"] == "/admin" else "first" for seen in served]
        wanted = ["first", "/admin"][: expected(case)]
        if EITHER(case.name):
            fine = paths in ([], ["first"])
        else:
            fine = paths == wanted and all(
                seen["body"] == body
                for seen, body in zip(served, (case.body.decode("latin-1"), ""), strict=False)
            )
        if not fine:
            wrong.append(f"{case.name}: {found}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.heavy_variants
@pytest.mark.parametrize("collection", COLLECTIONS)
@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_application_is_sent_nothing_hostile_of_a_collection(
    gateway: GatewayPool, parser: str, collection: Collection | TabledCollections
) -> None:
    collected = collection.cases()
    start(gateway, parser)
    cases = [RequestCase(case.name, "", case.data, 0) for case in collected]
    wrong = [
        f"{case.name}: {answers}"
        for case, answers in zip(collected, asyncio.run(ask_all(gateway.port, cases)), strict=True)
        if case.hostile and sum(status == 200 for status, _ in answers) > case.lenient
    ]
    assert not wrong, "\n".join(wrong)
