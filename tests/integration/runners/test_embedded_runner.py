"""The processes of a program that embeds a pool: their start and end, a killed keeper, a restart, and hooks."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from poolctl import Pool, PoolStartError, ServerConfig
from poolctl.pool import loop_thread
from poolctl.runners.embedded_runner import ProcessRunner
from tests.deadline import wait_until
from tests.descriptors import free_descriptors
from tests.http_get import get
from tests.integration.runners.test_runners import config
from tests.ports import claim_port
from tests.processes import is_alive
from tests.real_pool import HELLO_APP


@pytest.mark.slow
def test_processes_of_a_dropped_pool_end_some_seconds_after_its_last_server(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))  # a dropped pool removes no logs
    server = config("web")
    runner = ProcessRunner()
    pool = Pool([server], runner=runner)
    keepers = []
    for _ in range(2):
        pool.start_sync(timeout=60)
        assert get(server.bind).status == 200
        keepers.append(runner.children.keeper_pid)
        pool.stop_sync(timeout=60)
        wait_until(lambda: not is_alive(keepers[-1]))
    assert len(set(keepers)) == 2, "the second start begins with a keeper of its own"
    known = weakref.ref(runner)
    del pool, runner
    wait_until(lambda: gc.collect() >= 0 and known() is None)


def test_keeper_that_could_not_be_started_is_started_again_later(caplog: pytest.LogCaptureFixture) -> None:
    server = config("web")
    pool = Pool([server], runner=ProcessRunner())
    loop = loop_thread.get_or_start()
    loop.hold()  # it needs descriptors as well
    with free_descriptors(0), pytest.raises(PoolStartError):
        pool.start_sync(timeout=60)
    loop.release()
    pool.start_sync(timeout=60)
    assert get(server.bind).status == 200
    pool.stop_sync(timeout=60)
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_idle_processes_that_end_while_a_server_opens_do_not_take_it_along() -> None:
    first, second = config("first"), config("second")

    async def scenario() -> None:
        runner = ProcessRunner()
        try:
            await runner.open(first)
            await runner.close(first.key)
            ending = asyncio.ensure_future(runner.end_if_unused())
            await asyncio.sleep(0)
            await runner.open(first)
            await ending
            await runner.open(second)
            keeper = runner.children.keeper_pid
            await runner.close(second.key)
            await runner.end_if_unused()
            await runner.start()
            assert runner.children.keeper_pid == keeper, "one server is open"
        finally:
            await runner.aclose()

    asyncio.run(scenario())


def test_keeper_that_could_not_be_started_is_started_by_the_next_server(tmp_path: Path) -> None:
    server, logs = config("web"), tmp_path / "logs"
    logs.write_text("in the way")

    async def scenario() -> None:
        runner = ProcessRunner(str(logs))
        try:
            with pytest.raises(FileExistsError):
                await runner.open(server)
            logs.unlink()
            assert await runner.open(server)
        finally:
            await runner.aclose()

    asyncio.run(scenario())


# A killed keeper.


def test_killed_keeper_is_replaced_and_servers_are_watched_restarted_and_stopped(until: Any) -> None:
    server = config("web")
    runner = ProcessRunner()
    pool = Pool([server], runner=runner)

    def worker() -> int | None:
        try:
            return int(get(server.bind, "/pid").body)
        except OSError:  # of one that is being killed
            return None

    try:
        pool.start_sync(timeout=60)
        first = until(worker)
        for _ in range(2):
            keeper, before = runner.children.keeper_pid, until(worker)
            os.kill(keeper, signal.SIGKILL)
            until(lambda keeper=keeper: runner.children.keeper_pid != keeper)
            assert worker() == before
        # A worker of the first keeper, and one of the last.
        for _ in range(2):
            before = until(worker)
            os.kill(before, signal.SIGKILL)
            until(lambda before=before: worker() not in (None, before))
        pool.restart_sync(timeout=60)
        before = until(worker)
        os.kill(runner.children.keeper_pid, signal.SIGKILL)
        pool.stop_sync(timeout=60)
        assert not any(map(is_alive, (first, before)))
    finally:
        pool.stop_sync(timeout=60)
        keeper = runner.children.keeper_pid
        loop_thread.run_sync(runner.aclose())
    until(lambda: not is_alive(keeper))


# A restart.

BUSY_APP = """
import time
from pathlib import Path
async def app(scope, receive, send):
    assert scope["type"] == "http"
    Path(__file__).with_name("begun").touch()
    time.sleep(1)
    Path(__file__).with_name("over").touch()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""


def test_restart_returns_when_a_busy_old_worker_accepts_no_more(tmp_path: Path, until: Any) -> None:
    (tmp_path / "busy.py").write_text(BUSY_APP)
    server = ServerConfig(name="web", bind=f"127.0.0.1:{claim_port()}", app="busy:app", app_dir=str(tmp_path))
    runner = ProcessRunner()
    pool = Pool([server], runner=runner)
    asking = threading.Thread(target=get, args=[server.bind])
    try:
        pool.start_sync(timeout=60)
        asking.start()
        until((tmp_path / "begun").exists)
        pool.restart_sync(timeout=60)
        assert (tmp_path / "over").exists()
        asking.join(60)
    finally:
        pool.stop_sync(timeout=60)
        loop_thread.run_sync(runner.aclose())


# Hooks.


def config_with_hooks(directory: Path, **hooks: str) -> ServerConfig:
    """A server whose hooks are programs in Python."""
    (directory / "hello.py").write_text(HELLO_APP)
    bind = f"127.0.0.1:{claim_port()}"
    words = {name: [sys.executable, "-c", program] for name, program in hooks.items()}
    return ServerConfig(
        name="web", bind=bind, app="hello:app", app_dir=str(directory), cwd=str(directory), hooks=words
    )


def note(name: str) -> str:
    return f"open('notes', 'a').write('{name} ')"


@pytest.mark.slow
def test_hooks_run_around_a_server_also_when_the_keeper_has_nothing_else_to_do(
    tmp_path: Path, process_runner: ProcessRunner
) -> None:
    # At the second start longer than an idle keeper lives.
    slow = "import os, time; time.sleep(11 if os.path.exists('notes') else 0); "
    hooks = config_with_hooks(tmp_path, before_start=slow + note("before"), after_stop=note("after"))
    pool = Pool([hooks], runner=process_runner)
    for _ in range(2):
        pool.start_sync(timeout=60)
        pool.stop_sync(timeout=60)
    assert (tmp_path / "notes").read_text() == "before after before after "


def test_failed_before_start_is_the_error_of_the_start(tmp_path: Path, process_runner: ProcessRunner) -> None:
    pool = Pool(
        [config_with_hooks(tmp_path, before_start="raise SystemExit('no database')")], runner=process_runner
    )
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync(timeout=60)
    (problem,) = caught.value.exceptions
    assert problem.message == "hooks.before_start exited with status 1: no database"


def test_start_that_is_given_up_ends_its_hook(
    tmp_path: Path, process_runner: ProcessRunner, until: Any
) -> None:
    forever = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    pool = Pool(
        [config_with_hooks(tmp_path, before_start=forever, after_stop=note("after"))], runner=process_runner
    )
    with pytest.raises(PoolStartError):
        pool.start_sync(timeout=2)
    pid = tmp_path / "pid"
    until(lambda: not pid.exists() or not is_alive(int(pid.read_text() or 0)))
    pool.stop_sync(timeout=60)
    assert not (tmp_path / "notes").exists()
