"""The trial of a takeover: the small pool that it makes, what it asks of it, and what it reports."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.control.client import Client
from poolctl.errors import ControlError
from poolctl.feature import features
from poolctl.supervisor import takeover_trial
from poolctl.supervisor.launch import LaunchedKeeper
from poolctl.supervisor.takeover.state_store import StoredConfiguration, encoded
from poolctl.supervisor.takeover_trial import TrialFailed, print_takeover_check, try_takeover, try_takeover_by
from tests.stand_in import Send, item, result, stand_in

VERSION: dict[str, Any] = {"version": "9.9", "keeper": ["k"]}


class Answering:
    """An application on a Unix socket, which answers each request with this status."""

    def __init__(self, path: str, status: int = 200) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self.status = status
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                if not connection.recv(65536):
                    return
                if self.status:
                    connection.sendall(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % self.status)

    def end(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(path)
        self._thread.join()
        self._listener.close()


class Trial:
    """A trial whose small pool is a stand-in; `answers` of verbs replace the usual ones."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.answers: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.place = Path("/")
        self.configuration: dict[str, Any] = {}
        self.env: dict[str, str] = {}
        self.modes: dict[str, int] = {}
        self.status = 200
        self.log_line = "a line\n"
        self.lifeline = -1
        self.killed: list[float] = []
        self._left = contextlib.ExitStack()

    def launch(self, files: Sequence[str], env: dict[str, str], *, lifeline: bool) -> LaunchedKeeper:
        assert lifeline
        (file,) = map(Path, files)
        self.place, self.env = file.parent, env
        self.configuration = json.loads(file.read_text())
        self.modes = {path.name: path.stat().st_mode & 0o777 for path in self.place.iterdir()}
        self.modes["."] = self.place.stat().st_mode & 0o777
        directory = Path(
            takeover_trial.pool_paths.pool_dir(env, takeover_trial.pool_paths.pool_key(str(file)))
        )
        (directory / "state" / "logs").mkdir(parents=True)
        (directory / "state" / "logs" / "a.log").write_text("of before\n")
        (directory / "supervisor.log").write_text("something\nOSError: no space\n")
        self.directory = directory
        seen = self._left.enter_context(stand_in(directory / "control.sock", self._answer))
        self.requests = seen
        for path in [
            each["bind"].removeprefix("unix:") for each in self.configuration["server"] if "bind" in each
        ]:
            app = Answering(path, self.status)
            self._left.callback(app.end, path)
        self.lifeline = os.open("/dev/null", os.O_RDONLY)
        return LaunchedKeeper(4711, self.lifeline)

    async def _answer(self, verb: str, body: dict[str, Any], send: Send) -> dict[str, Any] | None:
        usual: dict[str, Any] = {
            "ping": {"version": "9.9", "keeper_pid": os.getpid()},
            "upgrade": {"upgraded_from": 2**22},
            "list": {"items": [item("web", pids=[7])]},
        }
        if verb == "stop":
            (self.directory / "state" / "logs" / "a.log").write_text(self.log_line)
        if verb in self.answers:
            found = self.answers[verb]
            return None if found.get("hang_up") else result(**found)
        given = usual.get(verb, {})
        items = given.pop("items", [])
        return result(*items, **given)

    def end(self, seconds: float) -> None:
        self.killed.append(seconds)
        self._left.close()

    @property
    def verbs(self) -> list[str]:
        return [verb for verb, _ in self.requests]


@pytest.fixture
def trial(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    root = short_path
    made = Trial(root / "kept")
    monkeypatch.setattr(takeover_trial, "_writable_temporary_directories", lambda: [str(root)])
    monkeypatch.setattr(takeover_trial, "launch", made.launch)
    monkeypatch.setattr(takeover_trial, "wait_or_kill_children", made.end)
    monkeypatch.setattr(takeover_trial, "become_subreaper", lambda: None)
    monkeypatch.setattr(takeover_trial, "children", lambda pid: [])
    before = signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGTERM)
    yield made
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before[0])
    signal.signal(signal.SIGTERM, before[1])


def app(name: str, **keys: Any) -> ServerConfig:
    return ServerConfig(name=name, bind=":1", app="a:b", python="/usr/bin/python3", **keys)


def servers() -> list[ServerConfig]:
    return [
        app("web", http={"websocket": "none"}),
        app("same", http={"websocket": "none", "keep_alive": 3}),
        app("other", env={"PYTHONUTF8": "1", "KEY": "x"}),
        ServerConfig(name="program", bind=":4", command=["sleep", "1"]),
    ]


def test_small_pool_is_asked_upgraded_restarted_and_stopped_and_leaves_nothing(
    trial: Trial,
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    try_takeover(servers(), VERSION, str(trial.logs))
    own = [feature.trial.verb for feature in features() if feature.trial is not None]
    assert trial.verbs == [
        "start", "list", "ping", "upgrade", "ping", "list", "ping", "restart", *own, "stop",
    ]  # fmt: skip
    assert trial.requests[3][1]["options"] == {**VERSION, "tried": True}
    assert not trial.place.exists()
    assert not trial.logs.exists()
    assert trial.killed == [takeover_trial._END_SECONDS]
    assert signal.alarm(0) == 0
    assert set(os.listdir("/proc/self/fd")) == before


def test_small_pool_has_a_server_of_each_kind_a_program_and_the_tables_of_features(
    trial: Trial,
) -> None:
    try_takeover(servers(), VERSION, str(trial.logs))
    *apps, program = trial.configuration.pop("server")
    web, other = apps
    assert (web["name"], web["python"], web["http"], web["env"]) == (
        "web",
        "/usr/bin/python3",
        {"websocket": "none"},
        {},
    )
    assert (other["name"], other["env"]) == ("other", {"PYTHONUTF8": "1"}), "no other variable gets into it"
    assert [each["bind"] for each in apps] == [f"unix:{trial.place}/0.sock", f"unix:{trial.place}/1.sock"]
    assert all((each["app"], each["app_dir"]) == ("trial:app", str(trial.place)) for each in apps)
    assert "user" not in web
    assert (program["name"], program["job"], program["command"][0]) == ("a-program", True, sys.executable)
    assert trial.configuration.keys() == {
        name for feature in features() if feature.trial for name in feature.trial.tables
    }
    assert trial.modes == {"trial.py": 0o644, "pool.json": 0o600, ".": 0o755}


def test_server_of_another_user_is_one_of_another_kind(trial: Trial) -> None:
    own = servers()[:1]
    try_takeover([*own, own[0].with_values(name="nobody", user="nobody")], VERSION, str(trial.logs))
    assert [each.get("user") for each in trial.configuration["server"][:-1]] == [None, "nobody"]


def test_names_in_the_small_pool_differ_whatever_the_servers_are_called(trial: Trial) -> None:
    try_takeover([app("a-program")], VERSION, str(trial.logs))
    assert [each["name"] for each in trial.configuration["server"]] == ["a-program", "a-program-2"]


def test_no_secret_of_the_environment_gets_into_the_small_pool(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("API_KEY", "LC_TIME", "PYTHONUTF8"):
        monkeypatch.setenv(name, "x")
    try_takeover(servers(), VERSION, str(trial.logs))
    assert "API_KEY" not in trial.env
    assert {"PATH", "LC_TIME", "PYTHONUTF8"} <= trial.env.keys()
    assert trial.env["POOLCTL_RUNTIME_DIR"] == str(trial.place)


def failure(trial: Trial) -> str:
    """Why the trial fails; its logs are kept, and nothing else."""
    with pytest.raises(TrialFailed) as caught:
        try_takeover(servers(), VERSION, str(trial.logs))
    assert not trial.place.exists()
    assert sorted(path.name for path in trial.logs.iterdir()) == ["a.log", "supervisor.log"]
    text = str(caught.value)
    end = f" (its logs are in {trial.logs})"
    assert text.endswith(end)
    return text.removesuffix(end)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"ping": {"version": "1.0", "keeper_pid": 1}}, "the takeover failed: OSError: no space"),
        ({"start": {"hang_up": True}}, "no supervisor answers 'start': OSError: no space"),
        ({"restart": {"errors": [{"code": 1, "name": "web", "message": "ended", "hint": "see log"}]}}, "web: ended"),
        ({"restart": {"errors": [{"code": 1, "message": "exited", "hint": "poolctl logs"}]}}, "exited"),
        ({"stop": {"errors": [{"code": 1, "message": "no", "hint": "install it"}]}}, "no; install it"),
        ({"upgrade": {"errors": [{"code": 1, "message": "x" * 900, "hint": "see it"}]}}, "x" * 500),
    ],
)  # fmt: skip
def test_failure_has_its_reason_and_the_logs(
    trial: Trial, answers: dict[str, dict[str, Any]], reason: str
) -> None:
    trial.answers = answers
    assert failure(trial) == reason


def test_failed_start_under_this_version_is_no_failure(trial: Trial) -> None:
    trial.answers = {"start": {"errors": [{"code": 1, "message": "not ready"}], "exit_code": 1}}
    try_takeover(servers(), VERSION, str(trial.logs))


def test_workers_that_were_not_kept_are_a_failure(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = iter([{"web": (7,)}, {"web": (8,)}])
    monkeypatch.setattr(takeover_trial._SmallPool, "pids", lambda self: next(pids))
    assert failure(trial) == "the takeover did not keep the workers"


def test_worker_that_answers_with_another_status_is_a_failure(trial: Trial) -> None:
    trial.status = 503
    assert failure(trial) == "web: its worker answers with status 503"


def test_worker_that_does_not_answer_is_a_failure(trial: Trial) -> None:
    trial.status = 0
    assert failure(trial).startswith("web: its worker does not answer: ")


def test_output_that_is_not_logged_is_a_failure(trial: Trial) -> None:
    trial.log_line = ""
    assert failure(trial) == "the output of workers is not logged"


def test_pool_without_apps_need_not_log_anything(trial: Trial) -> None:
    trial.log_line = ""
    try_takeover([], VERSION, str(trial.logs))
    assert [each["name"] for each in trial.configuration["server"]] == ["a-program"]


def test_launch_that_is_refused_is_a_failure(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> LaunchedKeeper:
        raise ControlError("too few open files", exit_code=7)

    monkeypatch.setattr(takeover_trial, "launch", refuse)
    with pytest.raises(TrialFailed, match="too few open files"):
        try_takeover(servers(), VERSION, str(trial.logs))


def test_trial_that_takes_too_long_fails(trial: Trial) -> None:
    def late(files: Sequence[str], env: dict[str, str], *, lifeline: bool) -> LaunchedKeeper:
        assert signal.alarm(0) > 0
        signal.raise_signal(signal.SIGALRM)
        raise AssertionError("it went on")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(takeover_trial, "launch", late)
        with pytest.raises(TrialFailed, match="it did not end within 60 s"):
            try_takeover(servers(), VERSION, str(trial.logs))


def test_processes_of_the_previous_version_that_help_are_killed(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[tuple[int, int]] = []
    lines = {71: "python\0-m\0logs", 72: "python\0features.gateway", 73: "python\0worker"}
    opened: Callable[..., Any] = open

    def read(path: Any, *args: Any, **options: Any) -> Any:
        pid = str(path).removeprefix("/proc/").removesuffix("/cmdline")
        return (
            io.StringIO(lines[int(pid)])
            if pid.isdigit() and int(pid) in lines
            else opened(path, *args, **options)
        )

    monkeypatch.setattr(takeover_trial, "open", read, raising=False)
    monkeypatch.setattr(takeover_trial, "children", lambda pid: [*lines, 2**22])
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    try_takeover(servers(), VERSION, str(trial.logs))
    assert sorted(killed) == [(71, signal.SIGKILL), (72, signal.SIGKILL)]


def test_directories_of_killed_trials_are_removed_and_those_in_use_are_not(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover_trial, "_writable_temporary_directories", lambda: [str(tmp_path)])
    old = time.time() - takeover_trial.LIMIT_SECONDS - 10
    places = {name: tmp_path / f"poolctl-trial-{name}" for name in ("old", "new", "used")}
    for name, place in places.items():
        place.mkdir()
        (place / "file").touch()
        if name != "new":
            os.utime(place, (old, old))
    (tmp_path / "other").mkdir()
    lock = os.open(places["used"], os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    before = set(os.listdir("/proc/self/fd"))
    takeover_trial._remove_abandoned()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other",
        "poolctl-trial-new",
        "poolctl-trial-used",
    ]
    assert set(os.listdir("/proc/self/fd")) == before
    os.close(lock)


def test_place_is_locked_and_open_to_other_users(trial: Trial) -> None:
    place, lock = takeover_trial._make_locked_directory()
    other = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert (os.stat(place).st_mode & 0o777, Path(place).name.startswith("poolctl-trial-")) == (0o755, True)
    os.close(lock)
    os.close(other)
    os.rmdir(place)


def test_place_is_in_a_directory_with_a_short_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(tmp_path / "run"))
    assert takeover_trial._writable_temporary_directories()[0] == "/tmp"
    long = tmp_path / ("x" * takeover_trial._LONGEST)
    long.mkdir(mode=0o700)
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(long))
    assert str(long) not in takeover_trial._writable_temporary_directories()
    monkeypatch.setattr(takeover_trial.pool_paths, "ensure_runtime_root", lambda env: str(long))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert takeover_trial._writable_temporary_directories() == [str(long)], "there is no other"


Stdin = Callable[[bytes], None]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Stdin:
    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    return give


@pytest.fixture
def pool_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POOLCTL_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "pool.toml"
    path.write_text('[[server]]\nname = "web"\nbind = "127.0.0.1:8081"\ncommand = ["sleep", "1"]\n')
    return path


def stored(*found: ServerConfig) -> bytes:
    return encoded(StoredConfiguration("shop", [*found]))


def test_configuration_in_force_is_tried(
    stdin: Stdin, pool_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(takeover_trial, "try_takeover", lambda *given: tried.append(given))
    monkeypatch.setattr(takeover_trial, "_import_everything", lambda: tried.append("imports"))
    stdin(stored(ServerConfig(name="web", bind=":1", command=["sleep", "1"])))
    assert print_takeover_check([str(pool_file)]) is None
    answer = json.loads(capsys.readouterr().out)
    assert (answer["problem"], answer["errors"]) == ("", [])
    imports, (given, options, logs) = tried
    assert (imports, [each.name for each in given], options["keeper"][0]) == (
        "imports",
        ["web"],
        sys.executable,
    )
    assert logs.startswith(str(pool_file.parent / "state"))
    assert logs.endswith("/upgrade-trial")
    monkeypatch.setenv(takeover_trial.TRIED, "1")
    stdin(stored())
    assert print_takeover_check([str(pool_file)]) is None
    assert tried[2:] == ["imports"], "the previous version has tried it"


def test_failed_trial_is_the_error_of_the_check(
    stdin: Stdin, pool_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise TrialFailed("no worker")

    monkeypatch.setattr(takeover_trial, "try_takeover", fail)
    monkeypatch.setattr(takeover_trial, "_import_everything", lambda: None)
    stdin(stored())
    assert print_takeover_check([str(pool_file)]) == "no worker"
    assert capsys.readouterr().out == ""
    stdin(stored())
    assert try_takeover_by('{"version": "9"}', str(pool_file)) == "no worker"


def test_configuration_that_is_not_understood_is_read_from_the_files(
    stdin: Stdin, pool_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(takeover_trial, "try_takeover", lambda *given: tried.append(given))
    monkeypatch.setattr(takeover_trial, "_import_everything", lambda: None)
    stdin(b"nonsense")
    assert print_takeover_check([str(pool_file)]) is None
    answer = json.loads(capsys.readouterr().out)
    assert answer["problem"]
    assert [each.name for each in tried[0][0]] == ["web"]
    pool_file.write_text('[[server]]\nname = "web"\nbinf = "x"\n')
    stdin(b"nonsense")
    assert print_takeover_check([str(pool_file)]) is None
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert any("unknown key 'binf'" in each["message"] for each in errors)
    pool_file.write_text("broken [")
    stdin(b"nonsense")
    assert print_takeover_check([str(pool_file)]) is None
    assert len(json.loads(capsys.readouterr().out)["errors"]) == 1
    assert len(tried) == 1, "wrong files are not tried"


def test_trial_by_another_version_has_its_options(
    stdin: Stdin, pool_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(takeover_trial, "try_takeover", lambda *given: tried.append(given))
    stdin(stored(ServerConfig(name="web", bind=":1", command=["sleep", "1"])))
    assert try_takeover_by('{"version": "9"}', str(pool_file)) is None
    ((given, options, _),) = tried
    assert ([each.name for each in given], options) == (["web"], {"version": "9"})


@pytest.mark.parametrize(
    ("name", "missing", "refused"),
    [
        ("poolctl.core.x", "yaml", True), ("poolctl.features.x", "yaml", False),
        ("poolctl.features.x", "poolctl.y", True),
        ("poolctl.worker.x", "yaml", False), ("poolctl.logs.__main__", "yaml", False),
    ],
)  # fmt: skip
def test_library_that_only_a_feature_needs_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, name: str, missing: str, refused: bool
) -> None:
    def fail(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(takeover_trial.pkgutil, "walk_packages", lambda *given: [SimpleNamespace(name=name)])
    monkeypatch.setattr(takeover_trial.importlib, "import_module", fail)
    with contextlib.ExitStack() as stack:
        if refused:
            stack.enter_context(pytest.raises(ModuleNotFoundError))
        takeover_trial._import_everything()


def test_application_of_the_small_pool_answers_every_request() -> None:
    async def work() -> None:
        namespace: dict[str, Any] = {}
        exec(takeover_trial._APP, namespace)
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        async def receive() -> dict[str, Any]:
            return {}

        await namespace["app"]({"type": "lifespan"}, receive, send)
        await namespace["app"]({"type": "http"}, receive, send)
        assert [each["type"] for each in sent] == [
            "lifespan.startup.complete", "lifespan.shutdown.complete", "http.response.start", "http.response.body",
        ]  # fmt: skip

    asyncio.run(work())


def test_small_pool_without_a_log_says_so(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = takeover_trial._SmallPool(str(short_path), {"POOLCTL_RUNTIME_DIR": str(short_path)}, [])
    assert isinstance(pool._client, Client)
    with pytest.raises(TrialFailed, match="no supervisor answers 'list': it left no log"):
        pool.pids()
