"""A thread or program for which Linux is another one: it refuses system calls, or has other files and networks."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from errno import EAFNOSUPPORT, EPERM, EPROTONOSUPPORT
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Call(NamedTuple):
    """A system call by its number on x86-64; with `argument` only calls with this first argument."""

    number: int
    argument: int | None = None


BIND, RENAME, MKDIR, READLINK, CHOWN = Call(49), Call(82), Call(83), Call(89), Call(92)
GETDENTS, UNLINKAT = Call(217), Call(263)
CLONE, PIDFD_OPEN = Call(56), Call(434)
SPLICE, INOTIFY_INIT = Call(275), Call(294)
NO_NETLINK = {Call(41, socket.AF_NETLINK): EPROTONOSUPPORT}
NO_IPV6 = {Call(41, socket.AF_INET6): EAFNOSUPPORT}
# pidfd_send_signal, pidfd_open, close_range, pidfd_getfd and faccessat2, which filters of containers may not know yet.
NEW_CALLS = (424, 434, 436, 438, 439)
FILES, FILES_AND_NETWORK = 0x20000, 0x40020000  # CLONE_NEWNS, CLONE_NEWNET
_SETGROUPS, _SETRESUID, _SETRESGID = 116, 117, 119
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2


def run_without(errors: Mapping[Call, int], work: Callable[[], T]) -> T:
    """Run this in a thread in which these calls fail with these numbers of errors."""
    _skip_unless(os.uname().machine == "x86_64", "system calls have other numbers on this machine")
    with ThreadPoolExecutor(1, initializer=_refuse, initargs=(errors,)) as thread:
        return thread.submit(work).result()


def run_in_namespace(script: str, work: Callable[[], T], kind: int = FILES) -> T:
    """Run this script of the shell, and then this, in a thread with namespaces of its own (unshare(2))."""
    _skip_unless(os.geteuid() == 0, "only root can make namespaces")

    def enter_and_work() -> T:
        assert ctypes.CDLL(None).unshare(kind) == 0
        subprocess.run(["sh", "-ec", f"mount --make-rprivate /; {script}"], check=True)
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(enter_and_work).result()


def run_with_hosts(directory: Path, names: Mapping[str, Sequence[str]], work: Callable[[], T]) -> T:
    """Run this in a thread for which these names have these addresses, and no others."""
    lines = [f"{address} {name}\n" for name, addresses in names.items() for address in addresses]
    (directory / "hosts").write_text("".join(lines))
    (directory / "host.conf").write_text("multi on\n")
    (directory / "nsswitch.conf").write_text("hosts: files\n")
    mounts = [
        f"mount --bind {directory}/{name} /etc/{name}" for name in ("hosts", "host.conf", "nsswitch.conf")
    ]
    return run_in_namespace("; ".join(mounts), work)


def run_as(uid: int, work: Callable[[], T], groups: Sequence[int] | None = None) -> T:
    """Run this in a thread of this user, who has no privileges; `groups` begin with the user's own.

    Without `groups` they stay those of this process.
    """
    _skip_unless(os.geteuid() == 0, "only root can become another user")
    _skip_unless(os.uname().machine == "x86_64", "system calls have other numbers on this machine")

    def become_and_work() -> T:
        # Not os.setresuid(), which changes all threads.
        syscall = ctypes.CDLL(None).syscall
        if groups is not None:
            ids = (ctypes.c_uint32 * len(groups))(*groups)
            assert syscall(_SETGROUPS, len(groups), ids) == syscall(_SETRESGID, *[groups[0]] * 3) == 0
        assert syscall(_SETRESUID, uid, uid, uid) == 0
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(become_and_work).result()


def _skip_unless(possible: bool, reason: str) -> None:
    import pytest  # which a program in a sandbox needs not

    if not possible:
        pytest.skip(reason)


def _refuse(errors: Mapping[Call, int]) -> None:
    """Set a filter for this thread (seccomp(2)), for ever."""
    code = []
    for call, error in errors.items():
        argument = [] if call.argument is None else [(0x20, 0, 0, 16), (0x15, 0, 1, call.argument)]
        code += [(0x20, 0, 0, 0), (0x15, 0, 1 + len(argument), call.number), *argument]
        code += [(0x06, 0, 0, 0x00050000 | error)]
    code += [(0x06, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    rules = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(program)))
    assert libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(rules), 0, 0) == 0


if __name__ == "__main__":  # sandbox.py NUMBER,NUMBER… PROGRAM…: the program, without these system calls
    _refuse({Call(int(number)): EPERM for number in sys.argv[1].split(",")})
    os.execv(sys.argv[2], sys.argv[2:])
