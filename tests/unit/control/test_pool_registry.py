"""The registry of a running pool against a supervisor's socket: new tables, a pool without a gateway, a successor."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from poolctl.control.client import Client, NoSupervisor, SupervisorEnded
from poolctl.control.pool_registry import PoolRouteRegistry
from poolctl.errors import ControlError
from poolctl.routing.route import Route, Target
from poolctl.routing.route_table import write_table
from tests.deadline import wait_until

HEAD = b"HTTP/1.0 200 OK\r\ncontent-type: application/x-ndjson\r\n\r\n"
OK = {"schema": 1, "items": [], "errors": [], "exit_code": 0}


def line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


class Supervisor:
    """The verb `registry` of a supervisor whose tables have one route each, named after their generation."""

    def __init__(self, path: Path) -> None:
        self.generation = 1
        self.has_gateway = True
        self.answer = b""  # sent instead of any answer
        self.followers: list[socket.socket] = []
        self.asked = 0  # tables
        self.path = path
        self.begin()

    def begin(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
            if not head:
                connection.close()
                return
            assert head.split()[1] == b"/v1/registry"
            follows = json.loads(body).get("options", {}).get("follow")
            if self.answer:
                connection.sendall(self.answer)
                connection.close()
            elif follows:
                connection.sendall(HEAD)
                self._report(connection)
            else:
                self._hand_out(connection)

    def _report(self, follower: socket.socket) -> None:
        if self.has_gateway:
            self.followers.append(follower)
            follower.sendall(line({"generation": self.generation}))
        else:
            follower.sendall(line({"result": OK | {"generation": 0}}))
            follower.close()

    def _hand_out(self, connection: socket.socket) -> None:
        self.asked += 1
        if self.has_gateway:
            route = Route(alias=f"r{self.generation}", to=(Target(server="web"),))
            fd = write_table([route], self.generation)
            socket.send_fds(connection, [HEAD], [fd])
            os.close(fd)
        else:
            connection.sendall(HEAD)
        connection.sendall(line({"result": OK | {"generation": self.generation}}))
        connection.close()

    def change(self) -> None:
        """Another table is in force."""
        self.generation += 1
        for follower in self.followers:
            follower.sendall(line({"generation": self.generation}))

    def hang_up(self) -> None:
        for follower in self.followers:
            follower.close()
        self.followers.clear()

    def end(self) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self.path))
        self._thread.join()
        self._listener.close()
        self.path.unlink()
        self.hang_up()


@pytest.fixture
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    found = Supervisor(tmp_path_factory.mktemp("s") / "control.sock")
    yield found
    if found.path.exists():
        found.end()


def aliases(registry: PoolRouteRegistry) -> list[str]:
    return [route.alias for route in registry.http]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_routes_are_those_of_the_latest_table_which_is_fetched_once(supervisor: Supervisor) -> None:
    with PoolRouteRegistry(Client(str(supervisor.path))) as registry:
        assert (aliases(registry), registry.connected, registry.generation) == (["r1"], True, 1)
        assert supervisor.asked == 1
        for _ in range(3):
            supervisor.change()
        assert aliases(registry) == ["r4"]
        assert supervisor.asked == 2
        before = descriptors()
        for generation in range(5, 15):
            supervisor.change()
            assert aliases(registry) == [f"r{generation}"]
        assert descriptors() < before + 5
    with contextlib.suppress(BrokenPipeError):
        supervisor.change()
    assert (aliases(registry), registry.connected) == (["r14"], False)
    assert supervisor.asked == 12


def test_closed_registry_has_disconnected(supervisor: Supervisor) -> None:
    registry = PoolRouteRegistry(Client(str(supervisor.path)))
    wait_until(lambda: supervisor.followers)
    (follower,) = supervisor.followers
    follower.settimeout(20)
    registry.close()
    assert follower.recv(1) == b""


def test_pool_without_a_gateway_has_no_routes_and_is_asked_again_after_a_while(
    supervisor: Supervisor,
) -> None:
    supervisor.has_gateway = False
    began = monotonic()
    with PoolRouteRegistry(Client(str(supervisor.path))) as registry:
        assert (aliases(registry), registry.generation, registry.connected) == ([], 0, False)
        supervisor.has_gateway = True
        wait_until(lambda: aliases(registry) == ["r1"])
        assert monotonic() >= began + 0.5
        assert registry.connected
        supervisor.has_gateway = False
        supervisor.generation = 0
        supervisor.followers[0].sendall(line({"generation": 0}))
        assert (aliases(registry), registry.connected) == ([], True)


def test_next_supervisor_is_followed_at_once(supervisor: Supervisor) -> None:
    with PoolRouteRegistry(Client(str(supervisor.path))) as registry:
        supervisor.generation = 7
        supervisor.hang_up()
        assert (aliases(registry), registry.connected) == (["r7"], True)


def test_while_no_supervisor_answers_the_routes_are_the_last_ones(supervisor: Supervisor) -> None:
    with PoolRouteRegistry(Client(str(supervisor.path))) as registry:
        supervisor.end()
        began = monotonic()
        assert (aliases(registry), registry.connected) == (["r1"], False)
        supervisor.begin()
        supervisor.change()
        wait_until(lambda: aliases(registry) == ["r2"])
        assert monotonic() >= began + 0.5
        assert registry.connected


def test_child_of_a_fork_has_a_connection_of_its_own(supervisor: Supervisor) -> None:
    with PoolRouteRegistry(Client(str(supervisor.path))) as registry:
        if (child := os.fork()) == 0:
            os._exit((aliases(registry), registry.connected) != (["r1"], True))
        assert os.waitpid(child, 0)[1] == 0
        assert len(supervisor.followers) == 2
        assert registry.connected


def test_registry_of_no_supervisor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoSupervisor):
        PoolRouteRegistry(Client(str(tmp_path / "gone.sock")))


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (HEAD + b"no json\n", ControlError, "is not understood"),
        (b"no HTTP\r\n\r\n", ControlError, "is not understood"),
        (HEAD, SupervisorEnded, "ended"),
        (HEAD + line({"generation": 3}), SupervisorEnded, "ended"),
        (b'HTTP/1.0 403 Forbidden\r\n\r\n{"error": "not yours"}\n', ControlError, "not yours"),
        (b"HTTP/1.0 500 Error\r\n\r\n{}\n", ControlError, "refused 'registry': HTTP status 500"),
    ],
)
def test_answer_that_is_none_is_an_error(
    supervisor: Supervisor, answer: bytes, error: type[ControlError], message: str
) -> None:
    supervisor.answer = answer
    with pytest.raises(error, match=message):
        PoolRouteRegistry(Client(str(supervisor.path)))


def test_line_may_arrive_in_pieces(supervisor: Supervisor) -> None:
    with PoolRouteRegistry(Client(str(supervisor.path))) as registry:
        supervisor.generation = 12
        supervisor.followers[0].sendall(b'{"generation": 1')
        assert aliases(registry) == ["r1"]
        supervisor.followers[0].sendall(b"2}\n")
        assert aliases(registry) == ["r12"]
