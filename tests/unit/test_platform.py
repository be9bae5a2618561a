"""What only Linux does."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolctl import platform as linux
from poolctl.platform import age_seconds, await_readable, readable_bytes, signal_descriptor, signals_blocked
from tests.deadline import wait_until
from tests.descriptors import no_descriptor_left
from tests.processes import freeze, is_alive, stat


def test_a_process_that_is_continued_periodically_does_not_stay_stopped() -> None:
    stop_itself_twice = """
import os, signal
from poolctl.platform import continue_periodically
signal.signal(signal.SIGCONT, lambda number, frame: None)
continue_periodically(1)
for _ in range(2):
    os.kill(os.getpid(), signal.SIGSTOP)
"""
    subprocess.run([sys.executable, "-c", stop_itself_twice], check=True, timeout=60)


def test_age_of_a_process_is_the_time_since_it_was_started() -> None:
    assert 0 < age_seconds(os.getpid()) <= age_seconds(os.getppid())
    assert age_seconds(2**22 + 1) == 0.0


def test_descriptor_of_signals_is_readable_while_one_of_them_is_pending() -> None:
    numbers = [signal.SIGUSR1, signal.SIGRTMAX]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    descriptor = signal_descriptor(numbers)
    try:
        for number in numbers:
            assert not await_readable(descriptor, 0, -1)
            signal.pthread_kill(threading.main_thread().ident or 0, number)
            assert await_readable(descriptor, 60, -1)
            assert signal.sigtimedwait(numbers, 0) is not None
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_thread_that_is_started_with_signals_blocked_takes_none_and_its_starter_all_of_them() -> None:
    blocked: list[set[int]] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    thread = threading.Thread(target=lambda: blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    with signals_blocked():
        thread.start()
    thread.join()
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD} <= blocked[0]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_wait_says_whether_there_is_something_to_read_and_raises_when_the_reader_has_gone() -> None:
    (readable, writable), (reader, output) = os.pipe(), os.pipe()
    assert not await_readable(readable, 0.01, output)
    os.write(writable, b"1")
    assert await_readable(readable, 60, output)
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        await_readable(readable, 60, output)
    for fd in (readable, writable, output):
        os.close(fd)


GONE = 2**22 + 1  # larger than any pid


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as started:
        yield started
        started.kill()


def test_process_is_identified_by_its_start_parent_and_users(process: subprocess.Popen[bytes]) -> None:
    start = linux.process_start(process.pid)
    assert start is not None
    now = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    assert 0 <= now - start < 60 * os.sysconf("SC_CLK_TCK")
    assert linux.parent_and_start(process.pid) == (os.getpid(), start)
    assert linux.process_users(process.pid) == {os.geteuid()}
    boot, first = linux.boot_identity()
    assert (len(str(boot)), first) == (36, linux.process_start(1))


def test_process_that_is_gone_has_no_figures() -> None:
    figures = (
        linux.process_start, linux.parent_and_start, linux.process_users, linux.memory_bytes, linux.process_figures,
        linux.process_cpu_ns,
    )  # fmt: skip
    assert [each(GONE) for each in figures] == [None] * len(figures)
    assert (linux.status_of(GONE), linux.kernel_state_of_threads(GONE, 1)) == ({}, [])
    assert not linux.waits_for_events(GONE)
    assert not linux.is_stopped(GONE)


def test_processor_time_of_a_process_grows_while_it_works() -> None:
    before, before_ns = linux.process_figures(os.getpid()), linux.process_cpu_ns(os.getpid())
    assert before is not None
    assert before_ns is not None
    assert before[1] == pytest.approx(sum(os.times()[:2]), abs=0.1)
    assert before_ns == pytest.approx(time.process_time_ns(), abs=500_000_000)
    while time.process_time_ns() < before_ns + 50_000_000:
        pass
    assert (linux.process_cpu_ns(os.getpid()) or 0) >= before_ns + 50_000_000


def test_processor_time_of_an_ended_child_is_its_parents_once_that_has_waited() -> None:
    script = """
import os, subprocess, sys
from poolctl.platform import process_figures
subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.15: pass"])
start, own, waited = process_figures(os.getpid())
print(waited >= 0.1, own + waited <= sum(os.times()[:4]) + 0.02)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True True\n", done.stderr


FAMILY = r"""
import os, signal, sys, time

def child(*names, leads_session=False):
    if os.fork():
        return
    if leads_session:
        os.setsid()
    os.write(1, f"{names[0]} {os.getpid()}\n".encode())  # in one piece, which print does not promise
    if names[1:]:
        child(*names[1:])
    time.sleep(60)
    os._exit(0)

child("child", "grandchild")
child("in its own session", "its child", leads_session=True)
if not os.fork():
    child("daemon", "daemon's child", leads_session=True)
    os._exit(0)
os.wait()
time.sleep(60)
"""


def test_processes_belong_to_the_leader_of_their_session_or_of_their_parents() -> None:
    command = [sys.executable, "-c", FAMILY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as leader:
        try:
            assert leader.stdout is not None
            family = {}
            for _ in range(6):
                name, _, pid = leader.stdout.readline().strip().rpartition(" ")
                family[name] = int(pid)
            daemons = {family.pop("daemon"), family.pop("daemon's child")}
            expected = sorted([leader.pid, *family.values()])
            # The process between them exits, and the leader waits for it.
            wait_until(lambda: sorted(linux.processes_by_leader({leader.pid})[leader.pid]) == expected)
            found = linux.processes_by_leader({leader.pid})
            assert {os.getpid(), *daemons} <= {*found[None]}
            inner = family["in its own session"]
            found = linux.processes_by_leader({leader.pid, inner})
            assert sorted(found[inner]) == sorted([inner, family["its child"]])
            assert len(found[leader.pid]) == 3
        finally:
            for pid in [*family.values(), *daemons, leader.pid]:
                os.kill(pid, signal.SIGKILL)


def test_memory_of_another_users_process_is_that_which_no_file_backs() -> None:
    script = """
import os, sys
from poolctl.platform import memory_bytes, status_of
os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
try:
    open(f"/proc/{os.getppid()}/smaps_rollup").read()
except PermissionError:
    size = memory_bytes(os.getppid())
    print(size // 1024 in range(1024, int(status_of(os.getppid())[b"VmRSS"].split()[0])))
"""
    if os.getuid():
        pytest.skip("only root can be another user")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


def test_process_runs_until_the_last_of_its_threads_has_ended() -> None:
    script = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).syscall(60 if sys.argv[1] == "x86_64" else 93, 0)  # exit(2) of the first thread alone
"""
    command = [sys.executable, "-c", script, os.uname().machine]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        wait_until(lambda: stat(process.pid).state == "Z")
        assert linux.is_running(process.pid)
        assert is_alive(process.pid)
        assert process.stdin is not None
        process.stdin.close()
        wait_until(lambda: not is_alive(process.pid))
        assert not linux.is_running(process.pid)


def test_process_that_has_exited_and_was_not_waited_for_uses_no_memory() -> None:
    with subprocess.Popen(["true"]) as process:
        wait_until(lambda: linux.status_of(process.pid).get(b"State", b"").startswith(b"Z"))
        assert linux.memory_bytes(process.pid) == 0
        assert linux.process_figures(process.pid) is not None


def test_memory_of_a_process_is_in_bytes() -> None:
    script = """
import os
from poolctl.platform import memory_bytes
before = memory_bytes(os.getpid())
block = bytearray(b"x") * 100_000_000
print(memory_bytes(os.getpid()) - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert 90_000_000 < int(done.stdout) < 110_000_000


def test_stopped_process_is_seen(process: subprocess.Popen[bytes]) -> None:
    assert not linux.is_stopped(process.pid)
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: linux.is_stopped(process.pid))
    assert linux.status_of(process.pid)[b"State"].startswith(b"T")
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: not linux.is_stopped(process.pid))


def test_threads_begin_with_the_main_one_and_are_at_most_so_many(process: subprocess.Popen[bytes]) -> None:
    (thread,) = linux.kernel_state_of_threads(process.pid, 5)
    assert (thread["tid"], thread["name"]) == (process.pid, "sleep")
    assert thread["state"] in ("S", "R", "D")
    assert linux.kernel_state_of_threads(process.pid, 0) == []

    def system_call() -> str:
        try:
            return Path(f"/proc/{process.pid}/syscall").read_text().split()[0]
        except PermissionError:
            return ""

    wait_until(lambda: linux.kernel_state_of_threads(process.pid, 1)[0]["syscall"] == system_call())


def test_descriptor_of_another_process_is_copied() -> None:
    read, write = os.pipe()
    script = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(script, stdin=subprocess.PIPE, pass_fds=[write]) as process:
        try:
            copy = linux.copy_descriptor(process.pid, write)
        except PermissionError:
            pytest.skip("the sandbox forbids it")
        finally:
            process.kill()
    os.write(copy, b"x")
    assert os.read(read, 9) == b"x"
    with pytest.raises(OSError, match="No such process"):
        linux.copy_descriptor(GONE, 0)
    for fd in (read, write, copy):
        os.close(fd)


def test_credentials_are_those_of_the_peer_and_of_a_messages_sender() -> None:
    ours, theirs = socket.socketpair()
    own = (os.getpid(), os.geteuid(), os.getegid())
    with ours, theirs:
        assert linux.peer_credentials(ours) == own
        linux.enable_sender_credentials(ours)
        theirs.send(b"x")
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(linux.CREDENTIALS_BYTES))
        assert linux.sender_credentials(ancillary) == own
    assert linux.sender_credentials([]) is None
    assert linux.sender_credentials([(socket.SOL_SOCKET, 99, b"x" * 12)]) is None


def test_only_a_file_in_memory_with_its_seals_is_read_as_a_sealed_one(tmp_path: Path) -> None:
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK
    fd = linux.memory_file("sealed", b"content", seals)
    assert linux.read_sealed_file(fd, seals, 7) == b"content"
    assert linux.read_sealed_file(fd, fcntl.F_SEAL_WRITE, 8) == b"content"
    for wanted, most_bytes in ((seals, 6), (seals | fcntl.F_SEAL_GROW, 7)):
        with pytest.raises(ValueError, match="not a sealed file"):
            linux.read_sealed_file(fd, wanted, most_bytes)
    os.close(fd)
    (tmp_path / "plain").write_bytes(b"content")
    fds = [linux.memory_file("empty", b"", seals), os.open(tmp_path / "plain", os.O_RDONLY), *os.pipe()]
    for fd in fds:
        with pytest.raises(ValueError, match="not a sealed file"):
            linux.read_sealed_file(fd, seals, 7)
        os.close(fd)


def test_connection_whose_other_end_is_shut_has_left() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not linux.peer_has_closed(ours)
        theirs.send(b"x")
        assert not linux.peer_has_closed(ours)
        theirs.shutdown(socket.SHUT_WR)
        assert linux.peer_has_closed(ours)


def test_descriptor_is_closed_whatever_it_is() -> None:
    read, write = os.pipe()
    sock = socket.create_server(("127.0.0.1", 0))
    for fd in (read, write, sock.detach()):
        linux.close_promptly(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_file_in_memory_begins_with_its_content_and_is_not_inherited() -> None:
    fd = linux.memory_file("test", b"content")
    assert os.read(fd, 99) == b"content"
    assert fcntl.fcntl(fd, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
    assert linux.read_file(fd) == b"content"
    os.write(fd, b"s")
    os.close(fd)


def test_sealed_file_in_memory_cannot_be_written() -> None:
    fd = linux.memory_file("test", b"content", fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"C", 0)
    assert os.read(fd, 99) == b"content"
    os.close(fd)


def test_file_in_memory_whose_seals_are_refused_is_closed() -> None:
    with no_descriptor_left(), pytest.raises(OSError, match="Invalid argument"):
        linux.memory_file("test", b"content", 1 << 20)


def test_user_without_a_name_is_named_by_the_id() -> None:
    assert linux.user_name(0) == "root"
    assert linux.user_name(4_000_000_001) == "4000000001"


def test_file_larger_than_one_read_is_read_whole() -> None:
    content = os.urandom(3_000_001)
    fd = linux.memory_file("test", content)
    assert linux.read_file(fd) == content
    os.close(fd)


def test_replaced_file_is_private_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"long content", b"new"):
        linux.replace_file(str(path), content)
        assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_without_writing_through_a_link(tmp_path: Path) -> None:
    private, path = tmp_path / "private", tmp_path / "file"
    private.write_text("precious")
    path.symlink_to(private)
    (tmp_path / "file.new").symlink_to(private)
    linux.replace_file(str(path), b"new")
    assert (path.read_bytes(), path.is_symlink(), private.read_text()) == (b"new", False, "precious")


def test_a_file_that_cannot_be_replaced_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        linux.replace_file(str(path), b"new")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "found"), [(b'{"a": 1}', {"a": 1}), (b"[1]", {}), (b"{", {}), (b"\xff", {}), (None, {})]
)
def test_json_object_of_a_damaged_file_is_empty(tmp_path: Path, content: bytes | None, found: object) -> None:
    if content is not None:
        linux.replace_file(str(tmp_path / "file"), content)
    assert linux.read_json_object(str(tmp_path / "file")) == found


def test_name_of_a_process_is_cut_and_its_oom_score_is_raised() -> None:
    script = """
from poolctl import platform
platform.name_process("a-name-of-more-than-fifteen-bytes")
platform.prefer_for_oom_kill()
print(open("/proc/self/comm").read(), open("/proc/self/oom_score_adj").read(), sep="")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["a-name-of-more-", "100"]


def test_orphaned_process_becomes_a_child_of_the_subreaper() -> None:
    script = """
import os, subprocess
from poolctl import platform
platform.become_subreaper()
done = subprocess.run(["sh", "-c", "sleep 600 & echo $!"], stdout=subprocess.PIPE)
child = int(done.stdout)
print(platform.parent_and_start(child)[0] == os.getpid())
os.kill(child, 9)
"""
    code = script.replace("sleep 600 &", "sleep 600 >/dev/null &")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True"], done.stderr


def test_limit_of_descriptors_is_raised_to_the_hard_one_and_the_former_limits_are_returned() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = """
import resource
from poolctl import platform
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
print(platform.raise_descriptor_limit() == (100, hard), resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "True"], done.stderr
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_proc_of_this_machine_works() -> None:
    assert linux.proc_problem() == ("", "")


def test_bytes_that_wait_are_counted_in_pipes_and_sockets() -> None:
    read, write = os.pipe()
    ours, theirs = socket.socketpair()
    with open(read, "rb"), open(write, "wb"), ours, theirs:
        assert (readable_bytes(read), readable_bytes(ours.fileno())) == (0, 0)
        os.write(write, b"x" * 300)
        theirs.send(b"hello")
        assert (readable_bytes(read), readable_bytes(ours.fileno())) == (300, 5)


def test_members_of_a_process_group_are_its_running_processes_without_the_leader() -> None:
    script = ["sh", "-c", "sleep 60 & echo $!; wait"]
    with subprocess.Popen(script, stdout=subprocess.PIPE, start_new_session=True) as leader:
        try:
            assert leader.stdout is not None
            child = int(leader.stdout.readline())
            assert list(linux.group_members(leader.pid)) == [child]
            assert list(linux.group_members(child)) == [], "it leads no group"
            freeze(child)
            assert list(linux.group_members(leader.pid)) == [child], "a stopped process has not ended"
        finally:
            os.killpg(leader.pid, signal.SIGKILL)


def test_name_and_variables_of_another_process_are_those_of_its_program() -> None:
    with subprocess.Popen(["sleep", "60"], env={"A": "x=y", "AB": "z" * 70_000}) as process:
        try:
            # Its descriptors are closed and its name is set before its variables can be read.
            wait_until(lambda: linux.process_variable(process.pid, "A") == "x=y")
            assert linux.process_name(process.pid) == "sleep"
            values = [linux.process_variable(process.pid, name) for name in ("AB", "B")]
            assert values == ["z" * 70_000, ""]
        finally:
            process.kill()
    assert linux.process_name(process.pid) == linux.process_variable(process.pid, "A") == ""


def test_process_is_exiting_from_before_its_connections_are_closed_until_it_is_gone() -> None:
    assert not linux.is_exiting(os.getpid())
    for _ in range(20):
        ours, theirs = socket.socketpair()
        with ours, theirs, subprocess.Popen(["sleep", "60"], pass_fds=[theirs.fileno()]) as process:
            theirs.close()
            assert not linux.is_exiting(process.pid)
            process.kill()
            assert ours.recv(1) == b""
            assert linux.is_exiting(process.pid)
        assert linux.is_exiting(process.pid), "it was waited for"
