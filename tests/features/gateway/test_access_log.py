"""The lines that the real program writes into the access log: each whole, whatever clients send."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poolctl.logs.log_line import parse_line
from poolctl.routing.route import Redirect, Route
from tests.features.gateway.test_haproxy_configuration import WEB, ask, haproxy

DEADLINE = 240.0
APP = Route(alias="a", to=WEB)


class Log:
    """The lines that HAProxy writes into `pipe`."""

    def __init__(self) -> None:
        self._source, self.pipe = os.pipe()
        fcntl.fcntl(self.pipe, fcntl.F_SETPIPE_SZ, 1024 * 1024)
        self._reader = asyncio.StreamReader()

    async def __aenter__(self) -> Log:
        loop, source = asyncio.get_running_loop(), os.fdopen(self._source, "rb")
        self._transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._reader), source
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        os.close(self.pipe)
        self._transport.close()

    async def lines(self, count: int) -> list[str]:
        """The next lines, with their ends."""
        return [(await self._reader.readline()).decode() for _ in range(count)]


async def send(port: int, text: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text)
    answer = await reader.read()
    writer.close()
    return answer


def logged(
    directory: Path,
    work: Callable[[int], Any],
    count: int,
    *,
    as_json: bool,
    route: Route = APP,
    **settings: Any,
) -> list[str]:
    """The lines after `work(port)`, once there are `count` of them."""

    async def run() -> list[str]:
        keys = {"access_log": "json" if as_json else True, **settings}
        async with Log() as log, haproxy(directory, [route], log_descriptor=log.pipe, **keys) as port:
            await log.lines(1)  # of the connection that found the program serving
            found = asyncio.ensure_future(log.lines(count))
            await work(port)
            return await found

    return asyncio.run(asyncio.wait_for(run(), DEADLINE))


@pytest.mark.capability
def test_each_request_is_an_object_with_what_the_client_sent(tmp_path: Path) -> None:
    async def work(port: int) -> None:
        await ask(
            port,
            "GET",
            "a.test",
            '/a"b\\/./c?d=%22',
            {"X-Request-ID": "id-1", "X-Forwarded-For": "192.0.2.7"},
        )
        await send(port, b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n")
        await ask(port, "GET", "a.test", "/" + "%/" * 4000, {"X-Request-ID": 'a"b'})

    lines = logged(tmp_path, work, 3, as_json=True, trusted_proxies=("127.0.0.1",))
    first, unread, long = map(json.loads, lines)
    assert parse_line(lines[0].rstrip("\n").encode()).time == first.pop("time")
    assert 0 <= first.pop("duration_seconds") < 10
    assert first == {
        "level": "INFO", "message": 'GET /a"b\\/./c?d=%22 400', "request_id": "id-1", "client": "127.0.0.1",
        "method": "GET", "target": '/a"b\\/./c?d=%22', "http_version": "1.1", "status": 400,
    }  # fmt: skip
    assert (unread["status"], unread["client"]) == (400, "127.0.0.1")
    assert long["target"] == ("/" + "%/" * 4000)[:900]
    assert len(long["request_id"]) == 32, "one of the gateway's, in place of one that is not printable"


@pytest.mark.slow
def test_line_of_text_cannot_be_forged(tmp_path: Path) -> None:
    async def work(port: int) -> None:
        await send(port, b'GET /forged"-200-by-"x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')

    (line,) = logged(tmp_path, work, 1, as_json=False)
    begin, _, end = line.partition(" 200 ")
    assert begin == 'INFO:     127.0.0.1 - "GET /forged\\"-200-by-\\"x HTTP/1.1"'
    time, request_id = end.split()
    assert time.endswith("ms")
    assert len(request_id) == 32


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_line_of_a_hundred_thousand_is_broken(tmp_path: Path) -> None:
    requests, clients = 100_000, 20

    async def work(port: int) -> None:
        async def client(number: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            target = '/"' * (number * 30 + 1)
            for _ in range(requests // clients // 100):
                writer.write(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode() * 100)
                for _ in range(100):
                    await reader.readuntil(b"\r\n\r\n")
            writer.close()

        await asyncio.gather(*map(client, range(clients)))

    # Some may be dropped where this process is slow.
    count = requests // 10
    lines = logged(
        tmp_path, work, count, as_json=True, route=replace(APP, redirect=Redirect(to="https://b.test/x"))
    )
    for line in lines:
        assert json.loads(line)["status"] in (308, 400)
