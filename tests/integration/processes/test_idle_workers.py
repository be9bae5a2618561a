"""Idle workers are not woken by heartbeats, and one that hangs without any traffic is found nevertheless."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from poolctl.platform import process_cpu_ns
from poolctl.runners.local.tally_page import EventLoopIdleDetector, Tally
from tests.deadline import wait_until
from tests.processes import freeze
from tests.real_pool import RealPool

HANGING = """
import asyncio, ctypes, os, select, signal, threading, time

KIND = os.environ["HANGS_IN"]
held = []

def hang():
    if KIND == "a lock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    elif KIND == "an epoll of its own":
        select.epoll().poll()
    elif KIND == "an earlier epoll":
        held[0].poll()
    else:
        time.sleep(1000)

def hold_the_interpreter():
    os.read(os.open(os.environ["FIFO"], os.O_RDONLY), 1)
    ctypes.PyDLL(None).sleep(1000)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        if KIND == "an earlier epoll":
            held.append(select.epoll())
        elif KIND == "beside a loop in a thread":
            threading.Thread(target=lambda: asyncio.run(asyncio.Event().wait()), daemon=True).start()
        elif KIND == "a thread that holds the interpreter":
            threading.Thread(target=hold_the_interpreter, daemon=True).start()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, hang)
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
"""
# They are asked for ever, because they have more than one epoll instance.
ALWAYS_ASKED = ("an earlier epoll", "beside a loop in a thread")
KINDS = (
    "time.sleep", "a lock", "an epoll of its own", "a thread that holds the interpreter", "SIGSTOP", *ALWAYS_ASKED,
)  # fmt: skip


def start(pool: RealPool, kinds: Iterable[tuple[str, str]], recovery: str) -> dict[str, int]:
    """The pids of a pool's workers by server; each hangs in its own way."""
    pool.write("hanging.py", HANGING)
    os.mkfifo(pool.directory / "fifo")
    pool.write(
        "pool.toml",
        "\n".join(
            f'[[server]]\nname = "{loop}{number}"\nbind = "unix:{loop}{number}.sock"\napp = "hanging:app"\n'
            f'http = {{ loop = "{loop}" }}\nstop_timeout = "300ms"\nrecovery = {{ {recovery} }}\n'
            f'env = {{ HANGS_IN = "{kind}", FIFO = "{pool.directory}/fifo" }}'
            for number, (loop, kind) in enumerate(kinds)
        ),
    )
    pool.ok("start")
    return {name: item["pids"][0] for name, item in pool.items().items()}


def unchanged(pids: Iterable[int], seconds: float) -> Callable[[], bool]:
    """Whether none of the processes has run for so long."""
    used = dict.fromkeys(pids, -1)
    since = time.monotonic()

    def condition() -> bool:
        nonlocal used, since
        now = {pid: process_cpu_ns(pid) or 0 for pid in used}
        if now != used:
            used, since = now, time.monotonic()
        return time.monotonic() - since >= seconds

    return condition


def lost(pool: RealPool) -> dict[str, Any]:
    """The events of lost heartbeats by server, without a last line of which only a part has been written."""
    texts = [path.read_text() for path in pool.runtime.rglob("events.jsonl")]
    found = [json.loads(line) for text in texts for line in text[: text.rfind("\n") + 1].splitlines()]
    return {event["server"]: event for event in found if event["event"] == "heartbeat lost"}


def test_worker_that_hangs_without_traffic_is_found_and_an_idle_one_is_not_woken(real_pool: RealPool) -> None:
    recovery = 'strategy = "none", heartbeat = "200ms", stuck_after = "4s"'
    kinds = [(loop, kind) for loop in ("asyncio", "uvloop") for kind in (*KINDS, "nothing")]
    pids = start(real_pool, kinds, recovery)
    kind_of = {name: kinds[int(name.removeprefix("asyncio").removeprefix("uvloop"))][1] for name in pids}
    idle = [pid for name, pid in pids.items() if kind_of[name] not in ALWAYS_ASKED]
    # Forty heartbeats, and twice the time after which an unanswered one is a problem.
    wait_until(unchanged(idle, 8.0), what="nothing runs in idle workers")
    assert lost(real_pool) == {}
    for name, pid in pids.items():
        if kind_of[name] == "SIGSTOP":
            freeze(pid)
        elif kind_of[name] not in ("nothing", "a thread that holds the interpreter"):
            os.kill(pid, signal.SIGUSR1)
    (real_pool.directory / "fifo").write_bytes(b"12")
    hung = {name for name in pids if kind_of[name] != "nothing"}
    try:
        wait_until(lambda: lost(real_pool).keys() >= hung, what=f"{len(hung)} hung workers are found")
    except AssertionError:
        raise AssertionError({kind_of[name] for name in hung - lost(real_pool).keys()}) from None
    assert lost(real_pool).keys() == hung


# Answers a heartbeat, as a worker does, and waits at once. It has used no processor time since that would give it away.
ANSWERING = """
import asyncio, mmap, select, sys, threading, time
from poolctl.worker.tally import BEAT_ANSWERED_NS, BEAT_CPU_NS, map_page
kind, page = sys.argv[1], map_page(int(sys.argv[2]))
held = [select.epoll()] if kind == "an earlier epoll" else []
lock = threading.Lock()
lock.acquire()
def answer():
    page[BEAT_ANSWERED_NS], page[BEAT_CPU_NS] = time.monotonic_ns(), time.process_time_ns()
    if kind == "time.sleep":
        time.sleep(1000)
    elif kind == "a lock":
        lock.acquire()
    elif kind == "an epoll of its own":
        select.epoll().poll()
    elif kind == "poll":
        select.poll().poll()
    elif kind == "work":
        while time.process_time_ns() < page[BEAT_CPU_NS] + 5_000_000:
            pass
async def main():
    asyncio.get_running_loop().call_soon(answer)
    await asyncio.Event().wait()
if kind == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("kind", "idle"),
    [("asyncio", True), ("uvloop", True), ("time.sleep", False), ("a lock", False), ("an epoll of its own", False),
     ("an earlier epoll", False), ("poll", False), ("work", False), ("SIGSTOP", False)],
)  # fmt: skip
def test_worker_is_idle_only_in_its_event_loop(kind: str, idle: bool) -> None:
    tally, check = Tally.new(), EventLoopIdleDetector()
    argv = [sys.executable, "-c", ANSWERING, kind, str(tally.fileno())]
    with subprocess.Popen(argv, pass_fds=[tally.fileno()]) as process:
        try:
            wait_until(tally.last_beat_ns, what="an answer")
            if kind == "SIGSTOP":
                freeze(process.pid)
            wait_until(unchanged([process.pid], 0.2), what="it waits")
            if idle:  # on a busy machine it may wait for a processor first
                wait_until(lambda: check.is_idle(process.pid, tally), what="it waits in its event loop")
            assert [check.is_idle(process.pid, tally) for _ in range(3)] == [idle] * 3
            if idle:
                freeze(process.pid)
                wait_until(lambda: not check.is_idle(process.pid, tally), what="it has run since its answer")
        finally:
            process.kill()
    assert not check.is_idle(process.pid, tally), "it has ended"
    tally.close()
