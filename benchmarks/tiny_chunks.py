"""The latency of other clients of the gateway while four clients send request bodies in chunks of one byte.

The gateway runs on one processor; its workers and all clients share the others. The clients that send chunks have the
lowest priority there, so that the latency is the gateway's. A client that is refused connects and sends again.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.synchronize
import os
import socket
import statistics
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from . import answers
from .gateway import APP, on_one_processor
from .project import Project
from .report import Row
from .serving import Side

ROUNDS = 5
ROUND_SECONDS = 3.0
SENDERS = 4
_MOST_RATIO = 5.0
_PAUSE_SECONDS = 0.002  # between two requests of the measured client: many samples, little load
_CHUNKS = b"1\r\nx\r\n" * 10_000
_HEAD = b"POST / HTTP/1.1\r\nhost: uploads\r\ntransfer-encoding: chunked\r\n\r\n"
_LOWEST_PRIORITY = 19


def run(options: Namespace) -> Iterator[Row]:
    with Project(2, app=APP) as project, ExitStack() as stack:
        (port,) = answers.free_ports(1)
        path = project.directory / "pool.toml"
        path.write_text(
            f'[gateway]\nbind = "127.0.0.1:{port}"\n'
            '[[route]]\nhost = "uploads"\nto = "s0"\nmode = "proxy"\n'
            '[[route]]\nhost = "others"\nto = "s1"\nmode = "proxy"\n' + path.read_text()
        )
        project.run("start")
        answers.wait_for_all(project.ports)
        items = json.loads(project.run("list", "-o", "json"))["items"]
        worker = next(item["pids"][0] for item in items if item["name"] == "s1")
        gateway = project.gateway()
        stack.enter_context(on_one_processor([gateway]))
        quiet, beside, seconds = list[float](), list[float](), min(ROUND_SECONDS, options.idle_seconds)
        for _ in range(options.repeat if options.quick else ROUNDS):
            quiet.append(_p99_milliseconds(port, worker, seconds))
            with _senders(port):
                beside.append(_p99_milliseconds(port, worker, seconds))
            if project.gateway() != gateway:
                raise RuntimeError("the gateway was replaced meanwhile")
    what = f"p99 of other clients beside {SENDERS} that send chunks of one byte"
    yield Row(what, "ms", beside, "without them", quiet, most_ratio=_MOST_RATIO)


def _p99_milliseconds(port: int, worker: int, seconds: float) -> float:
    """The latency of a request on a kept connection."""
    side = Side(port, worker)
    (sock,) = side.kept()[:1]
    taken, ends = list[float](), time.perf_counter() + seconds
    while (started := time.perf_counter()) < ends:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: others\r\n\r\n")
        received = b""
        while not received.endswith(b"hello\n"):
            if not (data := sock.recv(65536)):
                raise RuntimeError("the connection was closed")
            received += data
        taken.append(1e3 * (time.perf_counter() - started))
        time.sleep(_PAUSE_SECONDS)
    side.close()
    return statistics.quantiles(taken, n=100)[-1]


@contextmanager
def _senders(port: int) -> Iterator[None]:
    context = multiprocessing.get_context("fork")
    ready = context.Semaphore(0)
    processes = [context.Process(target=_send, args=(port, ready), daemon=True) for _ in range(SENDERS)]
    for process in processes:
        process.start()
    try:
        for _ in processes:
            if not ready.acquire(timeout=30):
                raise RuntimeError("a sending client has not connected within 30 s")
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _send(port: int, ready: multiprocessing.synchronize.Semaphore) -> None:
    os.nice(_LOWEST_PRIORITY)
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            sock.sendall(_HEAD)
            ready.release()
            while True:
                sock.sendall(_CHUNKS)
