"""What the pool's own processes write is bounded, whatever a worker does."""

from __future__ import annotations

from typing import Any

from poolctl.worker.process_setup import CONTROL_FD
from tests.real_pool import HELLO_APP, RealPool

FLOOD = """
import json, select, socket, threading

def flood():
    control = socket.socket(fileno=CONTROL_FD)
    for number in range(5_000):
        packet = json.dumps({"event": "tls", "error": f"{number} " + "x" * 1_000}).encode()
        select.select([], [control], [], 10)
        try:
            control.send(packet, socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue

threading.Thread(target=flood, daemon=True).start()
"""


def test_a_worker_that_floods_its_supervisor_fills_no_disk(real_pool: RealPool, until: Any) -> None:
    real_pool.write_hello("web", extra='restart = "no"')
    real_pool.write("hello.py", FLOOD.replace("CONTROL_FD", str(CONTROL_FD)) + HELLO_APP)
    real_pool.run("start")
    until(lambda: real_pool.items()["web"]["state"] == "failed", what="the worker is killed")
    written = sum(path.stat().st_size for path in real_pool.runtime.rglob("*") if path.is_file())
    assert written < 4_000_000
