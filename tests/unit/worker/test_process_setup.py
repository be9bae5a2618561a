"""A forked process becomes what its specification says: descriptors, signals, limits, user, environment, program."""

from __future__ import annotations

import fcntl
import io
import json
import marshal
import os
import pwd
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from poolctl.bootstrap import command
from poolctl.worker import process_setup
from poolctl.worker.process_setup import FIRST_FD, GO, SPEC_FD, SetupFailed

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


class Ended(NamedTuple):
    """How a child ended, and what it wrote."""

    status: int
    text: str


def in_child(act: Callable[[], Any]) -> Ended:
    """Run `act` in a forked child, whose output is a pipe. What it returns is printed as JSON."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - the child is not measured
        try:
            os.dup2(write, 1)
            os.dup2(write, 2)
            os.close(read)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            os.write(1, json.dumps(act()).encode())
            os._exit(0)
        except BaseException as error:
            os.write(1, repr(error).encode())
        finally:
            os._exit(99)
    os.close(write)
    with open(read) as output:
        text = output.read()
    return Ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text)


def value_of(act: Callable[[], Any]) -> Any:
    """The value of `act` in a child."""
    ended = in_child(act)
    assert ended.status == 0, ended.text
    return json.loads(ended.text)


def spec(**keys: Any) -> process_setup.Spec:
    limits = list(resource.getrlimit(resource.RLIMIT_NOFILE))
    usual = {"env": {}, "env_base": None, "user": None, "cwd": "/", "open_files": limits, "server": "web"}
    return usual | keys


def applied(**keys: Any) -> Callable[[Callable[[], Any]], Any]:
    """The value of a function after the specification has been applied, in a child."""

    def find(what: Callable[[], Any]) -> Any:
        def act() -> Any:
            process_setup.apply_spec(spec(**keys))
            return what()

        return value_of(act)

    return find


def failure(**keys: Any) -> str:
    """The reason why a specification cannot be applied."""

    def act() -> str:
        try:
            process_setup.apply_spec(spec(**keys))
        except SetupFailed as error:
            return str(error)
        return ""

    return str(value_of(act))


# The process.


def test_status_is_that_of_the_function() -> None:
    def succeed() -> int:
        print("printed", end="")
        return 7

    def fail() -> int:
        raise SetupFailed("no such user")

    def break_down() -> int:
        raise KeyError("a defect")

    assert in_child(lambda: process_setup.run_and_exit(succeed)) == (7, "printed")
    assert in_child(lambda: process_setup.run_and_exit(fail)) == (70, "no such user\n")
    ended = in_child(lambda: process_setup.run_and_exit(break_down))
    assert ended.status == 70
    assert "Traceback" in ended.text
    assert "KeyError: 'a defect'" in ended.text


def test_signal_settings_of_parents_are_undone() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def act() -> list[Any]:
        signal.set_wakeup_fd(theirs.fileno())
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
        process_setup.reset_signals()
        numbers = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
        return [
            [signal.getsignal(each) == signal.SIG_DFL for each in numbers],
            signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN,
            sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
            signal.set_wakeup_fd(-1),
        ]

    with ours, theirs:
        assert value_of(act) == [[True] * 5, True, [], -1]


def test_worker_begins_when_the_supervisor_says_so_and_exits_when_it_is_gone() -> None:
    for sent, expected in ((GO, 5), (b"", 0), (GO + b" ", 0), (b'{"order":"stop"}', 0)):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            with ours:
                if sent:
                    ours.send(sent)

            def act(control: int = theirs.fileno()) -> None:
                process_setup.wait_start_or_exit(control)
                os._exit(5)

            assert in_child(act) == (expected, "")


# Descriptors.


def test_descriptors_are_moved_to_their_places_and_all_others_closed() -> None:
    def act() -> list[Any]:
        # Above the places below, whatever is open in the process that runs the tests.
        read, output, other = (fcntl.fcntl(fd, fcntl.F_DUPFD, 300) for fd in (*os.pipe(), os.pipe()[0]))
        os.dup2(other, 5)
        os.dup2(other, FIRST_FD)
        os.dup2(other, 200)
        # In an order in which moving one by one would overwrite the others.
        first, second = os.dup2(read, FIRST_FD + 1), os.dup2(other, FIRST_FD)
        files = [os.fstat(fd).st_ino for fd in (first, second, output)]
        process_setup.move_descriptors_and_close_others([first, second], output)
        found = sorted(int(name) for name in os.listdir("/proc/self/fd"))
        places = [os.fstat(fd).st_ino for fd in (FIRST_FD, FIRST_FD + 1, 1, 2)]
        inherits = [os.get_inheritable(fd) for fd in (FIRST_FD, FIRST_FD + 1, 1, 2)]
        null = os.path.samestat(os.fstat(0), os.stat(os.devnull))
        report = [files, places, inherits, null, found]
        os.write(1, json.dumps(report).encode())
        data = os.read(FIRST_FD, 10_000)
        os._exit(0 if json.loads(data) == report and _is_placed(report) else 3)

    assert in_child(act) == (0, "")


def _is_placed(report: list[Any]) -> bool:
    (first, second, output), places, inherits, null, found = report
    # The listing has a descriptor of its own.
    return bool(
        places == [first, second, output, output]
        and inherits == [False, False, True, True]
        and null
        and len(found) == 6
        and found[:3] == [0, 1, 2]
        and {FIRST_FD, FIRST_FD + 1} <= set(found)
    )


def test_discarded_output_goes_nowhere() -> None:
    def act() -> None:
        process_setup.discard_output()
        os.write(1, b"lost")
        os.write(2, b"lost")
        os._exit(len(os.listdir("/proc/self/fd")))

    def count() -> None:
        os._exit(len(os.listdir("/proc/self/fd")))

    assert in_child(act) == in_child(count) == (in_child(count).status, "")


@pytest.mark.parametrize("closed", [{0}, {1, 2}, {0, 1, 2}, set()])
def test_closed_standard_descriptors_are_filled_and_open_ones_stay(closed: set[int]) -> None:
    def act() -> None:
        before = [fd for fd in range(3) if fd not in closed]
        there = [os.fstat(fd).st_ino for fd in before]
        for fd in closed:
            os.close(fd)
        process_setup.fill_standard_descriptors()
        right = [os.fstat(fd).st_ino for fd in before] == there
        for fd in closed:
            right &= os.path.samestat(os.fstat(fd), os.stat(os.devnull)) and os.get_inheritable(fd)
        os._exit(0 if right else 3)

    assert in_child(act) == (0, "")


@pytest.mark.parametrize("stream", [None, object(), io.StringIO()])
def test_streams_that_the_application_has_replaced_or_closed_fail_no_message(
    stream: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(stream, io.StringIO):
        stream.close()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        patch.setattr("sys.stderr", stream)
        process_setup.print_message("lost")
        process_setup.flush_output()


def test_message_is_printed_and_flushed_even_if_the_other_stream_is_closed() -> None:
    def act() -> None:
        sys.stdout.close()
        sys.stderr.write("first ")
        process_setup.flush_output()
        process_setup.print_message("second", end="")
        os._exit(4)

    assert in_child(act) == (4, "first second")


def test_interpreter_that_is_started_again_finds_its_descriptors(tmp_path: Path) -> None:
    shell = tmp_path / "python"
    shell.write_text(
        f'#!/bin/sh\necho "$@"\ncat /dev/fd/{SPEC_FD}\ncat /dev/fd/{SPEC_FD + 1} 2>/dev/null\necho "$MARK"\n'
    )
    shell.chmod(0o755)

    def act() -> None:
        files = []
        for text in (b"spec\n", b"not passed\n"):
            fd = os.memfd_create("file")
            os.write(fd, text)
            os.lseek(fd, 0, os.SEEK_SET)
            files.append(fd)
        process_setup.move_descriptors_and_close_others(files, 1)
        os.environ["MARK"] = "marked"
        process_setup.start_interpreter_again({"python": str(shell)}, 1, "worker", "serve", "1")

    arguments = " ".join(command("", "worker", "serve", "1")[1:])
    assert in_child(act) == (0, f"{arguments}\nspec\nmarked\n")


def test_descriptors_are_private_again_after_the_exec() -> None:
    def act() -> list[Any]:
        spec_fd, others = os.memfd_create("spec"), os.pipe()
        os.write(spec_fd, marshal.dumps({"server": "web"}))
        process_setup.move_descriptors_and_close_others([spec_fd, *others], 1)
        for fd in range(SPEC_FD, SPEC_FD + 3):
            os.set_inheritable(fd, True)
        found = process_setup.read_spec_after_exec(2)
        return [found, *(os.get_inheritable(fd) for fd in range(SPEC_FD, SPEC_FD + 3))]

    assert value_of(act) == [{"server": "web"}, False, False, True]


def test_variables_that_an_interpreter_reads_at_its_start_need_an_exec() -> None:
    assert not process_setup.needs_exec(spec(env={"A": "1", "MY_PYTHON": "1"}))
    for name in ("PYTHONPATH", "LD_PRELOAD", "MALLOC_ARENA_MAX"):
        assert process_setup.needs_exec(spec(env={"A": "1", name: "1"}))
    assert process_setup.needs_exec(spec(env_base={}))


# Programs.


def test_program_gets_its_sockets_from_descriptor_3_on() -> None:
    program = (
        "import os, signal, sys\n"
        "names = ('LISTEN_FDS', 'LISTEN_FDNAMES')\n"
        "print([os.environ.get(name) for name in names], os.environ.get('LISTEN_PID') == str(os.getpid()))\n"
        "print([os.path.sameopenfile(3, 1), os.path.sameopenfile(4, 1)], sys.argv[1:])\n"
    )

    def act() -> None:
        argv = [sys.executable, "-c", program, "ü", "\udcff"]
        fds = [os.memfd_create("other"), os.dup(1)]
        process_setup.run_command(spec(argv=argv, server="web:80"), os.dup(1), fds)

    ended = in_child(act)
    lines = ended.text.splitlines()
    assert lines[0] == "['2', 'web_80:web_80'] True"
    assert lines[1] == "[False, True] ['ü', '\\udcff']"
    assert ended.status == 0


def test_program_starts_with_the_default_reaction_to_a_closed_pipe() -> None:
    def act() -> None:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        process_setup.become_program(spec(argv=["sh", "-c", "kill -PIPE $$; echo survived"]), 0)

    assert in_child(act) == (-signal.SIGPIPE, "")


def test_program_without_sockets_is_told_of_none() -> None:
    def act() -> None:
        os.environ.pop("LISTEN_FDS", None)
        process_setup.become_program(spec(argv=["sh", "-c", "echo ${LISTEN_FDS-none}"]), 0)

    assert in_child(act) == (0, "none\n")


def test_program_that_cannot_run_is_named_with_a_shells_status(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")

    def act(path: str) -> None:
        process_setup.become_program(spec(argv=[path]), 0)

    missing, data = str(tmp_path / "gone"), str(tmp_path / "data")
    assert in_child(lambda: act(missing)) == (127, f"cannot run '{missing}': No such file or directory\n")
    assert in_child(lambda: act(data)) == (
        126, f"cannot run '{data}': it is not executable; chmod +x {data}\n",
    )  # fmt: skip


def test_script_whose_interpreter_is_missing_is_named_with_it(tmp_path: Path) -> None:
    script = tmp_path / "job"
    script.write_text("#!/no/such/python\n")
    script.chmod(0o755)
    code, text = in_child(lambda: process_setup.become_program(spec(argv=["./job"], cwd=str(tmp_path)), 0))
    assert code == 127
    assert text.startswith("cannot run './job': it is a script for /no/such/python, which is not there; ")
    assert text.endswith(f", or correct the first line of {script}\n")


# Limits, environment, directory, user.


def test_base_environment_replaces_the_pools_without_its_service_variables() -> None:
    base = {"PATH": "/bin", "LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "x", "NOTIFY_SOCKET": "x"}
    base |= {"WATCHDOG_PID": "1", "WATCHDOG_USEC": "1"}
    assert applied(env_base=base, env={"A": "1"})(lambda: dict(os.environ)) == {"PATH": "/bin", "A": "1"}


def test_specification_that_cannot_be_applied_is_explained(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    assert failure(cwd=gone) == f"cannot enter {gone}: No such file or directory"
    assert failure(open_files=[1 << 40, 1 << 40]).startswith(
        f"cannot have {1 << 40} open files: more than this machine allows; lower `limits.open_files`"
    )
    assert failure(open_files=[20, 10]).startswith("cannot have 20 open files")


@root_only
def test_process_becomes_its_user_with_groups_home_and_name() -> None:
    account = pwd.getpwnam("daemon")

    def found() -> list[Any]:
        variables = [os.environ.get(name) for name in ("HOME", "USER", "LOGNAME")]
        return [os.getresuid(), os.getresgid(), sorted(os.getgroups()), variables]

    uid, gid = account.pw_uid, account.pw_gid
    groups = sorted(os.getgrouplist("daemon", gid))
    expected = [[uid] * 3, [gid] * 3, groups, [account.pw_dir, "daemon", "daemon"]]
    assert applied(user=[uid, gid])(found) == expected

    def twice() -> Any:
        process_setup.switch_to_user(uid, gid)
        return found()

    assert applied(user=[uid, gid])(twice) == expected, "a second time needs no rights"


@root_only
def test_user_without_an_account_has_its_group_alone() -> None:
    def found() -> list[Any]:
        return [os.getresuid(), os.getresgid(), os.getgroups(), os.environ.get("USER")]

    user = os.environ.get("USER")
    assert applied(user=[54321, 54322])(found) == [[54321] * 3, [54322] * 3, [54322], user]


@root_only
def test_users_directory_is_entered_with_the_users_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    said = failure(user=[54321, 54321], cwd=str(tmp_path))
    assert said.startswith(f"cannot enter {tmp_path}: user 54321 may not enter /")
    assert "; as root: chgrp 54321 /" in said


@root_only
def test_user_that_a_process_must_not_become_is_a_failure() -> None:
    def act() -> str:
        os.setresuid(54321, 54321, 54321)
        try:
            process_setup.apply_spec(spec(user=[54322, 54322]))
        except SetupFailed as error:
            return str(error)
        return ""

    assert value_of(act) == "cannot become user 54322 of group 54322: Operation not permitted"
