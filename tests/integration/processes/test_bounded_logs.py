"""What the pool's own processes write is bounded, whatever a worker or a helper process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poolctl.keeper.spawn import MAX_SIZE_BYTES
from poolctl.worker.process_setup import CONTROL_FD
from tests.processes import descriptors
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


@pytest.mark.heavy_variants
@pytest.mark.parametrize("name", ["zygotes.log", "logger.log"])
def test_a_helper_process_that_prints_without_end_fills_no_disk(
    real_pool: RealPool, until: Any, name: str
) -> None:
    real_pool.write_hello("web")
    real_pool.ok("start")
    path = next(real_pool.runtime.glob(f"[!@]*/{name}"))
    pid = next(pid for pid in real_pool.processes() if descriptors(pid).get(2) == str(path.resolve()))
    with open(f"/proc/{pid}/fd/2", "ab", buffering=0) as printed:
        for number in range(3):
            printed.write(b"the same line\n" * 100_000)
            until(lambda: path.stat().st_size <= MAX_SIZE_BYTES, what="it is rotated")
            printed.write(b"the process goes on\n" * (number + 1))
    assert path.read_text().endswith("the process goes on\n")
    old = Path(f"{path}.1")
    assert "(the line above was repeated" in old.read_text()
    assert old.stat().st_size <= MAX_SIZE_BYTES
