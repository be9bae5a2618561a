from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from poolctl import __version__, bootstrap
from poolctl.control.answers import PingResult, ProgressLine, Result
from poolctl.control.client import (
    GRACE_SECONDS,
    AsyncClient,
    Client,
    NoSupervisor,
    SupervisorEnded,
    clear_exit,
    connect_error,
    failure_reason,
    raise_for_errors,
    read_exit,
    refusal_error,
    upgrade_options,
    value_of,
    wait_for_exit,
    write_exit,
)
from poolctl.control.pool_lock import user_locks
from poolctl.control.protocol import PROTOCOL
from poolctl.errors import ControlError, PoolError, PoolParamError, PoolStartError, PoolValidateError
from poolctl.exit_codes import NOT_PERMITTED
from tests.processes import freeze
from tests.sandbox import PIDFD_OPEN, run_without
from tests.stand_in import Send, always, item, result, stand_in


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s") / "control.sock"


@contextlib.contextmanager
def listening(
    path: Path, serve: Callable[[socket.socket], None] = lambda listener: None, backlog: int = 8
) -> Iterator[socket.socket]:
    """A socket that listens there, for a supervisor that never answers, or answers as `serve` does."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(backlog)
        server = threading.Thread(target=serve, args=[listener], daemon=True)
        server.start()
        yield listener
        server.join(10)
        assert not server.is_alive()


class OnLoop:
    """An AsyncClient that blocks: each call has a loop of its own."""

    of = AsyncClient

    def __init__(self, path: str, **options: Any) -> None:
        self._client = self.of(path, **options)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **named: asyncio.run(getattr(self._client, name)(*args, **named))


on_both_clients = pytest.mark.parametrize("kind", [Client, OnLoop])


@on_both_clients
def test_a_call_returns_the_result_and_reports_progress_on_the_way(kind: Any, path: Path) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        send({"progress": {"name": "web", "state": "starting"}})
        send({"warning": "slow"})
        return result(item("web"))

    seen: list[dict[str, Any]] = []
    with stand_in(path, answer) as requests:
        document = kind(str(path)).call("start", {"options": {"timeout": 3}}, seen.append, timeout=60)
    assert document["items"][0]["name"] == "web"
    assert [next(iter(message)) for message in seen] == ["progress", "warning"]
    assert requests == [("start", {"options": {"timeout": 3}})]


@on_both_clients
@pytest.mark.slow
def test_an_answer_larger_than_one_read_arrives_whole(kind: Any, path: Path) -> None:
    many = [item(f"server-{number}", number) for number in range(5000)]
    with stand_in(path, always(*many)):
        assert len(kind(str(path)).call("list")["items"]) == 5000


@on_both_clients
def test_no_socket_and_a_stale_socket_both_mean_no_supervisor(kind: Any, path: Path) -> None:
    with pytest.raises(NoSupervisor) as caught:
        kind(str(path)).call("list")
    assert caught.value.exit_code == 6
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pytest.raises(NoSupervisor):
        kind(str(path)).call("list")


@on_both_clients
def test_missing_socket_of_a_pool_that_runs_is_waited_for_and_then_a_conflict(kind: Any, path: Path) -> None:
    lock = user_locks().acquire(str(path.parent))
    with pytest.raises(ControlError) as caught:
        kind(str(path), silence_seconds=0.05).call("list")
    assert (caught.value.exit_code, caught.value.message) == (
        8, f"the pool is running (pid {os.getpid()}), but its control socket {path} is missing",
    )  # fmt: skip
    assert caught.value.hint == f"try again in a moment; kill {os.getpid()} ends the pool"
    waiting = kind(str(path))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(waiting.call, "list")
        with stand_in(path, always(item("web"))):
            assert answer.result(timeout=30)["items"] == [item("web")]
    path.unlink(missing_ok=True)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(waiting.call, "list")
        os.close(lock)
        assert isinstance(answer.exception(timeout=30), NoSupervisor)


@on_both_clients
def test_unusable_socket_path_means_no_supervisor(kind: Any, tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 120), tmp_path / "missing" / "control.sock"):
        with pytest.raises(NoSupervisor):
            kind(str(path)).call("list")


@on_both_clients
@pytest.mark.parametrize("sent", [None, b'HTTP/1.1 200 OK\r\n\r\n{"result": {"it'])
def test_a_supervisor_that_hangs_up_without_a_whole_answer_is_said_to_have_ended(
    kind: Any, path: Path, sent: bytes | None
) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> bytes | None:
        return sent

    with stand_in(path, answer), pytest.raises(SupervisorEnded):
        kind(str(path)).call("start")


@on_both_clients
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("verb", "before"), [("reload", ["generation", "warning"]), ("status", ["generation"])]
)
def test_successor_is_asked_once_more_when_the_supervisor_ends(
    kind: Any, path: Path, verb: str, before: list[str], times: int
) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any] | None:
        if len(requests) <= times:
            send({"generation": 1})
            return None
        return result(item("web"))

    seen: list[dict[str, Any]] = []
    with stand_in(path, answer) as requests:
        if times == 1:
            given = {"selector": {}, "options": {"force": True}}
            assert kind(str(path)).call(verb, given, seen.append, timeout=60)["items"]
            assert requests == [(verb, given)] * 2
            assert [next(iter(message)) for message in seen] == before
        else:
            with pytest.raises(SupervisorEnded):
                kind(str(path)).call(verb)
            assert len(requests) == 2


@on_both_clients
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b'HTTP/1.1 403 Forbidden\r\n\r\n{"error": "this pool belongs to uid 7"}\n', 7),
        (b'HTTP/1.1 404 Not Found\r\n\r\n{"error": "there is no /v1/fly"}\n', 8),
        (b"HTTP/1.1 200 OK\r\n\r\nnot json\n", 8),
        (b"HTTP/1.1 200 OK\r\n\r\n[1]\n", 8),
    ],
)
def test_refusal_is_reported_with_its_reason(kind: Any, path: Path, sent: bytes, code: int) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> bytes:
        return sent

    with stand_in(path, answer), pytest.raises(ControlError) as caught:
        kind(str(path)).call("fly")
    assert caught.value.exit_code == code
    assert caught.value.message


class Patient(Client):
    """A call on it is silent after a moment, and the ping that follows may take its time."""

    def ping(self, timeout: float | None = None) -> PingResult:
        return super().ping(60.0)


class PatientOnLoop(OnLoop):
    class of(AsyncClient):
        async def ping(self) -> PingResult:
            return await AsyncClient(self.socket_path, silence_seconds=60.0).ping()


@pytest.mark.parametrize("kind", [Patient, PatientOnLoop])
def test_a_silent_supervisor_that_still_answers_a_ping_is_waited_for(path: Path, kind: Any) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        if verb == "ping":
            pinged.set()
            return result(version="1")
        await pinged.wait()
        return result(item("web"))

    pinged = asyncio.Event()
    with stand_in(path, answer) as requests:
        assert kind(str(path), silence_seconds=0.05).call("start")["items"]
    assert ("ping", {}) in requests


@pytest.mark.parametrize(
    ("supervisor", "keeper", "message", "hint"),
    [
        ("stopped", "running", "(pid {stopped}) is stopped", "kill -CONT {stopped}"),
        (
            "gone",
            "stopped",
            "the keeper (pid {stopped}), which would restart it, is stopped",
            "kill -CONT",
        ),
        ("gone", "running", "cannot be restarted: No space left", "the keeper tries again"),
        ("gone", "gone", "it has ended", "the servers keep serving"),
    ],
)
def test_silence_is_explained_by_the_states_of_supervisor_and_keeper(
    path: Path, supervisor: str, keeper: str, message: str, hint: str
) -> None:
    (path.parent / "supervisor.log").write_text("began\nNo space left\n\n")
    sleeping = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    pids = {"stopped": sleeping[0].pid, "running": sleeping[1].pid, "gone": 2**22 + 1}
    freeze(pids["stopped"])
    info = {"supervisor_pid": pids[supervisor], "keeper_pid": pids[keeper]}
    (path.parent / "info.json").write_text(json.dumps(info))
    try:
        with listening(path), pytest.raises(ControlError) as caught:
            Client(str(path), silence_seconds=0.05).call("list")
    finally:
        for each in sleeping:
            each.kill()
            each.wait()
    assert message.format(**pids) in caught.value.message
    assert hint.format(**pids) in caught.value.hint


@on_both_clients
def test_a_full_backlog_is_a_conflict(kind: Any, path: Path) -> None:
    with listening(path, backlog=0), socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))
        with pytest.raises(ControlError, match="accepts no commands") as caught:
            kind(str(path), silence_seconds=0.05).call("list")
    assert caught.value.exit_code == 8


def test_late_answer_fails_with_exit_code_124(path: Path) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> None:
        await asyncio.Event().wait()

    async def wait() -> object:
        return [each async for each in AsyncClient(str(path)).messages("wait", timeout=limit)]

    limit = 0.05 - GRACE_SECONDS
    for asks in (lambda: [*Client(str(path)).messages("wait", timeout=limit)], lambda: asyncio.run(wait())):
        with stand_in(path, answer), pytest.raises(ControlError) as caught:
            asks()
        assert caught.value.exit_code == 124


@pytest.mark.parametrize(
    ("code", "kind"), [(1, PoolStartError), (4, PoolParamError), (5, PoolValidateError), (8, ControlError)]
)
def test_a_failed_verb_raises_the_error_of_its_kind(path: Path, code: int, kind: type[Exception]) -> None:
    from poolctl.control.pool_client import PoolClient

    child = {
        "code": 1,
        "error": "E",
        "name": "web",
        "bind": "",
        "message": "exited",
        "hint": "poolctl logs web",
    }
    with stand_in(path, always(exit_code=code, errors=[child])), pytest.raises(kind, match="exited"):
        PoolClient(Client(str(path))).start()


def test_error_has_a_timeout_as_cause_when_the_time_is_over(path: Path) -> None:
    from poolctl.control.pool_client import PoolClient

    late = [{"name": "web", "message": "is still starting"}]
    with stand_in(path, always(exit_code=124, errors=late)), pytest.raises(PoolStartError) as caught:
        PoolClient(Client(str(path))).start(timeout=60)
    assert isinstance(caught.value.exceptions[0].__cause__, TimeoutError)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1, PoolStartError), (2, PoolParamError), (3, PoolStartError), (4, PoolParamError), (5, PoolValidateError),
        (124, PoolStartError),
    ],
)  # fmt: skip
def test_answer_with_several_failures_raises_all_of_them_as_one_error(
    code: int, kind: type[PoolError]
) -> None:
    entries = [{"name": name, "message": f"{name} has failed"} for name in ("web", "api")]
    with pytest.raises(kind) as caught:
        raise_for_errors("start", {"exit_code": code, "errors": entries}, PoolStartError)
    assert str(caught.value).startswith("start failed")
    assert [str(each) for each in caught.value.exceptions] == ["web: web has failed", "api: api has failed"]
    causes = {type(each.__cause__) for each in caught.value.exceptions}
    assert causes == {TimeoutError if code == 124 else type(None)}


def test_failure_without_errors_is_one_error_that_names_the_verb() -> None:
    with pytest.raises(PoolStartError) as caught:
        raise_for_errors("start", {"exit_code": 1}, PoolStartError)
    assert [str(each) for each in caught.value.exceptions] == ["start failed"]


def test_answer_is_returned_if_its_code_is_among_the_accepted_ones() -> None:
    for document in ({}, {"exit_code": 0}):
        assert raise_for_errors("list", document, PoolStartError) is document
    different = {"exit_code": 3}
    assert raise_for_errors("status", different, PoolStartError, (0, 3)) is different
    with pytest.raises(PoolStartError):
        raise_for_errors("status", different, PoolStartError)


@pytest.mark.parametrize(
    ("errors", "hint"), [([], ""), ([{"message": "taken", "hint": "choose another"}], "choose another")]
)
def test_conflict_keeps_its_code_and_its_hint(errors: list[dict[str, str]], hint: str) -> None:
    with pytest.raises(ControlError) as caught:
        raise_for_errors("add", {"exit_code": 8, "errors": errors}, PoolStartError)
    assert (caught.value.exit_code, caught.value.hint) == (8, hint)


FATAL = "Fatal Python error: init_fs_encoding: failed to get the Python codec of the filesystem encoding"
PYTHON = f"""\
Python path configuration:
  PYTHONHOME = '/nowhere'
  sys.path = [
    '/nowhere/lib/python3.11',
  ]
{FATAL}
Python runtime state: core initialized
ModuleNotFoundError: No module named 'encodings'

Current thread 0x00007f6f8f1b8740 (most recent call first):
  <no Python frame>
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PYTHON, f"{FATAL}: ModuleNotFoundError: No module named 'encodings'"),
        (f"EarlierError: x\n{FATAL}\n", FATAL),
        (PYTHON + "later\n" * 12, "later"),
        (
            "Traceback (most recent call last):\n  File …\nImportError: no pydantic\n\n",
            "ImportError: no pydantic",
        ),
        ("out of memory", "out of memory"),
        ("", ""),
    ],
)
def test_reason_is_the_interpreters_error_or_the_last_line(tmp_path: Path, text: str, words: str) -> None:
    log = tmp_path / "supervisor.log"
    assert failure_reason(str(log)) == ""
    log.write_text(text)
    assert failure_reason(str(log)) == words


def test_reason_is_looked_for_from_a_position_on_unless_the_log_was_emptied(tmp_path: Path) -> None:
    log = tmp_path / "supervisor.log"
    log.write_text("of an earlier one\n")
    end = log.stat().st_size
    assert failure_reason(str(log), end) == ""
    log.write_text("of an earlier one\nthis one\n")
    assert failure_reason(str(log), end) == "this one"
    log.write_text("the reason\n")
    assert failure_reason(str(log), end) == "the reason"


def test_end_of_a_process_is_awaited_within_the_limit() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert not wait_for_exit(process.pid, 0.01)
        process.kill()
        assert wait_for_exit(process.pid, 60)
    assert wait_for_exit(process.pid, 0)
    assert wait_for_exit(0, 0)


def test_exit_of_a_pool_is_read_until_it_is_cleared(tmp_path: Path) -> None:
    assert read_exit(str(tmp_path)) == {}
    write_exit(str(tmp_path), status=3, reason="web failed", keeper_pid=7)
    assert read_exit(str(tmp_path)) == {"status": 3, "reason": "web failed", "keeper_pid": 7}
    clear_exit(str(tmp_path))
    clear_exit(str(tmp_path))
    assert read_exit(str(tmp_path)) == {}


def test_request_is_http_with_its_host_type_and_length(path: Path) -> None:
    client = Client(str(path))
    with (
        listening(path) as listener,
        client.open("list", {"options": {}}),
        listener.accept()[0] as connection,
    ):
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v1/list HTTP/1.0"
    assert sorted(lines[1:]) == [
        f"Content-Length: {len(body)}",
        "Content-Type: application/json",
        "Host: poolctl",
    ]
    assert json.loads(body) == {"options": {}}


def test_ping_gives_up_after_its_own_limit(path: Path) -> None:
    with listening(path):
        begun = time.monotonic()
        for limit, client in ((0.05, Client(str(path))), (None, Client(str(path), silence_seconds=0.05))):
            with pytest.raises(ControlError, match=r"has not answered for 0\.05 s") as caught:
                client.ping(limit)
            assert caught.value.exit_code == 8
        assert time.monotonic() - begun < 8


@on_both_clients
@pytest.mark.parametrize("ended", [1, 2])
def test_ping_asks_the_next_supervisor_if_the_first_ends(kind: Any, path: Path, ended: int) -> None:
    def serve(listener: socket.socket) -> None:
        for turn in range(2):
            with listener.accept()[0] as connection:
                connection.recv(65536)
                if turn >= ended:
                    body = json.dumps({"result": {"version": "1.2.3", "protocol": PROTOCOL}}).encode()
                    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + body + b"\n")

    with listening(path, serve):
        if ended == 1:
            assert kind(str(path)).ping().version == "1.2.3"
        else:
            with pytest.raises(SupervisorEnded):
                kind(str(path)).ping()


def test_refused_ping_says_why(path: Path) -> None:
    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(b'HTTP/1.0 403 Forbidden\r\n\r\n{"error": "this pool belongs to uid 7"}\n')

    with listening(path, serve), pytest.raises(ControlError, match="this pool belongs to uid 7") as caught:
        Client(str(path)).ping()
    assert caught.value.exit_code == NOT_PERMITTED


@pytest.mark.parametrize(
    ("version", "which"),
    [("0.0.1", "poolctl 0.0.1"), (__version__, f"an earlier build of poolctl {__version__}")],
)
def test_pool_of_too_old_a_version_is_not_upgraded(path: Path, version: str, which: str) -> None:
    about = {"version": version, "protocol": PROTOCOL - 1, "files": ["/srv/my pool.toml", "/srv/dev.toml"]}
    with stand_in(path, always(**about)) as requests, pytest.raises(ControlError) as caught:
        Client(str(path)).upgrade(force=False)
    assert [verb for verb, _ in requests] == ["ping"]
    assert caught.value.message == (f"the pool runs {which}, which is too old for {__version__} to take over")
    assert caught.value.exit_code == 8
    assert caught.value.hint == (
        "poolctl stop -c '/srv/my pool.toml' -c /srv/dev.toml && "
        "poolctl start -c '/srv/my pool.toml' -c /srv/dev.toml (the servers pause)"
    )


UPGRADES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {}, ""),
    ({"upgraded_from": 0}, {}, ""),
    ({"exit_code": 8, "upgraded_from": 10**9}, {}, ""),
    ({"upgraded_from": 10**9}, {}, "list"),
    ({"upgraded_from": 10**9}, {"version": "0.0.1"}, "the pool still runs poolctl 0.0.1"),
]


@pytest.fixture
def successor() -> Iterator[int]:
    """The pid of a process whose command line is that of a supervisor of this version."""
    argv = [sys.executable, "-c", "import time; time.sleep(60)", bootstrap.__file__]
    with subprocess.Popen(argv) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize(("answer", "about", "outcome"), UPGRADES)
def test_upgrade_is_done_when_another_supervisor_of_this_version_answers(
    path: Path, successor: int, answer: dict[str, Any], about: dict[str, Any], outcome: str
) -> None:
    about = {"supervisor_pid": os.getpid() if "version" in about else successor, **about}

    async def reply(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        if verb == "upgrade":
            return result(**answer)
        after = len(requests) > 1
        return result(
            item("web"), **{"version": __version__, "protocol": PROTOCOL, **(about if after else {})}
        )

    with stand_in(path, reply) as requests:
        if outcome in ("", "list"):
            found = Client(str(path)).upgrade(force=True)
            assert [each.name for each in found.items] == (["web"] if outcome else [])
            assert found.exit_code == answer.get("exit_code", 0)
        else:
            with pytest.raises(ControlError, match=outcome) as caught:
                Client(str(path)).upgrade(force=False)
            assert (caught.value.exit_code, "supervisor.log" in caught.value.hint) == (1, True)
    verb, body = requests[1]
    assert (verb, body["options"]["version"], body["options"]["protocol"]) == (
        "upgrade",
        __version__,
        PROTOCOL,
    )
    assert body["options"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert body["options"]["force"] is (outcome in ("", "list"))
    if outcome == "list":
        assert requests[-1][1]["options"] == {"counts": True}


def test_successor_is_asked_once_the_previous_supervisor_has_exited(path: Path, successor: int) -> None:
    has_exited: list[bool] = []
    with subprocess.Popen(["sleep", "60"]) as previous:

        async def reply(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
            if verb == "upgrade":
                asyncio.get_running_loop().call_later(0.05, previous.kill)
                return result(upgraded_from=previous.pid)
            has_exited.append(previous.poll() is not None)
            return result(version=__version__, protocol=PROTOCOL, supervisor_pid=successor)

        with stand_in(path, reply):
            Client(str(path)).upgrade(force=True)
        previous.kill()
    assert has_exited == [False, True, True]


def test_upgrade_of_a_pool_that_ends_meanwhile_fails_at_once(path: Path) -> None:
    async def reply(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        if verb == "upgrade":
            os.unlink(path)
        return result(version=__version__, protocol=PROTOCOL, upgraded_from=10**9)

    begun = time.monotonic()
    with stand_in(path, reply), pytest.raises(NoSupervisor):
        Client(str(path)).upgrade(force=True)
    assert time.monotonic() - begun < 20


def test_upgrade_names_this_version_and_the_commands_of_its_processes() -> None:
    assert upgrade_options() == {
        "version": __version__,
        "protocol": PROTOCOL,
        "build": bootstrap.installed_build(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "keeper": [sys.executable, "-I", bootstrap.__file__, "keeper"],
        "supervisor": [sys.executable, "-P", bootstrap.__file__, "supervisor"],
    }


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_end_is_awaited_without_pidfd_open_too(number: int) -> None:
    def work() -> None:
        with subprocess.Popen(["sleep", "60"]) as process:
            assert not wait_for_exit(process.pid, 0.01)
            process.kill()
            assert wait_for_exit(process.pid, 60)
        assert wait_for_exit(process.pid, 0)

    run_without({PIDFD_OPEN: number}, work)


def test_waiting_for_an_end_is_bounded() -> None:
    lasting = subprocess.Popen(["sleep", "60"])
    try:
        assert not wait_for_exit(lasting.pid, 0.01)
    finally:
        lasting.kill()
        lasting.wait()
    assert wait_for_exit(lasting.pid, 0.01)


def caught_by(client: Client, verb: str = "list", **options: Any) -> ControlError:
    with pytest.raises(ControlError) as caught:
        client.call(verb, **options)
    return caught.value


def test_error_of_a_connection_names_its_cause_and_the_remedy(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POOLCTL_RUNTIME_DIR", raising=False)
    own = "run poolctl as the user who started the pool"
    busy = "the supervisor accepts no commands: too many are waiting already"
    cases: list[tuple[OSError, str, int, str]] = [
        (TimeoutError(), busy, 8, "the servers keep serving; try again"),
        (BlockingIOError(), busy, 8, "the servers keep serving; try again"),
        (PermissionError(), f"not permitted to use {path}", 7, own),
        (FileNotFoundError(), "no supervisor is running for this pool", 6, "poolctl start"),
        (NotADirectoryError(), "no supervisor is running for this pool", 6, "poolctl start"),
        (ConnectionRefusedError(), "no supervisor is running for this pool", 6, "poolctl start"),
        (OSError("path too long"), "no supervisor is running for this pool", 6, "poolctl start"),
        (OSError(24, "too many"), f"cannot use {path}: [Errno 24] too many", 8, ""),
    ]
    for error, message, code, hint in cases:
        found = connect_error(str(path), error)
        assert (found.message, found.exit_code, found.hint) == (message, code, hint)
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", "/run/x")
    assert connect_error(str(path), PermissionError()).hint == (
        f"{own}, or set POOLCTL_RUNTIME_DIR to a directory of your own"
    )


def test_answer_that_is_no_http_or_no_document_is_not_understood(path: Path) -> None:
    for sent in (b"no http\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nnot json\n", b"HTTP/1.1 200 OK\r\n\r\n[1]\n"):

        async def answer(verb: str, body: dict[str, Any], send: Send, sent: bytes = sent) -> bytes:
            return sent

        with stand_in(path, answer):
            error = caught_by(Client(str(path)))
        assert (error.message, error.exit_code, error.hint) == (
            "the supervisor's answer is not understood", 8,
            "poolctl pools shows its version, poolctl --version that of the command",
        )  # fmt: skip
        path.unlink(missing_ok=True)


def test_refusals_have_a_message_a_code_and_a_hint() -> None:
    own = refusal_error(403, "list", {"error": "this pool belongs to uid 7"})
    assert (own.message, own.exit_code, own.hint) == (
        "this pool belongs to uid 7", 7, "run poolctl as the user who started the pool",
    )  # fmt: skip
    other = refusal_error(500, "list", {})
    assert (other.message, other.exit_code, other.hint) == (
        "the supervisor refused 'list': HTTP status 500", 8,
        "it may be of another version: poolctl pools shows it, poolctl --version that of the command",
    )  # fmt: skip


@pytest.mark.parametrize("document", [None, [], "x", {"name": 3}])
def test_answer_of_another_form_is_not_understood(document: Any) -> None:
    with pytest.raises(ControlError, match="the supervisor's answer is not understood"):
        value_of(PingResult, document)


@on_both_clients
def test_typed_answer_comes_with_typed_progress(kind: Any, path: Path) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        send({"warning": "slow"})
        return result(item("web"))

    seen: list[ProgressLine] = []
    with stand_in(path, answer) as requests:
        found = kind(str(path)).ask(Result, "list", {"options": {"a": 1}}, seen.append)
        assert kind(str(path)).ask(Result, "list").items == found.items
    assert ([each.name for each in found.items], seen) == (["web"], [ProgressLine(warning="slow")])
    assert requests == [("list", {"options": {"a": 1}}), ("list", {})]


def test_command_that_is_asked_again_says_so_and_is_not_asked_with_more_time(path: Path) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any] | None:
        return result() if len(requests) == 2 else None

    seen: list[dict[str, Any]] = []
    with stand_in(path, answer) as requests:
        Client(str(path)).call("reload", None, seen.append)
    assert seen == [
        {"warning": "the supervisor was replaced during the reload, and the next one was asked again"}
    ]
    assert requests == [("reload", {})] * 2


def test_request_that_the_supervisor_does_not_read_is_a_conflict(path: Path) -> None:
    with listening(path):
        error = caught_by(Client(str(path), silence_seconds=0.02), body={"big": "x" * 10_000_000})
    assert (error.message, error.exit_code, error.hint) == (
        "the supervisor accepts no commands",
        8,
        "try again",
    )


def test_answer_that_was_sent_before_the_request_was_read_is_returned(path: Path) -> None:
    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            connection.sendall(b'HTTP/1.0 413 Large\r\n\r\n{"error": "too large"}\n')
            connection.shutdown(socket.SHUT_RD)

    with listening(path, serve):
        error = caught_by(Client(str(path)), body={"big": "x" * 10_000_000})
    assert error.message == "the supervisor refused 'list': too large"


@on_both_clients
def test_silence_is_reported_by_its_own_message(kind: Any, path: Path) -> None:
    with listening(path):
        error = caught_by(kind(str(path), silence_seconds=0.02))
    assert (error.message, error.exit_code) == ("the supervisor has not answered for 0.02 s", 8)
    assert error.hint == f"the servers keep serving; check the process that listens on {path}"


def test_call_ends_when_the_reader_of_its_output_is_gone(path: Path) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> None:
        await asyncio.Event().wait()

    read, write = os.pipe()
    os.close(read)
    with stand_in(path, answer), pytest.raises(BrokenPipeError):
        Client(str(path), output=write).call("events")
    os.close(write)


def test_call_with_an_output_is_answered_and_pings_a_silent_supervisor(path: Path) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        if verb == "ping":
            pinged.set()
            return result(version="1")
        await pinged.wait()
        return result(item("web"))

    pinged = asyncio.Event()
    read, write = os.pipe()
    with stand_in(path, answer) as requests:
        assert Patient(str(path), output=write, silence_seconds=0.05).call("list")["items"]
    os.close(read)
    os.close(write)
    assert requests[0] == ("list", {})
    assert {verb for verb, _ in requests[1:]} == {"ping"}


def test_exit_that_cannot_be_recorded_is_left_out(tmp_path: Path) -> None:
    write_exit(str(tmp_path / "gone"), status=3, reason="web failed", keeper_pid=7)
    assert read_exit(str(tmp_path / "gone")) == {}


def test_result_ends_the_messages_even_if_more_would_follow(path: Path) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> bytes:
        return b'HTTP/1.1 200 OK\r\n\r\n{"result": {"a": 1}}\n{"result": {"a": 2}}\n{"generation": 1}\n'

    with stand_in(path, answer):
        assert [*Client(str(path)).messages("list")] == [{"result": {"a": 1}}]
        assert repr(Client(str(path))) == f"<Client {path}>"
