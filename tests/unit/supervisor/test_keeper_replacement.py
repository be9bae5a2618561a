"""A keeper that fails or hangs is replaced, and the next one gets everything."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from poolctl.clock import Clock
from poolctl.keeper import fd_store, wire
from poolctl.monitor.event_queue import EventBus
from poolctl.runners.process_link import KeeperLink, identity
from poolctl.supervisor.takeover.keeper_replacement import (
    KeeperWatch,
    hand_over_to_new_keeper,
    reason_irreplaceable,
)
from tests.deadline import wait_until
from tests.processes import freeze, is_frozen
from tests.virtual_loop import VirtualLoop, run_in_virtual_time

from .new_keeper import NewKeepers


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Stopped, as a keeper that does not answer."""
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        freeze(sleeper.pid)
        yield sleeper
        sleeper.kill()


@pytest.mark.parametrize(
    ("pid", "env", "names", "whole", "reason"),
    [
        (1, {}, [], True, "it is the first process of a container (PID 1)"),
        (2, {"NOTIFY_SOCKET": "/s"}, [], True, "it is the main process of a systemd service"),
        (2, {"NOTIFY_SOCKET": "/s"}, [fd_store.LIFELINE], True, ""),  # `poolctl run` is that
        (2, {}, [], False, "the supervisor does not know all of its descriptors yet"),
        (2, {}, [], True, ""),
    ],
)
@pytest.mark.loop(run=run_in_virtual_time)
async def test_a_keeper_is_replaced_only_when_its_exit_does_not_end_the_pool(
    pid: int, env: dict[str, str], names: list[str], whole: bool, reason: str
) -> None:
    ours, theirs = wire.pair()
    with theirs, closing(KeeperLink(ours)) as keeper:
        for name in names:
            keeper.remember_entry(name, None, [])
        keeper.whole = whole
        assert reason_irreplaceable(keeper, pid, env) == reason


HUNG = """
import os, signal, sys
from poolctl.supervisor.takeover.keeper_replacement import KeeperExitWatchdog

parent = os.getppid()

def replace(frame):
    print(frame.f_code.co_name, flush=True)
    os._exit(0)

def hang():
    for _ in range(9):
        signal.raise_signal(signal.SIGCONT)
    print(os.getpid(), flush=True)
    while os.getppid() == parent:
        pass
    for _ in range(4):
        signal.raise_signal(signal.SIGCONT)
    print("five signals", flush=True)
    if sys.argv[1] == "blocked":
        os.read(os.pipe()[0], 1)
    while True:
        pass

KeeperExitWatchdog(parent, replace)
hang()
"""


@pytest.mark.parametrize("how", ["busy", "blocked"])
def test_sixth_signal_after_the_keepers_end_replaces_it(how: str) -> None:
    # Two commands, so that the shell does not execute the first in its own place.
    shell = ["sh", "-c", '"$@"; exit', "sh", sys.executable, "-c", HUNG, how]
    with subprocess.Popen(shell, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        hung = int(parent.stdout.readline())
        try:
            freeze(hung)
            parent.kill()
            assert parent.stdout.read() == "five signals\nhang\n"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(hung, signal.SIGKILL)


def replaced(
    directory: Path, *endings: str, entries: Any = None, terminate: bool = False
) -> list[dict[str, Any]]:
    """Replace a keeper by those with these endings, one after the other; what each of them has got."""
    keepers = NewKeepers(directory / "record", *endings)
    hand_over_to_new_keeper(
        str(directory / "pool"), keepers.command, ["python", "supervisor"], entries or {}, stop_pool=terminate
    )
    return keepers.started()


@pytest.mark.parametrize("full", [False, True])
def test_a_new_keeper_that_is_stopped_while_it_is_filled_is_continued(tmp_path: Path, full: bool) -> None:
    # More than a socket takes unread, or nothing at all: then what is missing is the answer.
    entries = {f"note {number}": ("x" * 1000, []) for number in range(1000 * full)}
    (new,) = replaced(tmp_path, "stops", entries=entries)
    assert [message["op"] for message in new["messages"]] == ["put"] * len(entries) + ["whole", "pong"]


@pytest.mark.parametrize("terminate", [False, True])
def test_new_keeper_gets_the_control_socket_first_and_then_all_that_the_old_one_held(
    tmp_path: Path, terminate: bool
) -> None:
    worker, gateway = f"{fd_store.WORKER}web.1.0", fd_store.GATEWAY_LINK
    fd = os.open("/dev/null", os.O_RDONLY)
    entries: Any = {
        worker: ({"pid": 7, "start": 8}, [fd]), "listener": ("meta", [fd, fd]),
        gateway: ({"pid": 9, "start": 10}, [fd]),
        fd_store.CONFIGURATION: (None, [fd]), fd_store.WANTED: (None, [fd]), fd_store.CONTROL: (None, [fd]),
    }  # fmt: skip
    (new,) = replaced(tmp_path, "adopted", entries=entries, terminate=terminate)
    os.close(fd)
    assert new["directory"] == str(tmp_path / "pool")
    assert (tmp_path / "pool").stat().st_mode & 0o777 == 0o700
    assert new["plan"] == {
        "supervisor": ["python", "supervisor"], "donor": 3, "donor_process": identity(os.getpid()),
    }  # fmt: skip
    put = [message for message in new["messages"] if message["op"] == "put"]
    assert [message["name"] for message in put[:3]] == [
        fd_store.CONTROL, fd_store.WANTED, fd_store.CONFIGURATION,
    ]  # fmt: skip
    assert {message["name"]: (message["meta"], message["descriptors"]) for message in put} == {
        name: (meta, len(fds)) for name, (meta, fds) in entries.items()
    }
    assert [message for message in new["messages"] if message["op"] != "put"] == [
        {"op": "watch", "pid": 7, "start": 8, "descriptors": 0},
        {"op": "watch", "pid": 9, "start": 10, "descriptors": 0},
        *([{"op": "terminate", "descriptors": 0}] if terminate else []), {"op": "whole", "descriptors": 0},
    ]  # fmt: skip


def test_keeper_that_ends_is_followed_by_another_after_growing_pauses(tmp_path: Path) -> None:
    began = [new["began"] for new in replaced(tmp_path, "dies", "ends", "started", "adopted")]
    pauses = [after - before for before, after in pairwise(began)]
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2), strict=True)), pauses


def test_keeper_that_refuses_five_times_is_left_to_another_process(tmp_path: Path) -> None:
    assert len(replaced(tmp_path, *["refused"] * 5, "adopted")) == 5


class SilentKeeper:
    """A watch over this process in a loop whose time passes at once; the keeper answers while `answers`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.text = f"the keeper (pid {process.pid}) does not answer"
        self.continued = f"{self.text}: SIGCONT was sent; it will be replaced if that does not help"
        self.killed = f"{self.text}: it was killed, but has not exited yet"
        self.loop = VirtualLoop()
        self.recorded: list[tuple[str, str, str]] = []
        events = EventBus(Clock())
        events.subscribe(
            lambda event: self.recorded.append((event.event, event.detail["severity"], event.message))
        )
        self.events, self.pings, self.answers = events, [], True
        self.loop.run_until_complete(self._begin())

    async def _begin(self) -> None:
        ours, self.theirs = wire.pair()
        self.theirs.setblocking(False)
        self.link = KeeperLink(ours)
        self.loop.add_reader(self.theirs.fileno(), self._asked)
        self.watch = KeeperWatch(self.link, self.process.pid, self.events)
        self.link.whole = True

    def _asked(self) -> None:
        received = wire.receive(self.theirs)
        if received is None:
            self.loop.remove_reader(self.theirs.fileno())
            return
        self.pings.append(self.loop.time())
        if self.answers:
            wire.send(self.theirs, {"id": received[0]["id"]})

    def events_so_far(self) -> list[tuple[str, str, str]]:
        self.events.flush()
        return self.recorded

    @property
    def is_stopped(self) -> bool:
        """Whether it has got no signal since it was stopped."""
        return is_frozen(self.process.pid)

    def close(self) -> None:
        self.link.close()
        self.theirs.close()
        self.loop.close()


@pytest.fixture
def silent(process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[SilentKeeper]:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with closing(SilentKeeper(process)) as keeper:
        yield keeper


def test_keeper_is_pinged_every_five_seconds_and_not_after_another_message(silent: SilentKeeper) -> None:
    silent.loop.pass_time(16)
    assert silent.pings == [5, 10, 15]
    wire.send(silent.theirs, {"event": "any"})
    silent.loop.pass_time(10)
    assert silent.pings == [5, 10, 15, 25]
    assert (silent.is_stopped, silent.events_so_far()) == (True, [])


def test_silent_keeper_is_continued_then_killed(
    silent: SilentKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    silent.answers = False
    silent.loop.pass_time(5)
    assert (silent.pings, silent.is_stopped) == ([5], True)
    silent.loop.pass_time(9.9)
    wait_until(lambda: not silent.is_stopped)
    assert silent.process.poll() is None
    silent.loop.pass_time(0.2)
    assert silent.process.wait(60) == -signal.SIGKILL
    silent.loop.pass_time(100)
    assert silent.events_so_far() == [
        ("keeper silent", "warning", silent.continued),
        ("keeper silent", "error", silent.killed),
    ]
    assert silent.pings == [5], "it answers the first one when it runs"
    assert silent.continued in caplog.text
    assert silent.killed in caplog.text
    wire.send(silent.theirs, {"id": 0})
    silent.loop.pass_time(2)
    back = f"the keeper (pid {silent.process.pid}) answers again"
    assert silent.events_so_far()[2:] == [("keeper back", "info", back)]
    assert back in caplog.text
    silent.loop.pass_time(40)
    assert [severity for _, severity, _ in silent.events_so_far()[3:]] == ["warning", "error"]


def test_silent_keeper_that_cannot_be_replaced_is_only_continued(
    silent: SilentKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    silent.answers = False
    for _ in range(2):
        freeze(silent.process.pid)
        silent.loop.pass_time(60)
        wait_until(lambda: not silent.is_stopped)
    assert silent.process.poll() is None
    text = (
        f"{silent.text} and cannot be replaced, because it is the main process of a systemd service: exits of "
        "workers are not noticed; restart the service or the container"
    )
    assert silent.events_so_far()[1:] == [("keeper silent", "error", text)]


def test_lost_keeper_is_not_pinged(silent: SilentKeeper) -> None:
    silent.link.close()
    silent.loop.pass_time(30)
    assert (silent.pings, silent.is_stopped) == ([], True)
