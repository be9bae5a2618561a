"""The access log of proxied requests: which lines it has, and that it never holds up a request."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.gateway.process.proxy import gateway_access_log
from poolctl.features.gateway.process.proxy.gateway_access_log import AccessLogEntry, GatewayAccessLog
from poolctl.features.gateway.process.proxy.request_head import read_request
from poolctl.logs.log_line import parse_line
from poolctl.worker.serving.request_records import LoggedRequest
from tests.features.gateway.proxy_stage import DEADLINE, Stage, ok, play
from tests.threads import no_more_threads

GET = b"GET /a?b=1 HTTP/1.1\r\nHost: a\r\n\r\n"
LINE = re.compile(r'INFO:     (\S+) - "([^"]+)" (\d+) ([^\d]*)\d+\.\dms (\S+)')


def parts(line: str) -> tuple[str, ...]:
    """Client, request line, status, reason phrase and ID."""
    found = LINE.fullmatch(line)
    assert found, line
    return found.groups()


async def eventually(found: Callable[[], Any]) -> Any:
    async with asyncio.timeout(DEADLINE):
        while not (value := found()):
            await asyncio.sleep(0.01)
    return value


async def lines_of(path: Path, count: int) -> list[str]:
    """The first lines of the file, without their times."""

    def read() -> list[str] | None:
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [parse_line(line).text for line in lines] if len(lines) >= count else None

    found: list[str] = await eventually(read)
    return found


def test_lines_are_written_although_the_machine_refuses_further_threads(tmp_path: Path) -> None:
    async def work() -> None:
        log = GatewayAccessLog(str(tmp_path / "log"))
        with no_more_threads():
            log.add_or_drop("one")
            assert await lines_of(tmp_path / "log", 1) == ["one"]
        log.close()

    asyncio.run(work())


def test_lines_wait_for_a_thread_that_the_machine_refused(tmp_path: Path) -> None:
    async def work() -> None:
        refused = asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(lambda *_: refused.set())
        with no_more_threads():
            log = GatewayAccessLog(str(tmp_path / "log"))
            log.add_or_drop("one")
            await refused.wait()
        log.add_or_drop("two")
        assert await lines_of(tmp_path / "log", 2) == ["one", "two"]
        log.close()

    asyncio.run(work())


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_proxied_request_is_logged_as_a_worker_logs_it(tmp_path: Path, version: str) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        client = await stage.client()
        await client.send(GET.replace(b"1.1", version.encode()))
        await client.response()
        (line,) = await lines_of(tmp_path / "log", 1)
        port = client.writer.get_extra_info("sockname")[1]
        (sent,) = re.findall(rb"\r\nX-Request-ID: (\S+)\r\n", backend.heads[0])
        scope = {
            "type": "http", "method": "GET", "path": "/a", "raw_path": b"/a", "query_string": b"b=1",
            "http_version": version, "client": ("127.0.0.1", port), "headers": [(b"x-request-id", sent)],
        }  # fmt: skip
        logged = LoggedRequest(scope)
        logged.status = 200

        def without_time(text: str) -> str:
            return re.sub(r" \d+\.\dms ", " ", text)

        assert without_time(line) == without_time(f"INFO:     {logged.line()}")

    play(scene, access_log=str(tmp_path / "log"))


def test_request_id_of_a_client_is_kept_if_it_is_printable(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        client = await stage.client()
        for given in (b"x-request-id: abc-1", b"X-Request-ID: a b", b"x-request-id: a\r\nx-request-id: b"):
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % given)
            await client.response()
        ids = [parts(line)[4] for line in await lines_of(tmp_path / "log", 3)]
        sent = [re.findall(rb"(?i)\r\nx-request-id: ([^\r]*)", head) for head in backend.heads]
        assert sent == [[each.encode()] for each in ids]
        assert ids[0] == "abc-1"
        assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids[1:])

    play(scene, access_log=str(tmp_path / "log"))


def test_slow_disk_leaves_lines_out_and_holds_up_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_access_log, "MOST_WAITING_BYTES", 300)
    goes_on, waits = threading.Event(), threading.Event()
    store = GatewayAccessLog._append_counting_lost

    def slow(log: GatewayAccessLog, block: bytes) -> int:
        waits.set()
        assert goes_on.wait(DEADLINE)
        return store(log, block)

    monkeypatch.setattr(GatewayAccessLog, "_append_counting_lost", slow)

    async def scene() -> None:
        log = GatewayAccessLog(str(tmp_path / "log"))
        request = read_request(GET, 1000, 0)
        assert request is not None
        AccessLogEntry(log, request, "client").write(404, 0.0)
        await eventually(waits.is_set)
        for _ in range(9):
            AccessLogEntry(log, request, "client").write(404, 0.0)
        goes_on.set()
        lines = await lines_of(tmp_path / "log", 3)
        assert len(lines) == 3
        assert [parts(line)[2] for line in lines[:2]] == ["404", "404"]
        assert "8 lines were left out" in lines[2]
        log.close()

    asyncio.run(scene())


def test_line_that_a_full_disk_does_not_take_is_counted(tmp_path: Path) -> None:
    async def scene() -> None:
        path = tmp_path / "log"
        path.mkdir()
        log = GatewayAccessLog(str(path))
        log.add_or_drop("first")
        await eventually(lambda: not log.waiting_bytes)
        path.rmdir()
        log.add_or_drop("second")
        assert await lines_of(path, 2) == [
            "second", "WARNING:  1 line was left out: the file could not be written, or not fast enough",
        ]  # fmt: skip
        log.close()

    asyncio.run(scene())


def test_log_that_is_closed_has_every_line(tmp_path: Path) -> None:
    async def scene() -> None:
        log = GatewayAccessLog(str(tmp_path / "log"))
        log.add_or_drop("a")
        log.close()

    asyncio.run(scene())
    assert asyncio.run(lines_of(tmp_path / "log", 1)) == ["a"]


def test_file_is_reopened_after_it_was_moved(tmp_path: Path) -> None:
    path = tmp_path / "log"

    async def scene(stage: Stage) -> None:
        assert stage.edge.access_log is not None
        stage.edge.access_log.add_or_drop("first")
        await lines_of(path, 1)
        path.rename(tmp_path / "old")
        await stage.edge.access_log.reopen()
        stage.edge.access_log.add_or_drop("second")
        (line,) = await lines_of(path, 1)
        assert line == "second"

    play(scene, access_log=str(path))
