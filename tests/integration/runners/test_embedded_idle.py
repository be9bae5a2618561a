"""The processes of a program that embeds a pool, when none of its servers runs any more."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

import pytest

from poolctl import Pool, PoolStartError, ServerConfig
from poolctl.runners import embedded_runner
from tests.deadline import wait_until
from tests.http_get import get
from tests.ports import claim_port
from tests.processes import is_alive

APP = """
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""


def test_processes_of_a_dropped_pool_end_some_seconds_after_its_last_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_runner, "_IDLE_SECONDS", 0.2)
    (tmp_path / "plain.py").write_text(APP)
    port = claim_port()
    config = ServerConfig(name="web", bind=f"127.0.0.1:{port}", app="plain:app", app_dir=str(tmp_path))
    runner = embedded_runner.ProcessRunner()
    pool = Pool([config], runner=runner)
    keepers = []
    for _ in range(2):
        pool.start_sync(timeout=30)
        assert get(port).status == 200
        keepers.append(runner.children.keeper_pid)
        pool.stop_sync(timeout=10)
        wait_until(lambda: not is_alive(keepers[-1]))
    assert len(set(keepers)) == 2, "the second start begins with a keeper of its own"
    known = weakref.ref(runner)
    del pool, runner
    wait_until(lambda: gc.collect() >= 0 and known() is None)


def test_keeper_that_could_not_be_started_is_started_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded_runner, "_IDLE_SECONDS", 0.01)
    (tmp_path / "plain.py").write_text(APP)
    port = claim_port()
    config = ServerConfig(name="web", bind=f"127.0.0.1:{port}", app="plain:app", app_dir=str(tmp_path))
    pool = Pool([config], runner=embedded_runner.ProcessRunner())
    with monkeypatch.context() as patched:
        patched.setattr(embedded_runner, "command", lambda *_, **__: ["true"])
        patched.setattr(embedded_runner, "_KEEPER_SECONDS", 0.1)
        with pytest.raises(PoolStartError):
            pool.start_sync(timeout=30)

    def starts() -> bool:
        try:
            pool.start_sync(timeout=30)
        except PoolStartError:
            return False
        return True

    wait_until(starts)
    assert get(port).status == 200
    pool.stop_sync(timeout=10)
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_idle_processes_that_end_while_a_server_opens_do_not_take_it_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_runner, "_IDLE_SECONDS", 600.0)
    (tmp_path / "plain.py").write_text(APP)
    servers = {
        name: ServerConfig(
            name=name, bind=f"127.0.0.1:{claim_port()}", app="plain:app", app_dir=str(tmp_path)
        )
        for name in ("first", "second")
    }

    async def scenario() -> None:
        runner = embedded_runner.ProcessRunner()
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
        runner = embedded_runner.ProcessRunner()
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
        runner = embedded_runner.ProcessRunner(str(logs))
        try:
            with pytest.raises(FileExistsError):
                await runner.open(server)
            logs.unlink()
            assert (await runner.open(server)).addresses
        finally:
            await runner.aclose()

    asyncio.run(scenario())


def test_process_runner_can_be_imported_from_its_earlier_module() -> None:
    from poolctl.runners.process import ProcessRunner

    assert ProcessRunner is embedded_runner.ProcessRunner
