"""`poolctl stacks` asks the processes of `poolctl serve` where no supervisor runs."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from poolctl.features.serve._stacks_client import socket_path, stacks_in
from tests.configuration import server
from tests.real_pool import RealPool

HEAD = b'{"name": "web", "pid": 42, "directories": [], "thread": "poolctl stacks"}'


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
def test_without_a_runtime_directory_it_serves_without_stacks(
    serve: Any, until: Any, real_pool: RealPool, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    real_pool.env["POOLCTL_RUNTIME_DIR"] = str(tmp_path / "file")
    web = serve()
    until(lambda: web.health() == (200, "ok"))
    assert real_pool.run("stacks").code == 6


@pytest.mark.integration
def test_import_that_hangs_is_shown_and_the_socket_goes_with_the_process(serve: Any, until: Any) -> None:
    web = serve(waits=True)
    pool = web.pool
    done = until(lambda: "<module> (application.py:" in (said := pool.run("stacks")).stdout and said)
    assert (done.code, done.stdout.startswith(f"web (pid {web.process.pid})\n  main thread:\n")) == (0, True)
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
    with (pool.directory / "pool.toml").open("a") as file:
        file.write(server("other", bind="127.0.0.1:1", app="a:b"))
    assert pool.ok("stacks", "other", "-o", "name").stdout == ""
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


@contextmanager
def answering(directory: Path, answer: bytes) -> Iterator[None]:
    """A process whose socket gives this answer, once."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path(str(directory), 42))
        listener.listen()

        def answer_once() -> None:
            with listener.accept()[0] as connection, contextlib.suppress(ConnectionError):
                connection.sendall(answer)

        thread = threading.Thread(target=answer_once)
        thread.start()
        yield
        thread.join(60)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.mark.parametrize(
    "answer", [b"", b"[]\n", b"\xff\n", b'{"name": "web"}\n', HEAD + b"\n" + b"x" * 600_000]
)
def test_invalid_answer_is_the_workers_problem(answer: bytes, directory: Path) -> None:
    with answering(directory, answer):
        (found,) = stacks_in(str(directory))
    assert (found.pid, found.threads) == (42, ())
    assert found.problem.startswith("it gives no valid answer")


def test_process_without_stacks_has_its_name(directory: Path) -> None:
    with answering(directory, HEAD + b"\n"):
        (found,) = stacks_in(str(directory))
    assert (found.name, found.worker, found.pid, found.source, found.problem) == ("web", "web", 42, "", "")


@pytest.mark.slow
def test_answer_that_is_not_complete_within_five_seconds_is_given_up(directory: Path) -> None:
    given_up = threading.Event()

    def answer_slowly() -> None:
        with listener.accept()[0] as connection:
            while not given_up.wait(3):
                connection.sendall(HEAD)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path(str(directory), 42))
        listener.listen()
        thread = threading.Thread(target=answer_slowly)
        thread.start()
        began = monotonic()
        (found,) = stacks_in(str(directory))
        assert monotonic() - began >= 5
        given_up.set()
        thread.join(60)
    assert (found.worker, found.problem) == ("serve 42", "it does not answer within 5 s")


@pytest.mark.parametrize(
    ("length", "problem"),
    [(512 * 1024, ""), (512 * 1024 + 1, "it gives no valid answer: more than 524288 bytes")],
)
def test_answer_has_at_most_half_a_megabyte(length: int, problem: str, directory: Path) -> None:
    with answering(directory, (HEAD + b"\n").ljust(length, b"x")):
        (found,) = stacks_in(str(directory))
    assert found.problem == problem


def test_other_files_and_missing_directories_have_no_processes(directory: Path) -> None:
    (directory / "serve-42.log").touch()
    (directory / "control.sock").touch()
    assert stacks_in(str(directory)) == stacks_in(str(directory / "none")) == []
