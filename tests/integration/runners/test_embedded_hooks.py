"""Commands around a server in a program that embeds a pool of processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl import Pool, PoolStartError, ServerConfig
from poolctl.pool import loop_thread
from poolctl.runners import embedded_runner
from poolctl.runners.embedded_runner import ProcessRunner
from tests.ports import claim_port
from tests.real_pool import HELLO_APP


@pytest.fixture
def runner() -> Iterator[ProcessRunner]:
    made = ProcessRunner()
    yield made
    loop_thread.run_sync(made.aclose())


def config(directory: Path, **hooks: str) -> ServerConfig:
    """A server whose hooks are programs in Python."""
    (directory / "hello.py").write_text(HELLO_APP)
    bind = f"127.0.0.1:{claim_port()}"
    words = {name: [sys.executable, "-c", program] for name, program in hooks.items()}
    return ServerConfig(
        name="web", bind=bind, app="hello:app", app_dir=str(directory), cwd=str(directory), hooks=words
    )


def note(name: str) -> str:
    return f"open('notes', 'a').write('{name} ')"


def test_hooks_run_around_a_server_also_when_the_keeper_has_nothing_else_to_do(
    tmp_path: Path, runner: ProcessRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The keeper would end before a hook that takes half a second.
    monkeypatch.setattr(embedded_runner, "_IDLE_SECONDS", 0.1)
    slow = "import time; time.sleep(0.5); "
    pool = Pool(
        [config(tmp_path, before_start=slow + note("before"), after_stop=slow + note("after"))], runner=runner
    )
    for _ in range(2):
        pool.start_sync(timeout=60)
        pool.stop_sync(timeout=60)
    assert (tmp_path / "notes").read_text() == "before after before after "


def test_failed_before_start_is_the_error_of_the_start(tmp_path: Path, runner: ProcessRunner) -> None:
    pool = Pool([config(tmp_path, before_start="raise SystemExit('no database')")], runner=runner)
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync(timeout=60)
    (problem,) = caught.value.exceptions
    assert problem.message == "hooks.before_start exited with status 1: no database"


def test_start_that_is_given_up_ends_its_hook(tmp_path: Path, runner: ProcessRunner, until: Any) -> None:
    forever = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    pool = Pool([config(tmp_path, before_start=forever, after_stop=note("after"))], runner=runner)
    with pytest.raises(PoolStartError):
        pool.start_sync(timeout=2)
    until(lambda: not has_processes(runner))
    pool.stop_sync(timeout=30)
    assert not (tmp_path / "notes").exists()


def has_processes(runner: ProcessRunner) -> bool:
    """Whether a process of the runner is left."""
    return bool(runner._workers)
