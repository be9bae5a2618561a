"""What a hostile worker can make the pool's own processes write is bounded."""

from __future__ import annotations

from typing import Any

from poolctl.worker.child import CONTROL_FD
from tests.real_pool import HELLO_APP, RealPool

FLOOD = """
import json, pathlib, select, socket, threading

def flood():
    control, sent = socket.socket(fileno=CONTROL_FD), 0
    try:
        while sent < 5_000:
            packet = json.dumps({"event": "tls", "error": f"{sent} " + "x" * 60_000}).encode()
            select.select([], [control], [], 10)
            try:
                control.send(packet, socket.MSG_DONTWAIT)
                sent += 1
            except BlockingIOError:
                continue
    except OSError:
        pass
    finally:
        control.detach()
        pathlib.Path("flooded").write_text(str(sent))

threading.Thread(target=flood, daemon=True).start()
"""


def test_a_worker_that_floods_its_supervisor_fills_no_disk(real_pool: RealPool, until: Any) -> None:
    real_pool.write_hello("web", extra='restart = "no"')
    real_pool.write("hello.py", FLOOD.replace("CONTROL_FD", str(CONTROL_FD)) + HELLO_APP)
    real_pool.run("start")
    flooded = real_pool.directory / "flooded"
    until(lambda: flooded.exists() and int(flooded.read_text() or 0) > 0)
    assert real_pool.run("list").code == 0
    written = sum(path.stat().st_size for path in real_pool.runtime.rglob("*") if path.is_file())
    assert written < 4_000_000
