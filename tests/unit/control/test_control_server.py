"""The control socket against clients of every kind: right ones, wrong ones, slow ones, and other people's."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from poolctl.control.answers import ProgressLine, Result
from poolctl.control.control_server import ControlServer, DescriptorReserve, Progress, Request
from poolctl.control.pool_paths import BACKLOG
from poolctl.json_form import Table
from tests.examples import examples
from tests.virtual_loop import run_in_virtual_time

Handle = Callable[[Request, Progress], Awaitable[object]]


@dataclass(frozen=True, kw_only=True)
class Echo:
    verb: str
    body: Table | None = None
    uid: int | None = None
    pid: int | None = None


async def echo(request: Request, progress: Progress) -> object:
    progress(ProgressLine(warning="web"))
    return Echo(verb=request.verb, body=request.body, uid=request.uid, pid=request.pid)


@asynccontextmanager
async def serving(
    path: Path, handle: Handle = echo, reserve: DescriptorReserve | None = None
) -> AsyncIterator[Path]:
    """A control server on a socket of its own; fails the test when one of its tasks failed unseen."""
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    with socket.socket(socket.AF_UNIX) as listener:
        place = path / "control.sock"
        place.unlink(missing_ok=True)
        listener.bind(str(place))
        listener.listen()
        listener.setblocking(False)
        running = ControlServer(handle, reserve)
        running.replace_listener(listener)
        try:
            yield place
        finally:
            await running.close()
            await asyncio.sleep(0)
    assert unseen == []


async def exchange(path: Path, data: bytes, *, half_close: bool = False) -> bytes:
    """Everything that is answered to `data` until the end."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(data)
        if half_close:
            writer.write_eof()
        try:
            return await asyncio.wait_for(reader.read(), 60)
        except ConnectionError:
            return b""
    finally:
        writer.close()


def request(verb: str, body: Any = None, *, method: str = "POST", version: str = "1.1") -> bytes:
    payload = b"" if body is None else json.dumps(body).encode()
    head = f"{method} /v1/{verb} HTTP/{version}\r\nhost: pool\r\ncontent-length: {len(payload)}\r\n\r\n"
    return head.encode() + payload


def status(answer: bytes) -> int:
    return int(answer.split(None, 2)[1])


def lines(answer: bytes) -> list[Any]:
    """The JSON lines of an answer that ends with its connection, or that comes in chunks."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
    else:
        body = rest
    return [json.loads(line) for line in body.splitlines() if line]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(
    ("method", "body", "seen"), [("GET", None, {}), ("POST", {"a": [1]}, {"a": [1]}), ("POST", None, {})]
)
async def test_both_versions_of_http_and_both_methods_are_answered(
    tmp_path: Path, version: str, method: str, body: Any, seen: Any
) -> None:
    async with serving(tmp_path) as path:
        answer = await exchange(path, request("ping", body, method=method, version=version))
        assert status(answer) == 200
        progress, result = lines(answer)
        assert progress == {"warning": "web"}
        assert result["result"] == {"verb": "ping", "body": seen, "uid": os.geteuid(), "pid": os.getpid()}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET /v1/list HTTP/1.1\r\nhost: x\r\n\r\n", 200),
        (b"GET /v1/servers?x=1 HTTP/1.1\r\nhost: x\r\n\r\n", 200),
        (b"GET /v1/list HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"GET /v2/list HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"DELETE /v1/list HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"CONNECT /v1/list HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"garbage\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"POST /v1/list HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n", 400),
        (b"POST /v1/list HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n{x}", 400),
        (b"POST /v1/list HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n[]", 400),
        (b"POST /v1/list HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n\xff\xfe", 400),
        (b"POST /v1/list HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 411),
        (b"GET /v1/list HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", 400),
        (b"POST /v1/list HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n" + b"[" * 100_000, 400),
    ],
)  # fmt: skip
async def test_wrong_requests_get_a_status(tmp_path: Path, data: bytes, code: int) -> None:
    async with serving(tmp_path) as path:
        assert status(await exchange(path, data, half_close=code == 400)) == code


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"options": [1]}, "options must be an object"),
        ({"selector": [1]}, "selector must be an object"),
        ({"selector": {"targets": "web"}}, "targets of the selector must be a list of strings"),
        ({"options": {"timeout": "soon"}}, "the option timeout must be a number"),
        ({"options": {"timeout": True}}, "the option timeout must be a number"),
        ({"options": {"wait": "no"}}, "the option wait must be true or false"),
        ({"options": {"lines": "3"}}, "the option lines must be a whole number"),
        ({"options": {"env": ["A=1"]}}, "the option env must be an object"),
        ({"options": {"depth": {}}}, "the option depth must be a string"),
        ({"options": {"hosts": [1]}}, "the option hosts must be a list of strings"),
        ({"options": {"timeout": 0.5, "wait": None, "env": {"A": "1"}, "hosts": ["a"]}}, ""),
        ({"options": [], "selector": None}, ""),
    ],
)
async def test_options_of_the_wrong_type_get_400(tmp_path: Path, body: dict[str, Any], problem: str) -> None:
    content = json.dumps(body).encode()
    head = f"POST /v1/list HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    async with serving(tmp_path) as path:
        answer = await exchange(path, head + content)
        assert status(answer) == (400 if problem else 200)
        assert problem.encode() in answer


@given(st.binary(max_size=300))
@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_ends_the_connection_and_nothing_else(tmp_path: Path, data: bytes) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as path:
            answer = await exchange(path, data, half_close=True)
            assert not answer or status(answer) in (200, 400, 404, 413)
            assert status(await exchange(path, request("ping"))) == 200

    asyncio.run(scenario())


async def test_a_huge_body_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as path:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"POST /v1/list HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n")
        chunk = b"x" * 1_000_000
        try:
            for _ in range(20):
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass
        answer = b""
        try:
            answer = await asyncio.wait_for(reader.read(), 60)
        except ConnectionError:
            pass
        assert not answer or status(answer) == 413
        writer.close()
        assert status(await exchange(path, request("ping"))) == 200


def test_a_client_that_does_not_finish_its_request_is_given_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as path:
            assert status(await exchange(path, b"POST /v1/list HTT")) == 400
            assert status(await exchange(path, request("list", {"a": 1})[:-3])) == 400

    run_in_virtual_time(scenario())


async def test_slow_clients_do_not_hold_up_the_others(tmp_path: Path) -> None:
    async with serving(tmp_path) as path:
        slow = [await asyncio.open_unix_connection(str(path)) for _ in range(50)]
        for _, writer in slow:
            writer.write(b"GET /v1/")
        assert status(await exchange(path, request("ping"))) == 200
        for _, writer in slow:
            writer.write(b"ping HTTP/1.0\r\n\r\n")
        for reader, writer in slow:
            assert status(await reader.read()) == 200
            writer.close()


@pytest.mark.slow
async def test_request_is_cancelled_when_its_client_disconnects(tmp_path: Path) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def wait_for_ever(request: Request, progress: Progress) -> object:
        progress(ProgressLine())  # never read: the end arrives as a reset
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return Result()

    async with serving(tmp_path, wait_for_ever) as path:
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.write(request("wait"))
        await begun.wait()
        writer.close()
        await asyncio.wait_for(cancelled.wait(), 60)
        gc.collect()


@pytest.mark.parametrize("more", [b"\r\n", b"GET /v1/list HTTP/1.1\r\nhost: x\r\n\r\n"])
async def test_request_is_answered_when_more_data_follows_it(tmp_path: Path, more: bytes) -> None:
    async def slow(request: Request, progress: Progress) -> object:
        await asyncio.sleep(0.1)
        return Echo(verb=request.verb)

    async with serving(tmp_path, slow) as path:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(request("ping"))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(more)
        assert lines(await reader.read()) == [{"result": {"verb": "ping"}}]
        writer.close()


def test_failing_handler_is_answered_with_an_error(tmp_path: Path, caplog: Any) -> None:
    async def scenario() -> None:
        async def broken(request: Request, progress: Progress) -> object:
            raise RuntimeError("not thought of")

        async with serving(tmp_path, broken) as path:
            (answer,) = lines(await exchange(path, request("list")))
            assert answer["result"]["exit_code"] == 1
            assert answer["result"]["errors"][0]["message"]
            assert status(await exchange(path, request("list"))) == 200

    asyncio.run(scenario())
    assert "not thought of" in caplog.text, "the traceback is for the supervisor's log"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_another_user_is_refused() -> None:
    # A socket without a file, that everybody can reach: the credentials alone decide.
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("")
        listener.listen()
        server = ControlServer(echo)
        server.replace_listener(listener)
        os.seteuid(65534)
        try:
            client.connect(listener.getsockname())
        finally:
            os.seteuid(0)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, request("list"))
        answer = await loop.sock_recv(client, 65536)
        assert status(answer) == 403
        assert b"belongs to uid 0" in answer
        await server.close()


def test_closing_lets_the_answers_under_way_be_finished(tmp_path: Path) -> None:
    async def scenario() -> None:
        begun, over = asyncio.Event(), asyncio.Event()

        async def slow(request: Request, progress: Progress) -> object:
            begun.set()
            await asyncio.sleep(0.9)
            over.set()
            return Echo(verb="done")

        async with serving(tmp_path, slow) as path:
            asking = asyncio.ensure_future(exchange(path, request("list")))
            await begun.wait()
        assert over.is_set()
        assert lines(await asking) == [{"result": {"verb": "done"}}]

    run_in_virtual_time(scenario())


@pytest.mark.parametrize("turns", [2, 3, 4])
def test_closing_loses_no_connection_that_was_just_accepted(tmp_path: Path, turns: int) -> None:
    async def scenario() -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            async with serving(tmp_path) as path:
                client.connect(str(path))
                client.sendall(request("list"))
                for _ in range(turns):
                    await asyncio.sleep(0)
            client.setblocking(False)
            answer = b""
            while more := await asyncio.get_running_loop().sock_recv(client, 65536):
                answer += more
            return answer

    assert lines(run_in_virtual_time(scenario()))[-1]["result"]["verb"] == "list"


async def test_a_listener_whose_server_is_busy_takes_as_many_connections_as_it_was_made_for(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as path:
        clients = []
        try:
            for _ in range(BACKLOG):
                clients.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                clients[-1].connect(str(path))
        finally:
            for each in clients:
                each.close()


def test_command_is_answered_when_every_descriptor_is_in_use(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def scenario() -> None:
        async with serving(tmp_path, reserve=DescriptorReserve(16)) as path:
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            hoard: list[int] = []
            try:
                with contextlib.suppress(OSError):
                    while True:
                        hoard.append(os.dup(0))
                client.connect(str(path))
                await asyncio.get_running_loop().sock_sendall(client, request("list"))
                assert status(await asyncio.get_running_loop().sock_recv(client, 65536)) == 200
            finally:
                client.close()
                for fd in hoard:
                    os.close(fd)

    try:
        asyncio.run(scenario())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("hard", "soft", "free", "used"),
    [(100, 100, 84, 100), (33, 33, 17, 33), (32, 32, None, None), (20, 20, None, None)],
)
def test_reserve_is_left_free_until_it_is_used_where_the_limit_allows_it(
    monkeypatch: pytest.MonkeyPatch, hard: int, soft: int, free: int | None, used: int | None
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, given: limits.append(given))
    reserve = DescriptorReserve(16)
    assert limits[1:] == ([] if free is None else [(free, hard)])
    with reserve:
        assert limits[-1][0] == (soft if used is None else used)
        count = len(limits)
        with reserve:
            assert len(limits) == count, "it is in use already"
        assert len(limits) == count
    assert limits[-1][0] == (soft if free is None else free)
