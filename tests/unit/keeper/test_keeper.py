"""The keeper's store, its clients, and its end, without and with a keeper's process."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.strategies import integers, sampled_from

from poolctl import __version__
from poolctl.bootstrap import command
from poolctl.clock import PING_SECONDS, SILENT_SECONDS
from poolctl.keeper import pool_files, wire
from poolctl.keeper.channels import Channel, DonorSupervisor
from poolctl.keeper.fd_store import CALM
from poolctl.keeper.reap import Reaper
from poolctl.keeper.shutdown import ALONE_SECONDS, ANSWER_SECONDS, ENDING, STOP_SECONDS, Shutdown
from poolctl.keeper.store import Store, fill_and_find_supervisor
from poolctl.keeper.supervisor_process import SupervisorProcess
from poolctl.platform import process_start
from tests.deadline import wait_until
from tests.descriptors import free_descriptors, no_descriptor_left
from tests.examples import examples
from tests.processes import descriptors, freeze, is_alive, stat

NAMES = sampled_from(["control", "wanted", "listener:a", "listener:b", "worker:é.1.0"])


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class Stored(RuleBasedStateMachine):
    """The store against a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.model: dict[str, tuple[int, list[int]]] = {}
        self.number = 0

    @rule(name=NAMES, count=integers(0, 3))
    def put(self, name: str, count: int) -> None:
        self.number += 1
        fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
        replaced = self.model.get(name, (0, []))[1]
        self.store.put(name, self.number, fds)
        self.model[name] = (self.number, fds)
        assert not any(is_open(fd) for fd in replaced if fd not in fds)

    @rule(name=NAMES)
    def drop(self, name: str) -> None:
        self.store.drop(name)
        _, fds = self.model.pop(name, (0, []))
        assert not any(is_open(fd) for fd in fds)

    @rule(name=NAMES)
    def note(self, name: str) -> None:
        self.number += 1
        self.store.replace_meta(name, self.number)
        if name in self.model:
            self.model[name] = (self.number, self.model[name][1])

    @rule(name=NAMES)
    def get(self, name: str) -> None:
        assert self.store.get(name) == self.model.get(name)

    @invariant()
    def everything_kept_is_open(self) -> None:
        assert [name for name, _ in self.store.page("")] == sorted(self.model)
        assert self.store.holds_work == any(":" in name for name in self.model)
        assert all(is_open(fd) for _, fds in self.model.values() for fd in fds)

    def teardown(self) -> None:
        for name in list(self.model):
            self.store.drop(name)


StoredTest = Stored.TestCase
StoredTest.settings = examples(30, stateful_step_count=20)


@pytest.fixture
def stopped() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        freeze(process.pid)
        yield process
        process.kill()


def watch(donor: DonorSupervisor, until: float) -> None:
    """Look whenever it is due, as a keeper does that runs all the time."""
    while donor.due <= until:
        donor.ping_or_kill(donor.due)


def test_silent_donor_is_continued_and_then_killed(
    stopped: subprocess.Popen[bytes],
) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        donor = DonorSupervisor(ours, {"pid": stopped.pid, "start": process_start(stopped.pid)}, 0.0)
        donor.ping_or_kill(0.0, early=True)
        assert wire.receive(theirs) == ({"event": "ping"}, [])
        watch(donor, SILENT_SECONDS / 10)
        assert stat(stopped.pid).state == "T"
        watch(donor, SILENT_SECONDS - 0.1)
        wait_until(lambda: stat(stopped.pid).state != "T")
        assert stopped.poll() is None
        watch(donor, SILENT_SECONDS)
        assert stopped.wait(60) == -signal.SIGKILL


def test_donor_that_answers_is_pinged_again_and_gets_no_signal(stopped: subprocess.Popen[bytes]) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        donor = DonorSupervisor(ours, {"pid": stopped.pid, "start": process_start(stopped.pid)}, 0.0)
        for asked in range(10):
            watch(donor, PING_SECONDS * (asked + 1))
            assert wire.receive(theirs) == ({"event": "ping"}, [])
            donor.received(PING_SECONDS * (asked + 1))
        assert stat(stopped.pid).state == "T"


def test_pause_of_the_keeper_does_not_count_as_silence_of_the_donor(stopped: subprocess.Popen[bytes]) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        donor = DonorSupervisor(ours, {"pid": stopped.pid, "start": process_start(stopped.pid)}, 0.0)
        donor.ping_or_kill(0.0, early=True)
        donor.ping_or_kill(1000.0)
        assert stat(stopped.pid).state == "T"


@pytest.mark.parametrize("start", [None, 1])
def test_process_that_is_not_known_to_be_the_donor_gets_no_signal(
    stopped: subprocess.Popen[bytes], start: int | None
) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        donor = DonorSupervisor(ours, {"pid": stopped.pid, "start": start}, 0.0)
        watch(donor, 3 * SILENT_SECONDS)
        donor.ping_or_kill(3 * SILENT_SECONDS)
        assert stat(stopped.pid).state == "T"


def test_restart_pauses_grow_to_half_a_minute_and_start_over_after_a_steady_run(tmp_path: Path) -> None:
    process = SupervisorProcess(["/bin/true"], str(tmp_path), 0.0)
    pauses = []
    for _ in range(9):
        process.schedule_restart(0.0)
        assert process.due is not None
        pauses.append(process.due)
    assert pauses == [0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 30.0]
    process.schedule_restart(100.0)
    assert process.due == 100.0


def test_supervisor_that_managed_the_pool_is_replaced_at_once_until_it_is_to_be_calm(tmp_path: Path) -> None:
    process = SupervisorProcess(["/bin/true"], str(tmp_path), 0.0)
    pauses = []
    for _ in range(6):
        process.record_start(1, 0.0)
        process.record_adoption()
        process.schedule_restart(0.0)
        pauses.append(process.due)
    assert pauses == [0.0, 0.0, 0.0, 0.0, 2.0, 5.0]


def test_supervisor_that_exits_before_it_manages_the_pool_is_not_replaced_at_once(tmp_path: Path) -> None:
    process = SupervisorProcess(["/bin/true"], str(tmp_path), 0.0)
    process.record_adoption()
    process.schedule_restart(0.0)
    process.record_start(1, 0.0)
    process.schedule_restart(0.0)
    assert process.due == 0.1


def test_fifth_crash_within_a_minute_makes_the_next_supervisor_calm(tmp_path: Path) -> None:
    process = SupervisorProcess(["/bin/true"], str(tmp_path), 0.0)
    for now in (0.0, 10.0, 20.0, 30.0):
        process.schedule_restart(now)
    assert not process.calm
    process.schedule_restart(61.0)  # the first of them is forgotten by now
    assert not process.calm
    process.schedule_restart(62.0)
    assert process.calm
    process.schedule_restart(300.0)
    assert not process.calm


def test_calm_supervisor_is_started_with_the_calm_flag(tmp_path: Path) -> None:
    show = f"import sys; open({str(tmp_path / 'said')!r}, 'w').write(' '.join(sys.argv[1:]))"
    process = SupervisorProcess([sys.executable, "-c", show, "file"], str(tmp_path), 0.0)
    for now in range(5):
        process.schedule_restart(float(now))
    link = process.start(5.0)
    assert link is not None
    link.close()
    os.waitpid(process.pid, 0)
    assert (tmp_path / "said").read_text() == f"file {CALM}"


def test_supervisor_that_cannot_be_executed_is_tried_again_and_named_in_the_log(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with no_descriptor_left():
        process = SupervisorProcess(["/nowhere/supervisor"], str(gone), 0.0)
        assert process.start(5.0) is None
        assert process.start(6.0) is None
    assert (process.pid, process.due, process.given_up) == (0, 6.1, False)
    assert (gone / "supervisor.log").read_text().count("/nowhere/supervisor") == 2
    assert gone.stat().st_mode & 0o777 == 0o700, "its directory was made again for its owner alone"


def test_supervisor_for_which_no_descriptor_is_free_is_tried_again(tmp_path: Path) -> None:
    process = SupervisorProcess(["/bin/true"], str(tmp_path), 0.0)
    with free_descriptors(0):
        assert process.start(5.0) is None
        assert process.start(6.0) is None
    assert (process.pid, process.due) == (0, 6.1)


NOBODY = 2**22 + 1  # no pid is as high


def shutdown(directory: Path) -> Shutdown:
    store = Store()
    store.put("worker:web.1.0", {"pid": NOBODY}, [])
    return Shutdown(store, Reaper(), str(directory))


def test_supervisor_that_does_not_confirm_a_shutdown_is_not_waited_for(tmp_path: Path) -> None:
    end = shutdown(tmp_path)
    assert not end.tick(1e9, 0)
    end.start_confirmation_deadline(100.0)
    assert not end.tick(100.0 + ANSWER_SECONDS - 1, 0)
    assert not end.alone
    assert not end.tick(100.0 + ANSWER_SECONDS, 0)
    assert end.alone
    assert end.due == 100.0 + ANSWER_SECONDS + ALONE_SECONDS
    assert end.tick(100.0 + ANSWER_SECONDS, 0), "nobody is there"


def test_supervisor_that_confirms_a_shutdown_gets_the_time_of_its_servers(tmp_path: Path) -> None:
    for said, limit in ((0.0, STOP_SECONDS), (1.0, STOP_SECONDS), (90.0, 90.0)):
        end = shutdown(tmp_path)
        end.start_confirmation_deadline(100.0)
        end.set_stop_deadline(said)
        assert not end.tick(100.0 + ANSWER_SECONDS + limit - 1, 0)
        assert not end.alone
        end.set_stop_deadline(said)  # a successor of the first, which has died at it
        end.tick(100.0 + ANSWER_SECONDS + limit, 0)
        assert end.alone


def test_keeper_that_stops_the_pool_alone_asks_each_worker_with_its_own_signal(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as worker, subprocess.Popen(["sleep", "60"]) as supervisor:
        try:
            store = Store()
            started = process_start(worker.pid)
            store.put(
                "worker:web.1.0", {"pid": worker.pid, "start": started, "stop_signal": signal.SIGQUIT}, []
            )
            end = Shutdown(store, Reaper(), str(tmp_path))
            end.start_confirmation_deadline(100.0)
            assert not end.tick(100.0 + ANSWER_SECONDS, supervisor.pid)
            assert worker.wait(60) == -signal.SIGQUIT
            assert supervisor.wait(60) == -signal.SIGKILL
        finally:
            worker.kill()
            supervisor.kill()


@pytest.mark.parametrize("name", ["worker:web.1.0", "group:7"])
def test_keeper_that_stops_the_pool_alone_asks_the_whole_process_group_of_a_program(
    tmp_path: Path, name: str
) -> None:
    script = ["sh", "-c", "sleep 60 & echo $!; wait"]
    with subprocess.Popen(script, stdout=subprocess.PIPE, start_new_session=True) as program:
        assert program.stdout is not None
        child = int(program.stdout.readline())
        store = Store()
        store.put(name, {"pid": program.pid, "keeps_group": True}, [])
        end = Shutdown(store, Reaper(), str(tmp_path))
        end.start_confirmation_deadline(100.0)
        assert not end.tick(100.0 + ANSWER_SECONDS, 0)
        assert program.wait(60) == -signal.SIGTERM
        wait_until(lambda: not is_alive(child))


def test_keeper_that_stops_the_pool_alone_waits_for_its_workers_but_not_for_ever(tmp_path: Path) -> None:
    for ends in (True, False):
        with subprocess.Popen(["sleep", "60"]) as worker:
            store = Store()
            store.put("worker:web.1.0", {"pid": worker.pid, "stop_signal": signal.SIGCONT}, [])
            end = Shutdown(store, Reaper(), str(tmp_path))
            end.start_confirmation_deadline(100.0)
            assert not end.tick(100.0 + ANSWER_SECONDS, 0)
            assert not end.tick(100.0 + ANSWER_SECONDS + ALONE_SECONDS - 1, 0)
            if ends:
                worker.kill()
                worker.wait(60)
                assert end.tick(100.0 + ANSWER_SECONDS + 1, 0)
            else:
                assert end.tick(100.0 + ANSWER_SECONDS + ALONE_SECONDS, 0)
                worker.kill()


def test_shutdown_of_a_pool_without_workers_needs_no_second_limit(tmp_path: Path) -> None:
    end = Shutdown(Store(), Reaper(), str(tmp_path))
    end.start_confirmation_deadline(100.0)
    end.start_confirmation_deadline(200.0)
    assert end.due == 100.0 + ANSWER_SECONDS
    assert end.tick(100.0 + ANSWER_SECONDS, 0)
    assert not end.alone


def test_confirmation_of_a_shutdown_that_nobody_requested_is_ignored(tmp_path: Path) -> None:
    end = shutdown(tmp_path)
    end.set_stop_deadline(90.0)
    assert not end.begun
    assert end.due is None
    end.alone = True
    end.start_confirmation_deadline(100.0)
    end.set_stop_deadline(90.0)
    assert end.due == 100.0 + ANSWER_SECONDS, "too late"


@pytest.mark.parametrize(
    ("begun", "last", "kept"), [(False, False, True), (True, False, False), (True, True, True)]
)
def test_desired_state_is_removed_with_a_pool_that_was_ended(
    tmp_path: Path, begun: bool, last: bool, kept: bool
) -> None:
    end = shutdown(tmp_path)
    (tmp_path / pool_files.DESIRED).write_text("{}")
    if begun:
        end.start_confirmation_deadline(100.0)
    end.last = last
    end.kill_and_close_store()
    assert (tmp_path / pool_files.DESIRED).exists() is kept


SIGNALS = """
import os, select, signal, sys
from poolctl.keeper.shutdown import Signals
signals = Signals()
seen = []
for number in (signal.SIGCHLD, *map(int, sys.argv[1:])):
    os.kill(os.getpid(), number)
    assert select.select([signals.fileno()], [], [], 30)[0]
    seen.append([*signals.read()])
print(seen)
"""


def test_signals_are_read_with_their_numbers() -> None:
    numbers = [str(int(number)) for number in ENDING]
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS, *numbers], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == str([[int(each)] for each in (signal.SIGCHLD, *ENDING)]), done.stderr


def planned(count: int) -> list[int]:
    """So many descriptors in a row, as a keeper gets them, which a started program would inherit."""
    first = 200
    null = os.open(os.devnull, os.O_RDONLY)
    for fd in range(first, first + count):
        os.dup2(null, fd, inheritable=True)
    os.close(null)
    return list(range(first, first + count))


def test_store_holds_what_the_command_opened_and_started_before_the_keeper_ran() -> None:
    store = Store()
    control, lifeline, lock, web, api, one, other, zygote, logger, supervisor = planned(10)
    stored = "poolctl-" + "0123456789abcdef" * 2
    inherited = ["web", "poolctl-shop.socket", stored, stored]
    plan = {
        "control": control, "lifeline": lifeline, "lock": lock, "inherited": inherited, "without": ["SECRET"],
        "begun": ["zygote /bin/python", "logger", "supervisor"], "pids": [os.getpid(), os.getppid(), 17],
    }  # fmt: skip
    try:
        assert fill_and_find_supervisor(store, plan) == (17, supervisor)
        of_zygote = {
            "without": ["SECRET"], "pid": os.getpid(), "start": process_start(os.getpid()), "mark": __version__,
        }  # fmt: skip
        assert store.rows() == [
            ("control", None, [control]),
            ("lifeline", None, [lifeline]),
            ("lock", None, [lock]),
            ("inherited", ["web", "poolctl-shop.socket"], [web, api]),
            (stored, None, [one, other]),
            ("zygote /bin/python", of_zygote, [zygote]),
            ("logger", {**of_zygote, "pid": os.getppid(), "start": process_start(os.getppid())}, [logger]),
        ]
        assert not any(os.get_inheritable(fd) for _, _, fds in store.rows() for fd in fds)
    finally:
        store.clear()
        os.close(supervisor)


def test_link_of_a_helper_that_could_not_be_started_is_closed() -> None:
    store = Store()
    control, link = planned(2)
    try:
        assert (
            fill_and_find_supervisor(
                store, {"control": control, "inherited": [], "begun": ["logger"], "pids": [0]}
            )
            is None
        )
        assert store.rows() == [("control", None, [control])]
        assert not is_open(link)
    finally:
        store.clear()


def received(sock: socket.socket) -> list[tuple[wire.Message, int]]:
    """The messages that have arrived, each with the number of its descriptors."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while (one := wire.receive(sock)) is not None:
            found.append((one[0], len(one[1])))
            for fd in one[1]:
                os.close(fd)
    return found


def test_messages_that_find_no_room_are_sent_later_with_their_descriptors() -> None:
    with no_descriptor_left():
        ours, theirs = wire.pair()
        read, write = os.pipe()
        channel = Channel(ours)
        count = 0
        while not channel.blocked:
            count += 1
            channel.send({"n": count})
        channel.send({"n": count + 1}, [write])
        os.close(write)
        channel.flush()
        assert channel.blocked
        found = received(theirs)
        assert [message["n"] for message, _ in found] == list(range(1, count))
        channel.flush()
        assert not channel.blocked
        assert received(theirs) == [({"n": count}, 0), ({"n": count + 1}, 1)]
        assert os.read(read, 1) == b"", "no other copy is left"
        os.close(read)
        channel.close()
        theirs.close()


def test_reply_that_cannot_be_sent_is_an_error_with_its_number() -> None:
    ours, theirs = wire.pair()
    with theirs:
        channel = Channel(ours)
        channel.send({"id": 3, "text": "x" * wire.MAX_MESSAGE_BYTES}, [theirs.fileno()])
        channel.send({"id": 4}, [2**20])
        (large, closed) = received(theirs)
        assert (large[0]["id"], "is too large" in large[0]["error"], large[1]) == (3, True, 0)
        assert closed == ({"id": 4, "error": "[Errno 9] Bad file descriptor"}, 0)
        channel.close()


@pytest.mark.parametrize("how", ["its client has exited", "it is closed"])
def test_messages_of_a_channel_that_ends_are_dropped_with_their_descriptors(how: str) -> None:
    with no_descriptor_left():
        ours, theirs = wire.pair()
        channel = Channel(ours)
        while not channel.blocked:
            channel.send({"n": 1}, [0])
        theirs.close()
        if how == "it is closed":
            channel.close()
        else:
            channel.flush()
        assert not channel.blocked
        ours.close()


# A keeper's process, asked over its link.


class Asked:
    """The client's end of a link to a keeper's process."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.sock = sock
        self.process = process
        self.events: list[wire.Message] = []
        self.event("hello")

    def receive(self) -> tuple[wire.Message, list[int]]:
        self.sock.settimeout(60)
        received = wire.receive(self.sock, wait=True)
        assert received is not None
        return received

    def ask(self, op: str, fds: Sequence[int] = (), **values: object) -> tuple[wire.Message, list[int]]:
        """The reply to a request, and its descriptors; events that come before it are kept."""
        wire.send(self.sock, {"op": op, "id": 7, **values}, list(fds))
        while True:
            message, found = self.receive()
            if "event" not in message:
                assert message["id"] == 7
                return message, found
            self.events.append(message)

    def event(self, kind: str) -> wire.Message:
        """The next event of this kind."""
        while True:
            for message in self.events:
                if message["event"] == kind:
                    self.events.remove(message)
                    return message
            self.events.append(self.receive()[0])

    def spawn(self, *argv: str, fds: Sequence[int] = (), **values: object) -> int:
        given = {"output": os.devnull, **values}
        reply, _ = self.ask("spawn", fds, argv=argv, session=True, **given)
        return int(reply["pid"])


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Asked]:
    """A keeper without a supervisor of its own, as an embedded pool has one."""
    ours, theirs = wire.pair()
    with theirs:
        argv = command(sys.executable, "keeper", str(tmp_path), str(theirs.fileno()))
        process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], start_new_session=True)
    yield Asked(ours, process)
    ours.close()
    process.wait(60)


def test_request_that_fails_is_answered_with_the_reason_and_its_descriptors_are_closed(keeper: Asked) -> None:
    read, write = os.pipe()
    spawn = {"argv": ["/nowhere/x"], "output": os.devnull, "session": True}
    for op, values, named in (
        ("nonsense", {}, "unknown operation 'nonsense'"),
        ("spawn", spawn, "No such file"),
        ("get", {}, "name"),
    ):
        reply, _ = keeper.ask(op, [write], **values)
        assert named in reply["error"]
        assert reply.get("errno") == (2 if op == "spawn" else None)
    os.close(write)
    with open(read, "rb") as rest:
        assert rest.read() == b""


def test_request_whose_descriptors_find_no_room_is_answered_with_its_number(keeper: Asked) -> None:
    keeper.ask("ping")  # it has opened what it needs
    used = descriptors(keeper.process.pid)
    lowest_free = min(set(range(len(used) + 1)) - used.keys())
    before = resource.prlimit(keeper.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(keeper.process.pid, resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    reply, _ = keeper.ask("spawn", [0], argv=["/bin/true"], output=os.devnull, session=True)
    assert reply["error"] == "a message with more descriptors than are expected"
    resource.prlimit(keeper.process.pid, resource.RLIMIT_NOFILE, before)
    assert keeper.spawn("/bin/true", fds=[0])


def test_keeper_that_fails_has_its_traceback_in_the_log(tmp_path: Path) -> None:
    argv = command(sys.executable, "keeper", str(tmp_path), '{"supervisor": []}')
    assert subprocess.run(argv, stderr=subprocess.DEVNULL).returncode == 1
    assert "KeyError: 'control'" in (tmp_path / "supervisor.log").read_text()


def test_program_without_an_output_file_prints_to_its_last_descriptor(keeper: Asked) -> None:
    read, write = os.pipe()
    keeper.spawn("/bin/sh", "-c", "echo on 1; echo on 2 >&2; echo on 3 >&3", fds=[1, write], output=None)
    os.close(write)
    with open(read, "rb") as printed:
        assert printed.read() == b"on 1\non 2\n"


def test_process_of_another_parent_is_watched_until_it_exits(keeper: Asked) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        start = process_start(process.pid)
        assert keeper.ask("watch", pid=process.pid, start=start)[0]["report"] is None
        process.kill()
        process.wait()
        report = keeper.event("exit")
        assert (report["pid"], report["status"], report["signal"]) == (process.pid, None, None)
    assert keeper.ask("watch", pid=process.pid, start=start)[0]["report"] is None, "reported already"
    keeper.ask("heard", sequence=report["sequence"])
    reply, _ = keeper.ask("watch", pid=process.pid, start=start)
    assert reply["report"]["pid"] == process.pid
    assert keeper.event("exit") == reply["report"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, "terminate"])
def test_client_is_asked_to_stop_the_pool_and_the_keeper_ends_when_it_says_so(
    keeper: Asked, how: int | str
) -> None:
    keeper.ask("ping")  # from now on it handles signals
    if isinstance(how, str):
        keeper.ask(how)
    else:
        keeper.process.send_signal(how)
    assert keeper.event("terminate")
    assert keeper.process.poll() is None
    keeper.ask("terminating", seconds=60.0)
    wire.send(keeper.sock, {"op": "end"})
    assert keeper.process.wait(60) == 0


SUPERVISOR = """
import json, os, sys
from poolctl.keeper import wire
link, log = wire.socket_from_fd(3), sys.argv[1]
def say(word):
    with open(log, "a") as file:
        print(word, file=file)
say("started" + " calm" * (len(sys.argv) > 2))
while True:
    message = wire.receive(link, wait=True)
    if message is None:
        sys.exit(0)
    say(message[0]["event"])
    if message[0]["event"] == "hello":
        wire.send(link, {"op": "adopted"})
    elif message[0]["event"] == "terminate":
        wire.send(link, {"op": "terminating"})
        wire.send(link, {"op": "last"})
        sys.exit(0)
    elif message[0]["event"] == "ping":
        wire.send(link, {"op": "pong"})
"""


class Supervised:
    """A keeper's process that starts a supervisor, which writes what it hears into a file."""

    def __init__(self, directory: Path, script: str, **held: int) -> None:
        self.log = directory / "heard"
        self.log.touch()
        supervisor = [sys.executable, "-c", script, str(self.log)]
        with open(os.devnull) as control:
            held["control"] = control.fileno()
            plan = {"supervisor": supervisor, "inherited": [], "begun": [], **held}
            argv = command(sys.executable, "keeper", str(directory), json.dumps(plan))
            self.process = subprocess.Popen(argv, pass_fds=held.values(), start_new_session=True)

    def heard(self) -> list[str]:
        return self.log.read_text().split("\n")[:-1]

    def supervisor(self) -> int:
        """The pid of the supervisor, once it runs."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return wait_until(lambda: [int(each) for each in path.read_text().split()])[0]


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    made: list[Supervised] = []

    def start(script: str = SUPERVISOR, **held: int) -> Supervised:
        made.append(Supervised(tmp_path, script, **held))
        return made[-1]

    yield start
    for each in made:
        each.process.kill()
        each.process.wait(60)


def test_last_message_of_a_supervisor_counts_although_its_exit_is_noticed_first(
    supervised: Callable[..., Supervised],
) -> None:
    pool = supervised(
        """
import os, signal, sys
from poolctl.keeper import wire
from tests.processes import stat
link = wire.socket_from_fd(3)
wire.receive(link, wait=True)
wire.send(link, {"op": "adopted"})
os.kill(os.getppid(), signal.SIGSTOP)
while stat(os.getppid()).state != "T":
    pass
wire.send(link, {"op": "last"})
with open(sys.argv[1], "a") as file:
    print("last", file=file)
"""
    )
    wait_until(pool.heard)
    supervisor = pool.supervisor()
    wait_until(lambda: stat(supervisor).state == "Z")
    pool.process.send_signal(signal.SIGCONT)
    assert pool.process.wait(60) == 0
    assert pool.heard() == ["last"]


UPGRADED = """
import os, sys
from poolctl.keeper import wire
link, (log, *words) = wire.socket_from_fd(3), sys.argv[1:]
def say(*words):
    with open(log, "a") as file:
        print(*words, file=file)
def event(kind):
    while True:
        message, fds = wire.receive(link, wait=True)
        if message.get("event", message.get("id")) == kind:
            return message
hello = event("hello")
say(*words, "hello", hello["pid"], hello["open_files"])
if not words:
    wire.send(link, {"op": "put", "name": "listener:web", "meta": 1}, [0])
    wire.send(link, {"op": "put", "name": "logger", "meta": {"mark": "1"}}, [0])
    wire.send(link, {"op": "put", "name": "zygote /bin/python"}, [0])
    program = [sys.executable, "-c", open(log + ".script").read(), log, "next"]
    wire.send(link, {"op": "upgrade", "argv": NEXT, "supervisor": program})
    sys.exit(7)
say("exit", event("exit")["sequence"])
wire.send(link, {"op": "adopted"})
keeper = f"/proc/{os.getppid()}/cmdline"
while EXECUTABLE and '"restored"' not in open(keeper).read():
    pass
wire.send(link, {"op": "list", "id": 1})
say("entries", *map(tuple, event(1)["entries"]))
wire.send(link, {"op": "end"})
"""


@pytest.mark.parametrize("executable", [True, False])
def test_keeper_executes_its_next_version_once_that_versions_supervisor_has_adopted(
    supervised: Callable[..., Supervised], tmp_path: Path, executable: bool
) -> None:
    following = command(sys.executable, "keeper", str(tmp_path)) if executable else ["/nowhere/python"]
    script = UPGRADED.replace("NEXT", repr(following)).replace("EXECUTABLE", repr(executable))
    (tmp_path / "heard.script").write_text(script)
    pool = supervised(script)
    assert pool.process.wait(60) == 0
    first, second, *rest = pool.heard()
    assert first.startswith(f"hello {pool.process.pid} [")
    assert second == f"next {first}"
    # Zygotes and marks are gone; the same supervisor goes on.
    assert rest == [
        "exit 1", "entries ('control', None) ('listener:web', 1) ('logger', {'mark': ''})",
    ]  # fmt: skip


@contextlib.contextmanager
def given_by_donor(directory: Path, script: str = SUPERVISOR) -> Iterator[Asked]:
    """A keeper that gets everything from this process, whose own keeper has died."""
    ours, theirs = wire.pair()
    log = directory / "heard"
    log.touch()
    with ours, theirs:
        # With another start: this process answers no pings, and must not be killed for that.
        me = {"pid": os.getpid(), "start": 1}
        supervisor = [sys.executable, "-c", script, str(log)]
        plan = {"supervisor": supervisor, "donor": theirs.fileno(), "donor_process": me}
        argv = command(sys.executable, "keeper", str(directory), json.dumps(plan))
        with subprocess.Popen(argv, pass_fds=[theirs.fileno()], start_new_session=True) as process:
            theirs.close()
            try:
                yield Asked(ours, process)
            finally:
                process.kill()


def test_keeper_gets_everything_from_a_supervisor_before_it_starts_its_own(tmp_path: Path) -> None:
    read, write = os.pipe()
    with given_by_donor(tmp_path) as keeper, open(os.devnull) as control:
        assert keeper.event("ping")
        keeper.ask("put", [control.fileno()], name="control")
        keeper.ask("put", [read], name="lifeline")
        assert (tmp_path / "heard").read_text() == ""
        keeper.ask("whole")
        assert keeper.event("adopted")
        assert (tmp_path / "heard").read_text().startswith("started\nhello\n")
        keeper.sock.close()
        os.close(write)
        assert keeper.process.wait(60) == 0, "the lifeline it was given has ended"
    os.close(read)
    assert (tmp_path / "heard").read_text().split()[-1] == "terminate"


@pytest.mark.parametrize("had_control", [True, False])
def test_keeper_whose_donor_exits_early_continues_if_it_has_the_control_socket(
    tmp_path: Path, had_control: bool
) -> None:
    with given_by_donor(tmp_path) as keeper, open(os.devnull) as control:
        keeper.ask("put", [control.fileno()], name="control" if had_control else "other")
        keeper.sock.close()
        if had_control:
            wait_until(lambda: "hello" in (tmp_path / "heard").read_text())
            assert keeper.process.poll() is None
            keeper.process.terminate()
        assert keeper.process.wait(60) == 0
    assert ("hello" in (tmp_path / "heard").read_text()) is had_control


def test_of_two_keepers_that_replace_the_same_one_the_second_refuses(tmp_path: Path) -> None:
    with given_by_donor(tmp_path):
        ours, theirs = wire.pair()
        with ours:
            plan = {
                "supervisor": ["false"],
                "donor": theirs.fileno(),
                "donor_process": {"pid": 2, "start": 1},
            }
            argv = command(sys.executable, "keeper", str(tmp_path), json.dumps(plan))
            with theirs:
                process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], start_new_session=True)
            found = wire.receive(ours, wait=True)
            assert found is not None
            assert found[0]["event"] == "refused"
            assert "temporarily unavailable" in found[0]["reason"]
            assert process.wait(60) == 0


def test_keeper_without_sockets_and_workers_ends_when_its_supervisor_cannot_run(
    supervised: Callable[..., Supervised],
) -> None:
    pool = supervised("import sys; open(sys.argv[1], 'a').write('x\\n'); sys.exit(1)")
    assert pool.process.wait(60) == 0
    assert pool.heard() == ["x"] * 4
