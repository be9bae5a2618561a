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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl import Pool, PoolStartError, ServerConfig
from poolctl.pool import loop_thread
from poolctl.runners.embedded_runner import ProcessRunner
from tests.deadline import wait_until
from tests.descriptors import free_descriptors
from tests.http_get import get
from tests.ports import claim_port
from tests.processes import is_alive
from tests.real_pool import HELLO_APP

APP = """
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""


@pytest.mark.slow
def test_processes_of_a_dropped_pool_end_some_seconds_after_its_last_server(
    tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))  # a dropped pool removes no logs
    (tmp_path / "plain.py").write_text(APP)
    port = claim_port()
    config = ServerConfig(name="web", bind=f"127.0.0.1:{port}", app="plain:app", app_dir=str(tmp_path))
    runner = ProcessRunner()
    pool = Pool([config], runner=runner)
    keepers = []
    for _ in range(2):
        pool.start_sync(timeout=60)
        assert get(port).status == 200
        keepers.append(runner.children.keeper_pid)
        pool.stop_sync(timeout=60)
        wait_until(lambda: not is_alive(keepers[-1]))
    assert len(set(keepers)) == 2, "the second start begins with a keeper of its own"
    known = weakref.ref(runner)
    del pool, runner
    wait_until(lambda: gc.collect() >= 0 and known() is None)


def test_keeper_that_could_not_be_started_is_started_again_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plain.py").write_text(APP)
    port = claim_port()
    config = ServerConfig(name="web", bind=f"127.0.0.1:{port}", app="plain:app", app_dir=str(tmp_path))
    pool = Pool([config], runner=ProcessRunner())
    loop = loop_thread.get_or_start()
    loop.hold()  # it needs descriptors as well
    with free_descriptors(0), pytest.raises(PoolStartError):
        pool.start_sync(timeout=60)
    loop.release()
    pool.start_sync(timeout=60)
    assert get(port).status == 200
    pool.stop_sync(timeout=60)
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_idle_processes_that_end_while_a_server_opens_do_not_take_it_along(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(APP)
    servers = {
        name: ServerConfig(
            name=name, bind=f"127.0.0.1:{claim_port()}", app="plain:app", app_dir=str(tmp_path)
        )
        for name in ("first", "second")
    }

    async def scenario() -> None:
        runner = ProcessRunner()
        try:
            await runner.open(servers["first"])
            await runner.close(servers["first"].key)
            runner._end_if_idle()
            await runner.open(servers["first"])
            await runner.open(servers["second"])
            keeper = runner.children.keeper_pid
            await runner.close(servers["second"].key)
            runner._end_if_idle()
            await runner.start()
            assert runner.children.keeper_pid == keeper, "one server is open"
        finally:
            await runner.aclose()

    asyncio.run(scenario())


def test_processes_stay_for_the_whole_time_after_the_last_of_several_servers_that_ended(
    tmp_path: Path,
) -> None:
    server = ServerConfig(
        name="web", bind=f"127.0.0.1:{claim_port()}", app="plain:app", app_dir=str(tmp_path)
    )

    async def scenario() -> None:
        runner = ProcessRunner()
        try:
            await runner.open(server)
            await runner.close(server.key)
            first = runner._idle
            await runner.open(server)
            assert first is not None
            assert first.cancelled()
        finally:
            await runner.aclose()

    asyncio.run(scenario())


def test_keeper_that_could_not_be_started_is_started_by_the_next_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ServerConfig(
        name="web", bind=f"127.0.0.1:{claim_port()}", app="plain:app", app_dir=str(tmp_path)
    )
    logs = tmp_path / "logs"
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

PIDS_APP = """
import os
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % os.getpid()})
"""


def test_killed_keeper_is_replaced_and_servers_are_watched_restarted_and_stopped(
    tmp_path: Path, until: Any
) -> None:
    (tmp_path / "pids.py").write_text(PIDS_APP)
    port = claim_port()
    config = ServerConfig(name="web", bind=f"127.0.0.1:{port}", app="pids:app", app_dir=str(tmp_path))
    runner = ProcessRunner()
    pool = Pool([config], runner=runner)

    def worker() -> int | None:
        try:
            return int(get(port).body)
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
    port = claim_port()
    config = ServerConfig(name="web", bind=f"127.0.0.1:{port}", app="busy:app", app_dir=str(tmp_path))
    runner = ProcessRunner()
    pool = Pool([config], runner=runner)
    asking = threading.Thread(target=get, args=[port])
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


@pytest.fixture
def runner() -> Iterator[ProcessRunner]:
    made = ProcessRunner()
    yield made
    loop_thread.run_sync(made.aclose())


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
    tmp_path: Path, runner: ProcessRunner
) -> None:
    # At the second start longer than an idle keeper lives.
    slow = "import os, time; time.sleep(11 if os.path.exists('notes') else 0); "
    hooks = config_with_hooks(tmp_path, before_start=slow + note("before"), after_stop=note("after"))
    pool = Pool([hooks], runner=runner)
    for _ in range(2):
        pool.start_sync(timeout=60)
        pool.stop_sync(timeout=60)
    assert (tmp_path / "notes").read_text() == "before after before after "


def test_failed_before_start_is_the_error_of_the_start(tmp_path: Path, runner: ProcessRunner) -> None:
    pool = Pool([config_with_hooks(tmp_path, before_start="raise SystemExit('no database')")], runner=runner)
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync(timeout=60)
    (problem,) = caught.value.exceptions
    assert problem.message == "hooks.before_start exited with status 1: no database"


def test_start_that_is_given_up_ends_its_hook(tmp_path: Path, runner: ProcessRunner, until: Any) -> None:
    forever = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    pool = Pool([config_with_hooks(tmp_path, before_start=forever, after_stop=note("after"))], runner=runner)
    with pytest.raises(PoolStartError):
        pool.start_sync(timeout=2)
    until(lambda: not has_processes(runner))
    pool.stop_sync(timeout=60)
    assert not (tmp_path / "notes").exists()


def has_processes(runner: ProcessRunner) -> bool:
    """Whether a process of the runner is left."""
    return bool(runner._workers)
