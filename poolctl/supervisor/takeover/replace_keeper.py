"""After the death of the keeper: another one is started, and gets everything that the first one held."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from poolctl import bootstrap
from poolctl.keeper import fd_store, wire
from poolctl.keeper.spawn import in_background
from poolctl.runners.process_watchdog import identity, kill
from poolctl.values import Table

_PAUSES_SECONDS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_HELLO_SECONDS = 20.0
_FULL_SECONDS = 0.002
# A keeper that is silent, or whose socket is full, for this long gets SIGCONT.
_LATE_SECONDS = 2.0
_FIRST = (fd_store.CONTROL, fd_store.WANTED, fd_store.CONFIGURATION)
# Another process may be doing the same with the same descriptors, or a keeper is about to end.
_REFUSALS = 5

# Names with their values and descriptors.
Entries = Mapping[str, tuple[Any, list[int]]]


class _Refused(Exception):
    """There is another keeper."""


def replace_keeper(directory: str, supervisor: list[str], entries: Entries, *, terminate: bool) -> None:
    """Return when another keeper, and a supervisor that it starts, have everything; this process is not needed then.

    Blocks on purpose: the state must not change while it is handed over. Retries without limit. With `terminate` the
    new keeper stops the pool.
    """
    refusals = 0
    for pause in _pauses():
        time.sleep(pause)
        try:
            with _keeper(directory, supervisor) as (link, keeper):
                _fill(link, keeper, entries, terminate=terminate)
                _await(link, "adopted", keeper)
                return
        except _Refused:
            refusals += 1
            if refusals >= _REFUSALS:
                return
        except (OSError, wire.WireError):
            continue


def _pauses() -> Iterator[float]:
    yield from _PAUSES_SECONDS
    while True:
        yield _PAUSES_SECONDS[-1]


@contextlib.contextmanager
def _keeper(directory: str, supervisor: list[str]) -> Iterator[tuple[socket.socket, Table]]:
    """The link to a new keeper that has greeted, and the identity of its process."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    plan = json.dumps({"supervisor": supervisor, "donor": 3, "donor_process": identity(os.getpid())})
    argv = bootstrap.command(sys.executable, "keeper", directory, plan, isolated=True)
    ours, theirs = wire.pair()
    with ours:
        with theirs:
            in_background(argv, dict(os.environ), [theirs.fileno()])
        ours.settimeout(_HELLO_SECONDS)
        keeper = identity(int(_await(ours, "hello")["pid"]))
        ours.settimeout(_LATE_SECONDS)
        yield ours, keeper


def _fill(link: socket.socket, keeper: Table, entries: Entries, *, terminate: bool) -> None:
    # In this order: if we die here, a keeper that has the control socket continues, and its supervisor must not take a
    # worker for one that is not wanted.
    for name in sorted(entries, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST)):
        meta, fds = entries[name]
        _send(link, keeper, {"op": "put", "name": name, "meta": meta}, fds)
    for name, (meta, _) in entries.items():
        if name.startswith(fd_store.WORKER):
            _send(link, keeper, {"op": "watch", "pid": meta["pid"], "start": meta["start"]})
    if terminate:
        _send(link, keeper, {"op": "terminate"})
    _send(link, keeper, {"op": "whole"})


def _send(
    link: socket.socket,
    keeper: Table,
    message: wire.Message,
    fds: list[int] | tuple[int, ...] = (),
) -> None:
    while True:
        try:
            wire.send(link, message, fds)
            return
        except (BlockingIOError, TimeoutError):  # too many descriptors or messages are in flight
            kill(keeper, signal.SIGCONT)
            time.sleep(_FULL_SECONDS)


def _await(link: socket.socket, event: str, keeper: Table | None = None) -> wire.Message:
    """The keeper's message of that event. Raises OSError when it ends before, _Refused when there is another.

    A known keeper is awaited for as long as it lives; it may have been stopped, so it gets SIGCONT meanwhile.
    """
    while True:
        try:
            received = wire.receive(link, wait=True)
        except TimeoutError:
            if keeper is None:
                raise
            kill(keeper, signal.SIGCONT)
            continue
        if received is None:
            raise ConnectionResetError("the keeper ended")
        message, fds = received
        for fd in fds:
            os.close(fd)
        if message.get("event") == event:
            return message
        if message.get("event") == "refused":
            raise _Refused
        if message.get("event") == "ping" and keeper is not None:
            _send(link, keeper, {"op": "pong"})
