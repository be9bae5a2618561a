"""A pool's directory with a stand-in for its supervisor, and the command called in this process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from poolctl.cli.main import main
from poolctl.control.pool_paths import pool_key
from poolctl.platform import process_start
from poolctl.runners.left_overs import ProcessNote, ProcessNotes
from tests.stand_in import Answer, stand_in

POOL = """\
[pool]
name = "shop"

[[server]]
name = "users"
bind = "127.0.0.1:8081"
command = ["sleep", "60"]
tags = ["api", "inner"]

[[server]]
name = "orders"
bind = "127.0.0.1:8082"
expose = "https://orders.example"
command = ["sleep", "60"]
disabled = true
"""


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Said]
Supervised = Callable[[Answer], AbstractContextManager[list[tuple[str, dict[str, Any]]]]]


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a pool.toml."""
    path = tmp_path_factory.mktemp("p")
    for name in ("NO_COLOR", "POOLCTL_CONFIG", "POOLCTL_DEBUG", "POOLCTL_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(path / "run"))
    monkeypatch.chdir(path)
    (path / "pool.toml").write_text(POOL)
    return path


@pytest.fixture
def poolctl(directory: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """`poolctl(*args)`: what the command did and printed."""

    def run(*args: str) -> Said:
        capsys.readouterr()
        code = main(args)
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture
def supervised(directory: Path) -> Supervised:
    """`supervised(answer)`: a context in which something answers for the pool's supervisor."""

    def serve(answer: Answer) -> AbstractContextManager[list[tuple[str, dict[str, Any]]]]:
        place = directory / "run" / pool_key(str(directory / "pool.toml"))
        place.mkdir(parents=True, mode=0o700, exist_ok=True)
        return stand_in(place / "control.sock", answer)

    return serve


Leave = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def leave(directory: Path) -> Iterator[Leave]:
    """`leave(label)`: a process that keeper and supervisor have left when they were killed."""
    left: dict[subprocess.Popen[bytes], ProcessNote] = {}

    def note(label: str, *, server: str = "", is_deaf: bool = False) -> subprocess.Popen[bytes]:
        script = "trap '' TERM; echo; exec sleep 600" if is_deaf else "echo; exec sleep 600"
        process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
        assert process.stdout is not None
        process.stdout.readline()
        start = process_start(process.pid)
        assert start is not None
        left[process] = ProcessNote(process.pid, start, label, server, stop_seconds=0.1 if is_deaf else 60.0)
        place = directory / "run" / pool_key(str(directory / "pool.toml"))
        place.mkdir(parents=True, mode=0o700, exist_ok=True)
        ProcessNotes(str(place)).close(left.values())
        return process

    yield note
    for process in left:
        process.kill()
        process.communicate()
