"""A restart in a program that embeds a pool of processes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from poolctl import Pool, ServerConfig
from poolctl.pool import loop_thread
from poolctl.runners.embedded_runner import ProcessRunner
from tests.http_get import get
from tests.ports import claim_port

APP = """
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
    (tmp_path / "busy.py").write_text(APP)
    port = claim_port()
    config = ServerConfig(name="web", bind=f"127.0.0.1:{port}", app="busy:app", app_dir=str(tmp_path))
    runner = ProcessRunner()
    pool = Pool([config], runner=runner)
    asking = threading.Thread(target=get, args=[port])
    try:
        pool.start_sync(timeout=30)
        asking.start()
        until((tmp_path / "begun").exists)
        pool.restart_sync(timeout=30)
        assert (tmp_path / "over").exists()
        asking.join(60)
    finally:
        pool.stop_sync(timeout=5)
        loop_thread.run_sync(runner.aclose())
