"""The keeper as a process of its own, spoken to by hand."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl.bootstrap import command
from poolctl.keeper import wire
from poolctl.keeper.spawn import start_detached
from tests.deadline import wait_until
from tests.processes import children, descriptors, is_alive, stat


class Keeper:
    """The other end of a keeper's link."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sock, theirs = wire.pair()
        self.sock.settimeout(60)
        self.events: list[wire.Message] = []
        self.number = 0
        with theirs:
            argv = command(sys.executable, "keeper", str(directory), "3", isolated=True)
            start_detached(argv, dict(os.environ), [theirs.fileno()])
        self.hello = self.next()
        self.pid = int(self.hello["pid"])

    def next(self) -> wire.Message:
        received = wire.receive(self.sock)
        assert received is not None, "the keeper is gone"
        self.fds = received[1]
        return received[0]

    def ask(self, op: str, fds: list[int] | None = None, **arguments: Any) -> wire.Message:
        self.number += 1
        wire.send(self.sock, {"op": op, "id": self.number, **arguments}, fds or [])
        while True:
            message = self.next()
            if message.get("id") == self.number:
                return message
            self.events.append(message)

    def event(self) -> wire.Message:
        return self.events.pop(0) if self.events else self.next()

    def spawn(self, *argv: str, fds: list[int] | None = None) -> int:
        output = str(self.directory / "output")
        reply = self.ask("spawn", fds, argv=list(argv), output=output, session=True)
        assert "error" not in reply, reply
        return int(reply["pid"])


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper(tmp_path)
    yield keeper
    keeper.sock.close()
    wait_until(lambda: not is_alive(keeper.pid))


def test_worker_names_itself_and_leads_a_session_of_its_own(keeper: Keeper) -> None:
    assert keeper.hello["event"] == "hello"
    assert stat(keeper.pid).parent != os.getpid()
    assert stat(keeper.pid).session != stat(os.getpid()).session
    assert {descriptors(keeper.pid)[number] for number in (0, 1, 2)} == {"/dev/null"}


def test_descriptors_are_kept_handed_out_and_closed(keeper: Keeper) -> None:
    read, write = os.pipe()
    keeper.ask("put", [write], name="pipe", meta={"a": [1]})
    os.close(write)
    reply = keeper.ask("get", name="pipe")
    assert reply["meta"] == {"a": [1]}
    (again,) = keeper.fds
    os.write(again, b"x")
    os.close(again)
    assert os.read(read, 1) == b"x"
    assert ["pipe", {"a": [1]}] in keeper.ask("list")["entries"]
    keeper.ask("drop", name="pipe")
    assert os.read(read, 1) == b"", "nobody holds the other end any more"
    os.close(read)
    keeper.ask("get", name="pipe")
    assert keeper.fds == []


def test_a_program_gets_its_descriptors_and_nothing_of_the_keepers(keeper: Keeper, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        keeper.ask("put", [listener.fileno()], name="listener:x")
        read, write = os.pipe()
        pid = keeper.spawn("/bin/sleep", "30", fds=[write, read, write])
        for fd in (read, write):
            os.close(fd)
        # The keeper goes on before the new program has closed what is closed by its execution (execve(2)).
        wait_until(lambda: sorted(descriptors(pid)) == [*range(6)], what=lambda: str(descriptors(pid)))
        held = descriptors(pid)
        assert held[3] == held[4] == held[5]
        assert held[3].startswith("pipe:")
        assert held[1] == held[2] == str(tmp_path / "output")
        found = stat(pid)
        assert (found.parent, found.session) == (keeper.pid, pid)


def test_exits_are_sent_in_order_and_again_until_acknowledged(keeper: Keeper) -> None:
    first = keeper.spawn("/bin/sh", "-c", "exit 3")
    event = keeper.event()
    assert (event["event"], event["pid"], event["status"], event["signal"]) == ("exit", first, 3, None)
    second = keeper.spawn("/bin/sh", "-c", "kill -9 $$")
    event = keeper.event()
    assert (event["pid"], event["status"], event["signal"]) == (second, None, 9)
    assert event["sequence"] == 2


def test_orphans_come_to_the_keeper_and_are_reaped(keeper: Keeper, tmp_path: Path) -> None:
    # The orphan ends after its parent, which ends once the orphan has a session of its own.
    orphan = f"touch {tmp_path}/there; while kill -0 $$ 2>/dev/null; do sleep 0.02; done; exit 5"
    waits = f"while [ ! -e {tmp_path}/there ]; do sleep 0.02; done"
    pid = keeper.spawn("/bin/sh", "-c", f'setsid sh -c "{orphan}" & {waits}; exit 0')
    ends = {}
    for _ in range(2):
        event = keeper.event()
        ends[event["pid"]] = event["status"]
    assert ends.pop(pid) == 0
    assert list(ends.values()) == [5]


def test_signals_reach_its_children_only(keeper: Keeper) -> None:
    pid = keeper.spawn("/bin/sleep", "30")
    assert keeper.ask("signal", pid=pid, signal=signal.SIGTERM)["sent"] is True
    assert keeper.event()["signal"] == signal.SIGTERM
    assert keeper.ask("signal", pid=pid, signal=signal.SIGTERM)["sent"] is False
    assert keeper.ask("signal", pid=os.getpid(), signal=0)["sent"] is False


HARMLESS = [{"op": "heard", "sequence": "x"}, {"op": "list", "after": 7}]  # there is nothing to compare with


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "nonsense"}, {"op": "put"}, {"op": "drop"}, {"op": "list", "after": 7}, {"op": "signal", "pid": "x"},
        {"op": "spawn", "argv": ["/no/such/program"], "output": "/dev/null", "session": True},
        {"op": "spawn", "argv": [], "output": "/dev/null", "session": True},
        {"op": "spawn", "argv": ["/bin/true"], "output": "/no/such/directory/file", "session": True},
        {"op": "heard"}, {"op": "heard", "sequence": "x"}, {"op": ["put"]}, {},
    ],
)  # fmt: skip
def test_requests_that_make_no_sense_are_refused_and_leak_nothing(keeper: Keeper, request_: Any) -> None:
    keeper.ask("list")
    before = len(descriptors(keeper.pid))
    keeper.number += 1
    wire.send(keeper.sock, {"id": keeper.number, **request_}, [0, 1])
    reply = keeper.next()
    assert reply["id"] == keeper.number
    assert reply.get("error") or request_ in HARMLESS
    assert keeper.ask("list")["entries"] == []
    assert len(descriptors(keeper.pid)) == before


def test_garbage_does_not_end_it(keeper: Keeper) -> None:
    for garbage in (b"x", b"[]", b"[" * 60_000, b"\xff"):
        keeper.sock.send(garbage)
    assert "entries" in keeper.ask("list")


def test_long_names_and_values_are_listed_in_as_many_pages_as_it_takes(keeper: Keeper) -> None:
    for number in range(250):
        keeper.ask("put", name=f"output:{number:03}", meta={"path": "é" * 700})
    seen: list[str] = []
    after = ""
    while entries := keeper.ask("list", after=after)["entries"]:
        seen += [name for name, _ in entries]
        after = entries[-1][0]
    assert seen == [f"output:{number:03}" for number in range(250)]


def test_a_client_that_does_not_listen_holds_nothing_up(keeper: Keeper) -> None:
    for _ in range(400):
        wire.send(keeper.sock, {"op": "spawn", "argv": ["/bin/true"], "output": "/dev/null", "session": True})
    # Neither the reaping nor the requests wait for us to read.
    wait_until(lambda: not children(keeper.pid))
    ends = 0
    while ends < 400:
        message = keeper.next()
        ends += message.get("event") == "exit"
    assert "entries" in keeper.ask("list")


def test_keeper_ends_with_its_client_and_kills_its_children(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    pids = [keeper.spawn("/bin/sleep", "30") for _ in range(3)]
    keeper.sock.close()
    wait_until(lambda: not is_alive(keeper.pid) and not any(is_alive(pid) for pid in pids))


def test_a_supervisor_that_cannot_be_started_ends_a_keeper_that_holds_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as control:
        control.bind("")
        plan = {
            "supervisor": ["/no/such/program"], "control": 3, "lifeline": -1, "inherited": [], "begun": [],
        }  # fmt: skip
        argv = command(sys.executable, "keeper", str(tmp_path / "gone"), json.dumps(plan), isolated=True)
        (tmp_path / "gone").mkdir()
        start_detached(argv, dict(os.environ), [control.fileno()])
    mark = os.fsencode(tmp_path / "gone")

    def keepers() -> list[str]:
        lines = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    lines[entry.name] = Path(entry.path, "cmdline").read_bytes()
        return [pid for pid, line in lines.items() if mark in line]

    wait_until(keepers)
    wait_until(lambda: not keepers())


def test_an_idle_keeper_does_not_wake_up(keeper: Keeper) -> None:
    keeper.ask("list")
    status = Path(f"/proc/{keeper.pid}/status")

    def switches() -> int:
        return sum(
            int(line.split()[1]) for line in status.read_text().splitlines() if "ctxt_switches" in line
        )

    wait_until(lambda: stat(keeper.pid).state == "S")
    before = switches()
    with contextlib.suppress(TimeoutError):
        select.select([keeper.sock], [], [], 0.4)
    assert switches() == before
