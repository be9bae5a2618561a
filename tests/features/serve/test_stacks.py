"""`poolctl stacks` asks the processes of `poolctl serve` where no supervisor runs."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.serve._stacks import StacksSocket
from tests.deadline import wait_until

SPEC = {"server": "web", "app_dir": "/srv/shop", "cwd": "/srv/shop"}


def sockets(runtime: Path) -> list[Path]:
    return [*runtime.glob("*/serve-*.sock")]


@pytest.mark.integration
def test_blocked_application_shows_its_place_and_serves_on(serve: Any, until: Any) -> None:
    web = serve()
    pool = web.pool
    until(lambda: web.health() == (200, "ok"))
    replies: list[Any] = []
    asking = web.get_later("/block", replies)
    until(web.is_asked)
    (item,) = pool.run("stacks", "web", "-o", "json").json["items"]
    assert (item["name"], item["worker"], item["pid"]) == ("web", "web", web.process.pid)
    assert (item["source"], item["problem"]) == ("python", "")
    assert item["place"].startswith("app (application.py:")
    assert [each["main"] for each in item["threads"]].count(True) == 1
    assert "poolctl stacks" not in {each["name"] for each in item["threads"]}, "the thread that answers"
    assert "Task-" in item["tasks"][0]["names"][0]
    web.touch("answer")
    asking.join(60)
    assert [reply.status for reply in replies] == [200]


@pytest.mark.integration
def test_import_that_hangs_is_shown_and_the_socket_goes_with_the_process(serve: Any, until: Any) -> None:
    web = serve(waits=True)
    pool = web.pool
    until(lambda: pool.run("stacks").code == 0)
    done = pool.run("stacks")
    assert done.stdout.startswith(f"web (pid {web.process.pid})\n  main thread:\n")
    assert "<module> (application.py:" in done.stdout
    (path,) = sockets(pool.runtime)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    web.process.send_signal(signal.SIGTERM)
    assert web.process.wait(60) == 0
    assert sockets(pool.runtime) == []
    assert pool.run("stacks").code == 6


@pytest.mark.integration
def test_selection_is_checked_and_a_killed_process_is_not_shown(serve: Any, until: Any) -> None:
    web = serve()
    pool = web.pool
    until(lambda: pool.run("stacks", "-o", "name").stdout == "web\n")
    assert pool.run("stacks", "wbe").code == 4
    web.process.kill()
    web.process.wait(60)
    assert len(sockets(pool.runtime)) == 1
    assert pool.run("stacks").code == 6


@pytest.mark.integration
def test_directory_that_others_can_enter_is_refused(serve: Any, until: Any) -> None:
    web = serve()
    pool = web.pool
    until(lambda: sockets(pool.runtime))
    sockets(pool.runtime)[0].parent.chmod(0o755)
    done = pool.run("stacks")
    assert (done.code, "can be entered by others" in done.stderr) == (7, True)


@pytest.mark.integration
@pytest.mark.parametrize("answer", [b"", b"[]\n", b"\xff\n", b'{"name": "web"}\n', b"x" * 600_000])
def test_invalid_answer_is_the_workers_problem(answer: bytes, serve: Any, until: Any) -> None:
    web = serve()
    pool = web.pool
    until(lambda: sockets(pool.runtime))
    (path,) = sockets(pool.runtime)
    web.process.kill()
    web.process.wait(60)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer_once() -> None:
            with listener.accept()[0] as connection, contextlib.suppress(BrokenPipeError):
                connection.sendall(answer)

        thread = threading.Thread(target=answer_once)
        thread.start()
        done = pool.run("stacks", "-o", "json")
        thread.join(60)
    (item,) = done.json["items"]
    assert (done.code, item["pid"], item["threads"]) == (0, web.process.pid, [])
    assert item["problem"].startswith("it gives no valid answer")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A listener whose path is short enough."""
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(tmp_path / "s"))
        found.listen()
        yield found


def read(path: str) -> bytes:
    found = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(path)
        while piece := connection.recv(65536):
            found += piece
    return found


def test_only_the_own_user_and_root_are_answered(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = listener.getsockname()
    uid = 1000
    monkeypatch.setattr("poolctl.features.serve._stacks.peer_credentials", lambda sock: (1, uid, 1))
    monkeypatch.setattr("poolctl.features.serve._stacks.os.geteuid", lambda: 1000)
    stacks = StacksSocket(listener, SPEC)
    stacks.begin()
    assert read(path).startswith(b'{"name": "web"')
    uid = 0
    assert b"Current thread" in read(path)
    uid = 1001
    assert read(path) == b""
    stacks.close()
    wait_until(lambda: not Path(path).exists())
