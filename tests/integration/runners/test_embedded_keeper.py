"""The keeper of a program that embeds a pool of processes is killed: servers serve on, and another one is started."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from poolctl import Pool, ServerConfig
from poolctl.pool import loop_thread
from poolctl.runners.embedded_runner import ProcessRunner
from tests.http_get import get
from tests.ports import claim_port
from tests.processes import is_alive

APP = """
import os
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % os.getpid()})
"""


def test_killed_keeper_is_replaced_and_servers_are_watched_restarted_and_stopped(
    tmp_path: Path, until: Any
) -> None:
    (tmp_path / "pids.py").write_text(APP)
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
        pool.start_sync(timeout=30)
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
        pool.restart_sync(timeout=30)
        before = until(worker)
        os.kill(runner.children.keeper_pid, signal.SIGKILL)
        pool.stop_sync(timeout=30)
        assert not any(map(is_alive, (first, before)))
    finally:
        pool.stop_sync(timeout=30)
        keeper = runner.children.keeper_pid
        loop_thread.run_sync(runner.aclose())
    until(lambda: not is_alive(keeper))
