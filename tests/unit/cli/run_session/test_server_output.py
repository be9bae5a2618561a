"""The servers' output that `run` prints."""

from __future__ import annotations

import asyncio
import json
import os
import select
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli.pool_ref import PoolRef
from poolctl.cli.run_session._server_output import ServerOutput
from tests.stand_in import always, item, stand_in

LATER = "2999-01-01T00:00:00.00000"


@pytest.fixture
def pool(tmp_path_factory: pytest.TempPathFactory) -> PoolRef:
    return PoolRef(["/a/pool.toml"], str(tmp_path_factory.mktemp("p")))


def logged(pool: PoolRef, *names: str) -> list[dict[str, Any]]:
    """Servers with logs, each with a line of the past and a new one."""
    found = []
    for at, name in enumerate(names):
        log = Path(pool.directory, f"{name}.log")
        log.write_text(f"2020-01-01T00:00:00.000000Z an old line\n{LATER}{9 - at}Z a line\n")
        found.append(item(name, config={"log": {"path": str(log)}}))
    return found


def print_output(
    pool: PoolRef,
    *,
    until: Callable[[], bool],
    times: bool = False,
    objects: bool = False,
    lost: Callable[[], object] = lambda: None,
) -> None:
    async def work() -> None:
        output = ServerOutput(pool, lost, times=times, objects=objects)
        output.start()
        while not until():
            await asyncio.sleep(0.001)
        await output.finish()

    asyncio.run(asyncio.wait_for(work(), 60))


@pytest.mark.parametrize(
    ("times", "objects", "line"),
    [
        (False, False, "web | a line\n"),
        (True, False, f"web | {LATER}9Z a line\n"),
        (False, True, {"time": f"{LATER}9Z", "server": "web", "message": "a line"}),
    ],
)
def test_new_lines_of_the_servers_are_printed(
    pool: PoolRef, capsys: pytest.CaptureFixture[str], times: bool, objects: bool, line: Any
) -> None:
    with stand_in(Path(pool.socket), always(*logged(pool, "web"))) as requests:
        print_output(pool, until=lambda: bool(requests), times=times, objects=objects)
    out = capsys.readouterr().out
    if isinstance(line, str):
        assert out == line
    else:
        assert json.loads(out) | line == json.loads(out)


def test_lines_of_several_servers_are_printed_in_the_order_of_time_and_as_they_come(
    pool: PoolRef, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = ""

    def read() -> str:
        nonlocal printed
        printed += capsys.readouterr().out
        return printed

    def add_one_and_see_it() -> bool:
        if "web | a line\n" not in read():
            return False
        if "added" not in Path(pool.directory, "web.log").read_text():
            with open(f"{pool.directory}/web.log", "a") as log:
                log.write(f"{LATER}9Z added\n")
        return "web | added\n" in read()

    with stand_in(Path(pool.socket), always(*logged(pool, "web", "api"))):
        print_output(pool, until=add_one_and_see_it)
    assert read() == "api | a line\nweb | a line\nweb | added\n"


def test_reader_that_is_gone_is_reported(pool: PoolRef) -> None:
    read, write = os.pipe()
    os.close(read)
    reports: list[str] = []
    with (
        open(write, "w") as stdout,
        stand_in(Path(pool.socket), always(*logged(pool, "web"))),
        redirect_stdout(stdout),
    ):
        print_output(pool, until=lambda: bool(reports), lost=lambda: reports.append("gone"))
    assert reports == ["gone"]


def test_end_does_not_wait_for_a_reader_that_has_stopped_reading(pool: PoolRef) -> None:
    (server,) = logged(pool, "web")
    with open(f"{pool.directory}/web.log", "a") as log:
        log.write(f"{LATER}9Z {'x' * 100_000}\n")
    read, write = os.pipe()
    with (
        open(read, "rb") as reader,
        open(write, "w") as stdout,
        stand_in(Path(pool.socket), always(server)),
    ):
        with redirect_stdout(stdout):
            print_output(pool, until=lambda: bool(select.select([read], [], [], 0)[0]))
        assert len(reader.read(100_000)) == 100_000


def test_lines_that_a_full_disk_has_lost_are_counted_at_the_end(
    pool: PoolRef, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        open("/dev/full", "w") as full,
        stand_in(Path(pool.socket), always(*logged(pool, "web"))) as asked,
        redirect_stdout(full),
    ):
        print_output(pool, until=lambda: bool(asked))
    said = "[poolctl: last lines of output lost: 1 (No space left on device)]\n"
    assert capsys.readouterr().err == said


def test_lines_of_a_pool_that_does_not_answer_are_not_printed(
    pool: PoolRef, capsys: pytest.CaptureFixture[str]
) -> None:
    print_output(pool, until=lambda: True)
    assert capsys.readouterr() == ("", "")
