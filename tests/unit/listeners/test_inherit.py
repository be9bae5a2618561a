"""Sockets that systemd passes on: which there are, and what may be done with them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from poolctl.address import parse
from poolctl.listeners.open_listener import (
    ListenError,
    close_listener,
    inherited_descriptors,
    open_listener,
    take_inherited,
)

PROGRAM = """
import os, socket, sys
from poolctl.address import parse
from poolctl.listeners.open_listener import inherited_descriptors
from poolctl.listeners.open_listener import describe, open_listener
os.environ["LISTEN_PID"] = str(os.getpid())
inherited = inherited_descriptors(os.environ)
assert not os.get_inheritable(3)
for text in sys.argv[1:]:
    print(" ".join(describe(sock) for sock in open_listener(parse(text), inherited=inherited)))
"""


def test_inherited_descriptors_are_found_by_number_and_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        expected = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in (first, second)]
        script = 'exec 3<&$1 4<&$2; shift 2; exec "$@"'
        done = subprocess.run(
            ["bash", "-c", script, "bash", str(first.fileno()), str(second.fileno()),
             sys.executable, "-c", PROGRAM, "fd:3", "fd:4", "fd:web"],
            pass_fds=[first.fileno(), second.fileno()],
            capture_output=True, text=True, timeout=60, check=True,
            env=os.environ | {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:web"},
        )  # fmt: skip
    assert done.stdout.splitlines() == [*expected, " ".join(expected)]


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "one", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "0", "LISTEN_PID": str(os.getpid())},
    ],
)
def test_descriptors_for_another_process_are_not_taken(env: dict[str, str]) -> None:
    assert inherited_descriptors(env) == {}


def test_descriptors_that_are_not_open_are_passed_over() -> None:
    assert inherited_descriptors({"LISTEN_FDS": "65000", "LISTEN_PID": "7"}, pid=7).get("64000") is None


def test_inherited_listener_shares_its_accept_queue() -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        sockets = open_listener(parse("fd:web"), inherited={"web": [passed.fileno()]})
        with socket.create_connection(passed.getsockname()):
            sockets[0].setblocking(True)
            sockets[0].accept()[0].close()
        close_listener(sockets)


def test_inherited_socket_that_is_only_bound_starts_to_listen() -> None:
    with socket.socket() as passed:
        passed.bind(("127.0.0.1", 0))
        sockets = take_inherited(parse("fd:3"), {"3": [passed.fileno()]})
        socket.create_connection(passed.getsockname(), timeout=60).close()
        close_listener(sockets)


def test_unknown_inherited_name_lists_the_known_ones() -> None:
    with pytest.raises(
        ListenError, match=r"no socket fd:web was inherited \(inherited: fd:3, fd:api\)"
    ) as caught:
        open_listener(parse("fd:web"), inherited={"3": [3], "api": [3]})
    assert "FileDescriptorName=" in caught.value.hint
    with pytest.raises(ListenError, match="inherited: none"):
        open_listener(parse("fd:web"))


def test_socket_that_does_not_listen_is_refused(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with one, other, socket.socket(type=socket.SOCK_DGRAM) as datagrams, open(tmp_path / "f", "w") as file:
        for fd in (one.fileno(), datagrams.fileno()):
            with pytest.raises(ListenError, match="that cannot listen"):
                open_listener(parse("fd:x"), inherited={"x": [fd]})
        with pytest.raises(ListenError, match="is not a socket"):
            open_listener(parse("fd:x"), inherited={"x": [file.fileno()]})


def test_one_bad_descriptor_of_a_name_gives_back_the_others(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as good, open(tmp_path / "f", "w") as file:
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(ListenError):
            open_listener(parse("fd:x"), inherited={"x": [good.fileno(), file.fileno()]})
        assert set(os.listdir("/proc/self/fd")) == before
