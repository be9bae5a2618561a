"""`preload` for programs that embed a pool of processes."""

from __future__ import annotations

from pathlib import Path

from poolctl import Pool, ServerConfig
from poolctl.runners.embedded_runner import ProcessRunner
from tests.http_get import get
from tests.ports import claim_port

APP = """
import os
ANSWER = f"{VERSION} {os.getpid()}".encode()
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": ANSWER})
"""


def test_servers_are_forked_from_an_import_and_restarted_together_with_new_code(
    tmp_path: Path, process_runner: ProcessRunner
) -> None:
    module = tmp_path / "embedded.py"
    module.write_text("VERSION = 1\n" + APP)
    keys = {"app": "embedded:app", "app_dir": str(tmp_path), "preload": True}
    configs = [ServerConfig(name=name, bind=f"127.0.0.1:{claim_port()}", **keys) for name in "abc"]
    pool = Pool(configs, runner=process_runner)

    def answers() -> list[tuple[int, int]]:
        """Version and the process of the import, by server."""
        texts = [get(config.bind).text.split() for config in configs]
        return [(int(version), int(pid)) for version, pid in texts]

    try:
        pool.start_sync(timeout=60)
        pids = {pid for server in pool.values() for pid in server.pids}
        ((version, imported_in),) = set(answers())
        assert version == 1
        assert imported_in not in pids
        module.write_text("VERSION = 20\n" + APP)
        pool.restart_sync(timeout=60)
        ((version, imported_in_again),) = set(answers())
        assert version == 20
        assert imported_in_again != imported_in
    finally:
        pool.stop_sync(timeout=60)
