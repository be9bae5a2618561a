"""The runtime directory is removed under a running pool: the pool is found again, loses nothing, and is not doubled."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.http_get import get
from tests.integration.processes.test_both_killed import kill_both
from tests.processes import freeze, is_alive
from tests.real_pool import RealPool


def directory_of(pool: RealPool) -> Path:
    (found,) = [path for path in pool.runtime.iterdir() if path.is_dir() and not path.is_symlink()]
    return found


def write_program(pool: RealPool) -> None:
    """A program without a port: nothing but the pool's lock keeps it from running twice."""
    pool.write("once.py", "import time\ntime.sleep(1000)\n")
    pool.write("pool.toml", '[[server]]\nname = "once"\ncommand = ["python3", "once.py"]\n')


def programs(pool: RealPool) -> list[int]:
    return [pid for pid, line in pool.processes().items() if line.endswith("once.py")]


def holders(pool: RealPool) -> set[int]:
    """The pids of the pool's processes that hold its lock."""
    found = set()
    for pid in pool.processes():
        for descriptor in Path(f"/proc/{pid}/fdinfo").glob("*"):
            with contextlib.suppress(OSError):
                if "OFDLCK" in descriptor.read_text():
                    found.add(pid)
    return found


def managers(pool: RealPool) -> set[int]:
    info = pool.info()
    return {info["keeper_pid"], info["supervisor_pid"]}


# Prints the files that it has inherited; the last descriptor is that of the listing.
SEES = "import os; print(*(os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')[:-1]))"


def test_lock_is_held_by_keeper_and_supervisor_and_closed_in_whatever_they_start(
    pool: RealPool, until: Any
) -> None:
    pool.write("sees.py", f"{SEES}\n")
    pool.write_hello("web", "asleep", "preloaded")
    with (pool.directory / "pool.toml").open("a") as file:
        file.write("preload = true\n")
        file.write(
            '[[server]]\nname = "program"\ncommand = ["python3", "-c", "import time; time.sleep(1000)"]\n'
            'hooks = { before_start = ["sh", "-c", "python3 sees.py > hook.txt"] }\n'
            'health.readiness = { exec = ["sh", "-c", "python3 sees.py > new; mv new probe.txt"], timeout = "20s" }\n'
        )
    pool.ok("start")
    until(lambda: len(pool.processes()) > len(managers(pool)) + 4)
    until(lambda: holders(pool) == managers(pool))  # a process that is being started has it for a moment
    seen = [(pool.directory / name).read_text() for name in ("hook.txt", "probe.txt")]
    seen.append(pool.ok("walk", "program", "--", sys.executable, "sees.py").stdout)
    assert all(files.strip() for files in seen)
    assert not any(word.endswith("/lock") for files in seen for word in files.split())


@pytest.mark.slow
def test_lock_passes_to_every_successor_of_keeper_and_supervisor(pool: RealPool, until: Any) -> None:
    write_program(pool)
    pool.ok("start")
    before = programs(pool)
    for name in ("supervisor_pid", "keeper_pid"):
        pid = pool.info()[name]
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: not is_alive(pid) and pid not in managers(pool))
        pool.ok("status")
        until(lambda: holders(pool) == managers(pool))
    replaced = pool.info()["supervisor_pid"]
    pool.ok("upgrade", "--allow-same-version")
    until(lambda: pool.info()["supervisor_pid"] != replaced)
    until(lambda: holders(pool) == managers(pool))
    assert programs(pool) == before
    kill_both(pool, until)
    assert holders(pool) == set()
    pool.ok("start")
    until(lambda: holders(pool) == managers(pool))


@pytest.mark.slow
def test_start_refuses_a_pool_whose_socket_does_not_come_back(pool: RealPool) -> None:
    write_program(pool)
    pool.ok("start")
    info = pool.info()
    # The keeper first: it would replace the supervisor while the commands wait.
    frozen = info["keeper_pid"], info["supervisor_pid"]
    for pid in frozen:
        freeze(pid)
    (directory_of(pool) / "control.sock").unlink()
    for command in ("start", "stop"):
        done = pool.run(command)
        assert done.code == 8
        assert f"pid {info['keeper_pid']}" in done.stderr
        assert f"kill {info['keeper_pid']}" in done.stderr
    assert len(programs(pool)) == 1
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    pool.ok("stop")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [(), ("supervisor_pid",), ("keeper_pid",)])
def test_runtime_directory_that_is_removed_is_private_again(
    pool: RealPool, until: Any, killed: tuple[str, ...]
) -> None:
    """As root's /run/poolctl has to be: commands refuse it otherwise."""
    write_program(pool)
    pool.ok("start")
    before, info = programs(pool), pool.info()
    shutil.rmtree(pool.runtime)
    for name in killed:
        os.kill(info[name], signal.SIGKILL)
    until(lambda: not any(is_alive(info[name]) for name in killed))
    until(lambda: pool.run("start").code == 0)
    assert pool.runtime.stat().st_mode & 0o777 == 0o700
    assert directory_of(pool).stat().st_mode & 0o777 == 0o700
    assert programs(pool) == before
    pool.ok("stop")


@pytest.mark.slow
def test_what_a_killed_pool_has_left_is_found_after_its_directory_was_removed(
    pool: RealPool, until: Any
) -> None:
    write_program(pool)
    pool.ok("start")
    before = programs(pool)
    shutil.rmtree(pool.runtime)
    until(lambda: [*pool.runtime.glob("*/info.json")])
    until(lambda: [*pool.runtime.glob("*/processes")])
    kill_both(pool, until)
    pool.ok("start")
    assert len(programs(pool)) == 1
    assert programs(pool) != before
    pool.ok("stop")


def test_a_directory_that_is_removed_is_made_again(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    pool.ok("start")
    before, info = pool.items(), pool.info()
    directory = directory_of(pool)
    shutil.rmtree(directory)
    # As a process leaves it that writes there before.
    (directory / "state" / "logs").mkdir(parents=True)
    (pool.runtime / f"@{info['name']}").unlink()
    until((pool.runtime / f"@{info['name']}").is_symlink)  # the last of what is made again
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "control.sock").stat().st_mode & 0o777 == 0o600
    assert pool.items()["web"]["pids"] == before["web"]["pids"]
    assert [each["name"] for each in pool.ok("pools", "-o", "json").json["items"]] == [info["name"]]
    assert pool.info()["supervisor_pid"] == info["supervisor_pid"]
    pool.ok("restart")
    assert get(port).status == 200
    until(lambda: pool.ok("logs", "web").stdout)
    # Whoever dies now: its successor has the new socket.
    os.kill(info["supervisor_pid"], signal.SIGKILL)
    until(lambda: not is_alive(info["supervisor_pid"]))
    assert pool.items()["web"]["ready"]
    pool.ok("stop")
    until(lambda: not pool.processes())


@pytest.mark.heavy
@pytest.mark.slow
def test_desired_state_is_written_again_after_its_file_has_vanished(pool: RealPool, until: Any) -> None:
    pool.write_hello()
    pool.ok("start")
    pool.ok("scale", "web", "2")
    directory = directory_of(pool)
    shutil.rmtree(directory)
    until((directory / "wanted.json").exists)
    kill_both(pool, until)
    pool.ok("start")
    assert len(pool.items()["web"]["pids"]) == 2


@pytest.mark.heavy
def test_a_directory_that_cannot_be_made_is_tried_again(pool: RealPool, until: Any) -> None:
    pool.write_hello()
    pool.ok("start")
    directory, log = directory_of(pool), Path(f"/proc/{pool.info()['supervisor_pid']}/fd/2")
    shutil.rmtree(directory)
    directory.write_text("in the way")
    until(lambda: "cannot be restored" in log.read_text())
    assert pool.run("status").code != 0
    directory.unlink()
    until(lambda: pool.run("status").code == 0)


def test_supervisor_that_cannot_write_its_info_file_still_serves(pool: RealPool, until: Any) -> None:
    pool.write_hello()
    pool.ok("start")
    before, info, directory = pool.items(), pool.info(), directory_of(pool)
    # In the way of what is written, as a full disk would be.
    (directory / "info.json").unlink()
    (directory / "info.json").mkdir()
    os.kill(info["supervisor_pid"], signal.SIGKILL)
    until(lambda: not is_alive(info["supervisor_pid"]))
    pool.ok("restart")
    assert pool.items()["web"]["pids"] != before["web"]["pids"]
    assert (directory / "info.json").is_dir()
    (directory / "info.json").rmdir()
    until((directory / "info.json").exists)
    assert pool.info()["supervisor_pid"] != info["supervisor_pid"]
    assert is_alive(pool.info()["supervisor_pid"])
