"""A process that forks on request has forked once before the request comes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolctl.keeper import wire
from tests.deadline import wait_until

SCRIPT = """
import os, sys
from poolctl.keeper import wire
from poolctl.worker.zygote import serve_forks

fork, failures = os.fork, int(sys.argv[2])

def fork_or_fail():
    global failures
    if failures:
        failures -= 1
        raise BlockingIOError(11, "no process left")
    return fork()

os.fork = fork_or_fail

def role(fds):
    os.write(fds[0], b"forked")
    os._exit(0)

serve_forks(wire.over(int(sys.argv[1])), {"worker": role})
"""

Serve = Callable[[int], tuple["subprocess.Popen[bytes]", socket.socket]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A process that serves forks, of which the first so many fail, and the socket for requests to it."""
    started: list[subprocess.Popen[bytes]] = []
    opened: list[socket.socket] = []

    def start(failures: int = 0) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = wire.pair()
        with theirs:
            argv = [sys.executable, "-c", SCRIPT, str(theirs.fileno()), str(failures)]
            started.append(subprocess.Popen(argv, pass_fds=[theirs.fileno()], start_new_session=True))
        opened.append(ours)
        ours.settimeout(60)
        return started[-1], ours

    yield start
    for requests in opened:
        requests.close()
    for process in started:
        process.kill()
        process.wait(60)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ask(requests: socket.socket, number: int) -> wire.Message:
    """The answer to a request for a fork, which has done what it is for if there is one."""
    read, write = os.pipe()
    wire.send(requests, {"op": "worker", "id": number}, [write])
    os.close(write)
    received = wire.receive(requests, wait=True)
    assert received is not None
    with open(read, "rb") as said:
        assert said.read() == (b"forked" if "pid" in received[0] else b"")
    return received[0]


def test_zygote_forks_a_forker_before_each_request(serve: Serve) -> None:
    process, requests = serve(0)
    for number in (1, 2):
        [waiting] = wait_until(lambda: children(process.pid))
        assert ask(requests, number)["id"] == number
        wait_until(lambda before=waiting: before not in children(process.pid))


def test_both_processes_end_with_the_socket_of_requests(serve: Serve) -> None:
    process, requests = serve(0)
    wait_until(lambda: children(process.pid))
    requests.close()
    assert process.wait(60) == 0


def test_killed_forker_is_replaced(serve: Serve) -> None:
    process, requests = serve(0)
    [waiting] = wait_until(lambda: children(process.pid))
    os.kill(waiting, signal.SIGKILL)
    wait_until(lambda: waiting not in children(process.pid))
    assert ask(requests, 1)["pid"] > 0


@pytest.mark.parametrize(("failures", "refused"), [(1, False), (2, True)])
def test_fork_request_is_refused_only_when_forking_fails_twice(
    serve: Serve, failures: int, refused: bool
) -> None:
    _, requests = serve(failures)
    assert ("error" in ask(requests, 1)) is refused
    assert "pid" in ask(requests, 2)
