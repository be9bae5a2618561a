"""A keeper that fails or hangs is replaced, and the next one gets everything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.clock import Clock, HungProcessDetector
from poolctl.keeper import fd_store, wire
from poolctl.monitor.event_queue import EventBus
from poolctl.runners.process_link import KeeperLink, identity
from poolctl.supervisor.takeover import keeper_replacement
from poolctl.supervisor.takeover.keeper_replacement import KeeperWatch, reason_irreplaceable
from tests.deadline import wait_until
from tests.processes import freeze, stat
from tests.virtual_loop import VirtualLoop

ASK, SILENT = 0.05, 0.2


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Stopped, as a keeper that does not answer."""
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        freeze(sleeper.pid)
        yield sleeper
        sleeper.kill()


class ReplaceableOrNot(KeeperWatch):
    """Cannot replace its keeper if there is a `reason`."""

    reason = ""

    def reason_irreplaceable(self) -> str:
        return self.reason


class WatchedKeeper:
    """A watch over that process, whose answers the test gives."""

    def __init__(self, process: subprocess.Popen[bytes], reason: str = "") -> None:
        ours, self.theirs = wire.pair()
        self.theirs.setblocking(False)
        self.link = KeeperLink(ours)
        self._recorded = EventBus(Clock())
        self._seen: list[tuple[str, str]] = []
        self._recorded.subscribe(lambda event: self._seen.append((event.event, event.severity)))
        watchdog = HungProcessDetector(asyncio.get_running_loop().time(), ASK, SILENT)
        self.watch = ReplaceableOrNot(self.link, process.pid, self._recorded, watchdog)
        self.watch.reason = reason

    @property
    def events(self) -> list[tuple[str, str]]:
        self._recorded.flush()
        return self._seen

    def answer(self) -> int:
        """Answer what was asked; how much that is."""
        count = 0
        while True:
            try:
                received = wire.receive(self.theirs)
            except BlockingIOError:
                return count
            assert received is not None
            wire.send(self.theirs, {"id": received[0]["id"]})
            count += 1

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)

    def close(self) -> None:
        self.link.close()
        self.theirs.close()


def test_a_keeper_that_answers_is_seldom_pinged(process: subprocess.Popen[bytes]) -> None:
    async def scenario() -> None:
        with closing(WatchedKeeper(process)) as watched:
            asyncio.get_running_loop().add_reader(watched.theirs.fileno(), watched.answer)
            began = time.monotonic()
            await asyncio.sleep(3 * SILENT)
            assert watched.events == []
            assert watched.watch.problem == ""
            assert watched.link.heard <= (time.monotonic() - began) / ASK + 1
            asyncio.get_running_loop().remove_reader(watched.theirs.fileno())

    asyncio.run(scenario())
    assert stat(process.pid).state == "T"


def test_a_stopped_keeper_is_continued_and_may_answer(process: subprocess.Popen[bytes]) -> None:
    async def scenario() -> None:
        with closing(WatchedKeeper(process)) as watched:
            problems: list[str] = []
            with watched.watch.report_problems_to(problems.append):
                await watched.until(lambda: stat(process.pid).state != "T")
                assert problems == [watched.watch.problem]
                assert "does not answer" in problems[0]
                assert watched.answer() == 1  # asked once, because somebody waits
                await watched.until(lambda: not watched.watch.problem)
            assert watched.events == [("keeper silent", "warning"), ("keeper back", "info")]

    asyncio.run(scenario())
    assert process.poll() is None


def test_a_keeper_that_stays_silent_is_killed(process: subprocess.Popen[bytes]) -> None:
    async def scenario() -> None:
        with closing(WatchedKeeper(process)) as watched:
            await watched.until(lambda: process.poll() is not None)
            assert watched.events == [("keeper silent", "warning"), ("keeper silent", "error")]

    asyncio.run(scenario())
    assert process.returncode == -signal.SIGKILL


def test_an_irreplaceable_keeper_is_reported_and_not_killed(process: subprocess.Popen[bytes]) -> None:
    async def scenario() -> None:
        with closing(WatchedKeeper(process, "it is PID 1")) as watched:
            await watched.until(lambda: len(watched.events) == 2)
            assert "cannot be replaced, because it is PID 1" in watched.watch.problem
            await asyncio.sleep(2 * SILENT)
            assert watched.answer() == 1
            await watched.until(lambda: not watched.watch.problem)
            assert [event for event, _ in watched.events] == ["keeper silent", "keeper silent", "keeper back"]

    asyncio.run(scenario())
    assert process.poll() is None


@pytest.mark.parametrize(
    ("pid", "env", "names", "whole", "reason"),
    [
        (1, {}, [], True, "PID 1"),
        (2, {"NOTIFY_SOCKET": "/run/systemd/notify"}, [], True, "main process of a systemd service"),
        (
            2,
            {"NOTIFY_SOCKET": "/run/systemd/notify"},
            [fd_store.LIFELINE],
            True,
            "",
        ),  # `poolctl run` is that
        (2, {}, [], False, "does not know all of its descriptors"),
        (2, {}, [], True, ""),
    ],
)
def test_a_keeper_is_replaced_only_when_its_exit_does_not_end_the_pool(
    pid: int, env: dict[str, str], names: list[str], whole: bool, reason: str
) -> None:
    async def scenario() -> None:
        ours, theirs = wire.pair()
        keeper = KeeperLink(ours)
        for name in names:
            keeper.remember_entry(name, None, [])
        keeper.whole = whole
        obstacle = reason_irreplaceable(keeper, pid, env)
        assert reason in obstacle if reason else not obstacle
        keeper.close()
        theirs.close()

    asyncio.run(scenario())


def test_a_pause_of_the_supervisor_does_not_count_as_silence_of_the_keeper(
    process: subprocess.Popen[bytes],
) -> None:
    async def scenario() -> None:
        with (
            closing(WatchedKeeper(process)) as watched,
            watched.watch.report_problems_to(lambda problem: None),
        ):
            for _ in range(5):
                asyncio.get_running_loop().call_soon(time.sleep, 2 * SILENT)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert watched.events == []

    asyncio.run(scenario())
    assert stat(process.pid).state == "T"


@pytest.mark.parametrize("full", [False, True])
def test_a_new_keeper_that_is_stopped_while_it_is_filled_is_continued(full: bool) -> None:
    ours, theirs = wire.pair()
    with ours, theirs, subprocess.Popen(["sleep", "60"]) as process:
        freeze(process.pid)
        ours.settimeout(0.05)
        # More than a socket takes unread, or nothing at all: then what is missing is the answer.
        entries: dict[str, Any] = {f"note {number}": ("x" * 1000, []) for number in range(1000 * full)}

        def rescued() -> None:
            keeper = identity(process.pid)
            keeper_replacement._fill_keeper(ours, keeper, entries, stop_pool=False)
            keeper_replacement._await(ours, "adopted", keeper)

        rescuer = threading.Thread(target=rescued)
        rescuer.start()
        wait_until(lambda: stat(process.pid).state != "T")
        # As the keeper does when it goes on.
        while (received := wire.receive(theirs, wait=True)) is not None:
            if received[0]["op"] == "whole":
                break
        # And as it does while its own supervisor starts.
        wire.send(theirs, {"event": "ping"})
        answered = wire.receive(theirs, wait=True)
        assert answered is not None
        assert answered[0]["op"] == "pong"
        wire.send(theirs, {"event": "adopted"})
        rescuer.join(60)
        assert not rescuer.is_alive()
        process.kill()


HUNG = """
import os, sys
from poolctl.supervisor.takeover import keeper_replacement
keeper_replacement._LATE_SECONDS = keeper_replacement.SILENT_SECONDS = 1

def replace(frame):
    print(frame.f_code.co_name, flush=True)
    os._exit(0)

def hang():
    print(os.getpid(), flush=True)
    if sys.argv[1] == "blocked":
        os.read(os.pipe()[0], 1)
    while True:
        pass

keeper_replacement.KeeperExitWatchdog(os.getppid(), replace)
hang()
"""


@pytest.mark.parametrize("how", ["busy", "blocked"])
def test_replaces_the_keeper_after_its_parents_end_and_not_before(how: str) -> None:
    # Two commands, so that the shell does not execute the first in its own place.
    shell = ["sh", "-c", '"$@"; exit', "sh", sys.executable, "-c", HUNG, how]
    with subprocess.Popen(shell, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        hung = int(parent.stdout.readline())
        try:
            for _ in range(5):
                os.kill(hung, signal.SIGCONT)
            freeze(hung)
            parent.kill()
            assert parent.stdout.read() == "hang\n"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(hung, signal.SIGKILL)


@pytest.mark.parametrize("terminate", [False, True])
def test_new_keeper_gets_the_control_socket_first_and_then_all_that_the_old_one_held(terminate: bool) -> None:
    worker, gateway = f"{fd_store.WORKER}web.1.0", fd_store.GATEWAY_LINK
    fd = os.open("/dev/null", os.O_RDONLY)
    entries: Any = {
        worker: ({"pid": 7, "start": 8}, [fd]), "listener": ("meta", [fd, fd]),
        gateway: ({"pid": 9, "start": 10}, [fd]),
        fd_store.CONFIGURATION: (None, [fd]), fd_store.WANTED: (None, [fd]), fd_store.CONTROL: (None, [fd]),
    }  # fmt: skip
    ours, theirs = wire.pair()
    with ours, theirs:
        keeper_replacement._fill_keeper(ours, {}, entries, stop_pool=terminate)
        received: list[tuple[dict[str, Any], int]] = []
        while not received or received[-1][0]["op"] != "whole":
            packet = wire.receive(theirs, wait=True)
            assert packet is not None
            message, fds = packet
            received.append((message, len(fds)))
            for descriptor in fds:
                os.close(descriptor)
    os.close(fd)
    put = [(message["name"], message["meta"], count) for message, count in received if message["op"] == "put"]
    assert [name for name, _, _ in put[:3]] == [fd_store.CONTROL, fd_store.WANTED, fd_store.CONFIGURATION]
    assert {name: (meta, count) for name, meta, count in put} == {
        name: (meta, len(fds)) for name, (meta, fds) in entries.items()
    }
    others = [message for message, _ in received if message["op"] != "put"]
    assert others == [
        {"op": "watch", "pid": 7, "start": 8}, {"op": "watch", "pid": 9, "start": 10},
        *([{"op": "terminate"}] if terminate else []), {"op": "whole"},
    ]  # fmt: skip


class Keeper:
    """A new keeper, which a thread answers for: `events` are its messages, after the first."""

    def __init__(self, *events: str, hello: bool = True) -> None:
        self.events = events
        self.hello = hello
        self.argv: list[list[str]] = []
        self.received: list[str] = []

    def start(self, argv: list[str], env: dict[str, str], fds: list[int], companions: Any = ()) -> int:
        self.argv.append(argv)
        (fd,) = fds
        link = wire.socket_from_fd(os.dup(fd))
        thread = threading.Thread(target=self._serve, args=(link,))
        thread.start()
        return 1

    def _serve(self, link: Any) -> None:
        with link:
            if not self.hello:
                return
            wire.send(link, {"event": "hello", "pid": os.getpid()})
            while True:
                try:
                    received = wire.receive(link, wait=True)
                except OSError:
                    return
                if received is None:
                    return
                self.received.append(received[0]["op"])
                for fd in received[1]:
                    os.close(fd)
                if received[0]["op"] == "whole":
                    for event in self.events:
                        wire.send(link, {"event": event})
                    return


def replaced(
    monkeypatch: pytest.MonkeyPatch, directory: Path, *keepers: Keeper, terminate: bool = False
) -> list[float]:
    """Replace a keeper by these, one after the other; returns the pauses before each attempt."""
    coming, pauses = iter(keepers), []
    monkeypatch.setattr(keeper_replacement.time, "sleep", pauses.append)
    monkeypatch.setattr(keeper_replacement, "start_detached", lambda *args: next(coming).start(*args))
    keeper_replacement.hand_over_to_new_keeper(
        str(directory), ["python", "supervisor"], {}, stop_pool=terminate
    )
    return pauses


def test_new_keeper_is_started_with_the_supervisor_and_awaited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keeper = Keeper("started", "adopted")
    assert replaced(monkeypatch, tmp_path / "pool", keeper, terminate=True) == [0.0]
    assert keeper.received == ["terminate", "whole"]
    assert (tmp_path / "pool").stat().st_mode & 0o777 == 0o700
    (argv,) = keeper.argv
    plan = json.loads(argv[-1])
    assert argv[-2] == str(tmp_path / "pool")
    assert plan == {
        "supervisor": ["python", "supervisor"],
        "donor": 3,
        "donor_process": identity(os.getpid()),
    }
    assert (argv[0], argv[1]) == (sys.executable, "-I")


def test_keeper_that_ends_is_followed_by_another_after_growing_pauses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dying = [Keeper(hello=False), Keeper(), Keeper("started")]
    assert replaced(monkeypatch, tmp_path, *dying, Keeper("adopted")) == [0.0, 0.05, 0.1, 0.2]
    dying = [Keeper(hello=False) for _ in range(10)]
    assert replaced(monkeypatch, tmp_path, *dying, Keeper("adopted")) == [
        0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 10.0, 10.0,
    ]  # fmt: skip


def test_keeper_that_refuses_five_times_is_left_to_another_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusing = [Keeper("refused") for _ in range(5)]
    assert len(replaced(monkeypatch, tmp_path, *refusing)) == 5
    assert (
        len(replaced(monkeypatch, tmp_path, *(Keeper("refused") for _ in range(4)), Keeper("adopted"))) == 5
    )


@pytest.mark.parametrize(
    ("pid", "env", "entries", "whole", "reason"),
    [
        (1, {}, {}, True, "it is the first process of a container (PID 1)"),
        (7, {"NOTIFY_SOCKET": "/s"}, {}, True, "it is the main process of a systemd service"),
        (7, {"NOTIFY_SOCKET": "/s"}, {fd_store.LIFELINE: 1}, True, ""),
        (7, {}, {}, False, "the supervisor does not know all of its descriptors yet"),
        (7, {}, {}, True, ""),
    ],
)
def test_keeper_that_cannot_be_replaced_has_a_reason(
    pid: int, env: dict[str, str], entries: dict[str, int], whole: bool, reason: str
) -> None:
    keeper: Any = SimpleNamespace(entries=entries, whole=whole)
    assert keeper_replacement.reason_irreplaceable(keeper, pid, env) == reason


class SilentKeeper:
    """A watch in a loop whose time passes at once; the keeper answers while `answers`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = VirtualLoop()
        self.signals: list[tuple[int, float]] = []
        monkeypatch.setattr(
            keeper_replacement, "kill", lambda _, number: self.signals.append((number, self.loop.time()))
        )
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
        self.watch = KeeperWatch(self.link, 2**22 + 1, self.events)
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

    def close(self) -> None:
        self.link.close()
        self.theirs.close()
        self.loop.close()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[SilentKeeper]:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with closing(SilentKeeper(monkeypatch)) as keeper:
        yield keeper


SILENT_TEXT = f"the keeper (pid {2**22 + 1}) does not answer"
CONTINUED = f"{SILENT_TEXT}: SIGCONT was sent; it will be replaced if that does not help"
KILLED = f"{SILENT_TEXT}: it was killed, but has not exited yet"
BACK = f"the keeper (pid {2**22 + 1}) answers again"


def test_keeper_is_pinged_every_five_seconds_and_not_after_another_message(silent: SilentKeeper) -> None:
    silent.loop.pass_time(16)
    assert silent.pings == [5, 10, 15]
    wire.send(silent.theirs, {"event": "any"})
    silent.loop.pass_time(10)
    assert silent.pings == [5, 10, 15, 25]
    assert (silent.signals, silent.watch.problem, silent.events_so_far()) == ([], "", [])


def test_silent_keeper_is_continued_then_killed_and_killed_again(
    silent: SilentKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    silent.answers = False
    silent.loop.pass_time(5)
    assert (silent.pings, silent.signals) == ([5], [])
    silent.loop.pass_time(9.9)
    ((number, late_at),) = silent.signals
    assert number == signal.SIGCONT
    assert 5 < late_at < 15
    assert silent.watch.problem == CONTINUED
    silent.loop.pass_time(0.2)
    assert silent.watch.problem == KILLED
    assert silent.signals[1:] == [(signal.SIGKILL, 15.0)]
    assert silent.events_so_far() == [
        ("keeper silent", "warning", CONTINUED),
        ("keeper silent", "error", KILLED),
    ]
    silent.loop.pass_time(100)
    assert {number for number, _ in silent.signals[1:]} == {signal.SIGKILL}
    assert len(silent.signals) > 2
    assert len(silent.events_so_far()) == 2
    assert silent.pings == [5], "it answers the first one when it runs"
    assert [line for line in (CONTINUED, KILLED) if line in caplog.text] == [CONTINUED, KILLED]
    wire.send(silent.theirs, {"id": 0})
    silent.loop.pass_time(2)
    assert silent.events_so_far()[2:] == [("keeper back", "info", BACK)]
    assert BACK in caplog.text
    assert silent.watch.problem == ""
    silent.loop.pass_time(40)
    assert [severity for _, severity, _ in silent.events_so_far()[3:]] == ["warning", "error"]


def test_silent_keeper_that_cannot_be_replaced_is_only_continued(
    silent: SilentKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    silent.answers = False
    silent.loop.pass_time(60)
    assert {number for number, _ in silent.signals} == {signal.SIGCONT}
    text = (
        f"{SILENT_TEXT} and cannot be replaced, because it is the main process of a systemd service: exits of "
        "workers are not noticed; restart the service or the container"
    )
    assert silent.watch.problem == text
    assert silent.events_so_far()[1:] == [("keeper silent", "error", text)]


def test_keeper_is_pinged_at_once_for_a_client_who_follows_its_problem(silent: SilentKeeper) -> None:
    followed: list[str] = []
    silent.loop.pass_time(1)
    silent.answers = False
    with silent.watch.report_problems_to(followed.append):
        silent.loop.pass_time()
        assert silent.pings == [1]
        with silent.watch.report_problems_to(followed.append):
            silent.loop.pass_time()
        assert silent.pings == [1], "the answer is due already"
        silent.loop.pass_time(9.9)
        assert followed == [CONTINUED]
        silent.loop.pass_time(0.2)
        assert followed == [CONTINUED, KILLED]
    with silent.watch.report_problems_to(followed.append):
        assert followed == [CONTINUED, KILLED, KILLED]
    followed.clear()
    silent.loop.pass_time(40)
    assert followed == []
    wire.send(silent.theirs, {"id": 0})
    silent.loop.pass_time()
    with silent.watch.report_problems_to(followed.append):
        assert (followed, silent.watch.problem) == ([], "")


def test_lost_keeper_is_not_pinged(silent: SilentKeeper) -> None:
    silent.link.close()
    with silent.watch.report_problems_to(lambda problem: None):
        silent.loop.pass_time(30)
    assert (silent.pings, silent.signals, silent.watch.problem) == ([], [], "")


def test_sixth_signal_after_the_keepers_end_replaces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    parent = 7
    monkeypatch.setattr(os, "getppid", lambda: parent)
    monkeypatch.setattr(keeper_replacement, "continue_when_parent_ends", lambda: done.append("parent"))
    monkeypatch.setattr(keeper_replacement, "continue_periodically", done.append)
    before = signal.getsignal(signal.SIGCONT)
    try:
        keeper_replacement.KeeperExitWatchdog(
            7, lambda frame: done.append(frame.f_code.co_name if frame else "")
        )
        for _ in range(9):
            signal.raise_signal(signal.SIGCONT)
        assert done == ["parent"], "its parent lives"
        parent = 1
        for _ in range(5):
            signal.raise_signal(signal.SIGCONT)
        assert done == ["parent", 2]
        signal.raise_signal(signal.SIGCONT)
        assert done == ["parent", 2, "test_sixth_signal_after_the_keepers_end_replaces_it"]
        keeper_replacement.KeeperExitWatchdog(7, lambda frame: None)
        assert done[3:] == ["parent", 2], "it had ended before"
    finally:
        signal.signal(signal.SIGCONT, before)
