"""`poolctl run` as process 1 of a container: a PID namespace of its own, made by util-linux's unshare."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import sandbox
from tests.http_get import get
from tests.other_user import AS_OTHER_USER, python_for_others
from tests.processes import children, freeze
from tests.real_pool import COMMAND_TIMEOUT_SECONDS, RealPool

UNSHARE = shutil.which("unshare")
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0 or not UNSHARE, reason="needs root and unshare(1)"),
]

STUBBORN = (
    "import pathlib, signal, socket\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\npathlib.Path('up').touch()\n"
    "s = socket.socket(fileno=3)\nwhile True: s.accept()[0].close()\n"
)
# Makes orphans of a process that nobody in the namespace knows, as `docker exec` does.
STRANGER = "import os\nfor _ in range(3):\n    if not os.fork(): os.setsid(); os.fork(); os._exit(0)\n"


class Container:
    """A pool as process 1; `first` is that process, and `enter` runs something beside it."""

    def __init__(self, pool: RealPool, *args: str, before: str = "") -> None:
        script = f'{before}\nexec "$@"'
        argv = [str(UNSHARE), "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh"]
        self._outer = subprocess.Popen(
            [*argv, *pool.command(), "run", *args], cwd=pool.directory, env=pool.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    @property
    def first(self) -> int:
        """The pid of its process 1, outside."""
        return next(iter(children(self._outer.pid)), 0)

    def enter(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """What a command did that was run in it."""
        within = ["nsenter", "--pid", "--mount", f"--target={self.first}"]
        return subprocess.run([*within, *argv], capture_output=True, text=True, timeout=60)

    def end(self) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of one that has been told to end, or ends by itself."""
        stdout, stderr = self._outer.communicate(timeout=COMMAND_TIMEOUT_SECONDS)
        return self._outer.returncode, stdout, stderr

    def close(self) -> None:
        """End it in any case."""
        self._outer.kill()
        self._outer.communicate()


@pytest.fixture
def contain(pool: RealPool) -> Iterator[Callable[..., Container]]:
    made: list[Container] = []

    def make(*args: str, **options: str) -> Container:
        made.append(Container(pool, *args, **options))
        return made[-1]

    yield make
    for container in made:
        container.close()


def healthy(pool: RealPool) -> bool:
    return pool.run("status", "--healthcheck").code == 0


@pytest.mark.capability
def test_container_reaps_orphans_and_ends_with_the_ordered_status(
    pool: RealPool, contain: Any, until: Any
) -> None:
    ports = pool.write_hello("web")
    assert pool.run("status", "--healthcheck").code == 1
    container = contain("--log-format", "json")
    until(lambda: healthy(pool))
    assert get(ports["web"]).status == 200
    container.enter(sys.executable, "-c", STRANGER)
    until(lambda: " Z" not in container.enter("ps", "-A", "-o", "pid,stat").stdout)
    os.kill(container.first, signal.SIGTERM)
    code, stdout, _ = container.end()
    assert code == 0
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert {line["server"] for line in lines} == {"web"}
    assert {"time", "message", "level"} <= lines[0].keys()


def test_signals_reach_the_command_and_its_status_is_the_containers(
    pool: RealPool, contain: Any, until: Any
) -> None:
    pool.write_hello("web")
    script = "trap 'exit 7' USR1; touch up; while :; do sleep 0.02; done"
    container = contain("--", "sh", "-c", script)
    until((pool.directory / "up").exists)
    os.kill(container.first, signal.SIGUSR1)
    assert container.end()[0] == 7


def test_a_stop_is_over_before_the_container_is_killed(pool: RealPool, contain: Any, until: Any) -> None:
    port = pool.write_hello("web")["web"]
    pool.write("stubborn.py", STUBBORN)
    pool.write(
        "pool.toml",
        f'[[server]]\nname = "web"\nbind = "127.0.0.1:{port}"\ncommand = ["{sys.executable}", "stubborn.py"]\n'
        'stop_timeout = "60s"\n',
    )
    container = contain("--stop-timeout", "4s")
    until((pool.directory / "up").exists)
    until(lambda: pool.items()["web"]["state"] == "running")
    began = time.monotonic()
    os.kill(container.first, signal.SIGTERM)
    code, _, stderr = container.end()
    assert time.monotonic() - began < 40
    assert code == 0
    assert "killing the remaining processes" in stderr


@pytest.mark.heavy
def test_container_ends_in_time_even_if_the_stop_hangs(pool: RealPool, contain: Any, until: Any) -> None:
    pool.write_hello("web")
    container = contain("--stop-timeout", "1s")
    until(lambda: healthy(pool))
    for pid in children(container.first):
        if Path(f"/proc/{pid}/comm").read_text().strip() != "poolctl-keeper":
            freeze(pid)
    began = time.monotonic()
    os.kill(container.first, signal.SIGTERM)
    assert container.end()[0] == 128 + signal.SIGKILL
    assert time.monotonic() - began < 40


def test_a_read_only_root_and_a_user_without_a_name_are_no_hindrance(pool: RealPool, contain: Any) -> None:
    pool.python = python_for_others()
    pool.write_hello("web")
    writable = pool.runtime
    pool.env |= {"POOLCTL_RUNTIME_DIR": f"{writable}/rt", "HOME": "/nonexistent"}
    prepare = (
        f"set -e; mount -t tmpfs -o mode=1777 none {writable}; mkdir -m 1777 {writable}/rt\n"
        f"cp hello.py pool.toml {writable}; cd {writable}; mount -o remount,ro,bind /\n"
        "if touch /root/x 2>&-; then exit 99; fi\n"
        f'set -- {AS_OTHER_USER} "$@"'
    )
    program = pool.command()
    container = contain("--", *program, "status", "--healthcheck", before=prepare)
    code, stdout, stderr = container.end()
    assert code == 0, stderr
    assert "1 server ready" in stdout


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="its system calls have other numbers elsewhere")
def test_pool_works_in_a_sandbox_that_forbids_system_calls_with_eperm(pool: RealPool, contain: Any) -> None:
    pool.write_hello("web")
    container = contain(
        "--", "sh", "-c", 'poolctl="$0"; $poolctl restart && $poolctl status --healthcheck', pool.command()[0],
        before=f'set -- {sys.executable} {sandbox.__file__} {",".join(map(str, sandbox.NEW_CALLS))} "$@"',
    )  # fmt: skip
    code, stdout, stderr = container.end()
    assert code == 0, stderr
    assert "1 server ready" in stdout
