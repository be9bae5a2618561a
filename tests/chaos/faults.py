"""Fault points: kills the supervisor or the keeper after each message of a start, a restart, a reload and a stop.

    python -m tests.chaos.faults [--every N] [--seconds S]

Afterwards the command is repeated, and the result must be the same as without the fault. Servers that are not
stopped get requests all the time, over kept and new connections: no request may be lost.

Then, without a command, a supervisor is killed, a worker crashes, and the next supervisors are killed after each of
their messages or files. All servers must run afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.deadline import wait_until
from tests.http_get import get
from tests.load import Load
from tests.processes import children, is_alive, stat
from tests.real_pool import RealPool

VICTIMS = ("self", "parent")
_REPEATS = 5
_PAUSE_SECONDS = 0.004
_LAST_SECONDS = 0.5
_HELPERS = (" keeper ", " supervisor ", " logs ", " zygote")


def fuse_of(pool: RealPool) -> Path:
    """The file that arms a fault of the pool's supervisor (see fault/sitecustomize.py); create it before the start."""
    fuse = pool.runtime / "fuse"
    pool.env |= {"PYTHONPATH": str(Path(__file__).with_name("fault")), "POOLCTL_FAULT": str(fuse)}
    return fuse


class Faults:
    """A pool whose next supervisor or keeper can be killed at a given point. No command touches the server `always`."""

    def __init__(self, directory: Path, runtime: Path) -> None:
        self.pool = RealPool(directory, runtime)
        self.ports = self.pool.write_hello("always", "a", "b")
        self.fuse = fuse_of(self.pool)
        self.answered = 0

    def perform(self, command: str, victim: str, number: int) -> bool:
        """Perform the command with the victim killed after this message, then repeat it until it succeeds.

        False if the command has fewer messages.
        """
        self.fuse.write_text(f"{victim} {number}")
        self.pool.run(*command.split())
        fired = not self.fuse.exists()
        self.fuse.unlink(missing_ok=True)
        for _ in range(_REPEATS):
            done = self.pool.run(*command.split())
            if done.code == 0:
                return fired
            if done.code not in (1, 6, 8):
                break
        raise AssertionError(f"{victim} killed after {number} messages: {done}")

    @contextlib.contextmanager
    def asked(self, *names: str) -> Iterator[None]:
        """Send requests to these servers all the time; every one must be answered."""
        targets = [self.ports[name] for name in names]
        with (
            Load(targets, "keep_alive", echo=False, connections=3, pause=_PAUSE_SECONDS) as staying,
            Load(targets, "new_connection", echo=False, connections=3, pause=_PAUSE_SECONDS) as coming,
        ):
            yield
        for load in (staying, coming):
            assert load.report.complete, load.report
            assert not load.report.failed, load.report
            self.answered += load.report.complete

    def check_serving(self, *names: str) -> None:
        """Check that all expected servers serve, and nothing else is left."""
        wait_until(lambda: {name for name, item in self.pool.items().items() if item["ready"]} == set(names))
        for name in names:
            assert get(self.ports[name]).status == 200
        wait_until(lambda: self._strangers() == [], what=lambda: f"strangers: {self._strangers()}")
        sockets = [
            path.name for path in self.pool.runtime.rglob("*") if path.is_socket() and not path.is_symlink()
        ]
        assert set(sockets) == {"control.sock"}, sockets

    def check_gone(self) -> None:
        """Check that nothing of the pool is left."""
        wait_until(lambda: not self.pool.processes(), what=lambda: f"left: {self.pool.processes()}")
        assert list(self.pool.runtime.glob("*/*.sock")) == []
        assert list(self.pool.runtime.glob("@*")) == []

    def _strangers(self) -> list[str]:
        """Unexpected processes: zombies, and any besides one of each helper and the listed workers."""
        info = self.pool.info()
        known = {pid for item in self.pool.items().values() for pid in item["pids"]}
        found = []
        helpers: dict[str, int] = {}
        processes = self.pool.processes()
        for pid, line in processes.items():
            if waits_to_be_a_worker(pid, processes):
                continue
            role = next((role for role in _HELPERS if role in f"{line} "), "")
            if pid in known or (role and not helpers.setdefault(role, 0)):
                helpers[role] = helpers.get(role, 0) + (pid not in known)
            elif is_alive(pid):
                found.append(f"{pid} {line}")
        found += [
            f"{pid} is a zombie" for pid in children(info["keeper_pid"]) if not is_alive(pid) and _stays(pid)
        ]
        return found


def waits_to_be_a_worker(pid: int, processes: dict[int, str]) -> bool:
    """Whether a zygote has pre-forked the process; a worker is a child of the keeper."""
    try:
        return " zygote" in processes.get(stat(pid).parent, "")
    except OSError:
        return False


def _stays(pid: int) -> bool:
    try:
        return stat(pid).state == "Z"
    except OSError:
        return False


def points(every: int, first: int = 1) -> Iterator[int]:
    """The points from `first`, with a distance of `every`."""
    while True:
        yield first
        first += every


def lifecycle(faults: Faults, victim: str, number: int) -> bool:
    """Start, restart, reload and stop, with the victim killed at this point; False if all have fewer messages."""
    fired = faults.perform("start", victim, number)
    faults.check_serving("always", "a", "b")
    with faults.asked("always", "a", "b"):
        fired |= changes(faults, victim, number)
    with faults.asked("always", "b"):
        fired |= faults.perform("stop a", victim, number)
        faults.check_serving("always", "b")
    fired |= faults.perform("stop", victim, number)
    faults.check_gone()
    return fired


def changes(faults: Faults, victim: str, number: int) -> bool:
    """The restart and the reload of a lifecycle."""
    before = faults.pool.items()
    fired = faults.perform("restart a b", victim, number)
    faults.check_serving("always", "a", "b")
    after = faults.pool.items()
    assert after["always"]["pids"] == before["always"]["pids"]
    assert after["always"]["restarts"] == before["always"]["restarts"]
    assert after["always"]["uptime_seconds"] >= before["always"]["uptime_seconds"]
    for name in ("a", "b"):
        assert after[name]["restarts"] > before[name]["restarts"]
        assert set(after[name]["pids"]).isdisjoint(before[name]["pids"])
    file = faults.pool.directory / "pool.toml"
    file.write_text(f'{file.read_text()}env = {{ CHANGED = "yes" }}\n')
    fired |= faults.perform("reload", victim, number)
    faults.check_serving("always", "a", "b")
    reloaded = faults.pool.items()
    assert reloaded["always"]["pids"] == before["always"]["pids"]
    assert reloaded["a"]["pids"] == after["a"]["pids"]
    assert reloaded["b"]["pids"] != after["b"]["pids"]
    return fired


def successors(faults: Faults, number: int) -> bool:
    """Kill two supervisors in a row at this point of their startup, without any command.

    False if their startup has fewer messages and files.
    """
    pool = faults.pool
    pool.ok("start")
    before = pool.items()
    keeper = pool.info()["keeper_pid"]
    with faults.asked("b"):
        faults.fuse.write_text(f"self {number} 2")
        killed = pool.info()["supervisor_pid"]
        os.kill(killed, signal.SIGKILL)
        os.kill(before["a"]["pids"][0], signal.SIGKILL)
        wait_until(lambda: not is_alive(killed))
        wait_until(lambda: not faults.fuse.exists() or _has_taken_over(pool, keeper))
        with contextlib.suppress(AssertionError):  # the message at the end of a startup counts as well
            wait_until(lambda: not faults.fuse.exists(), timeout_seconds=_LAST_SECONDS)
        fired = not faults.fuse.exists()
        faults.fuse.unlink(missing_ok=True)
        wait_until(lambda: _has_taken_over(pool, keeper))
        for port in faults.ports.values():
            assert get(port).status == 200
    faults.check_serving("always", "a", "b")
    after = pool.items()
    for name in ("always", "b"):
        assert after[name]["pids"] == before[name]["pids"]
    pool.ok("stop")
    faults.check_gone()
    return fired


def _has_taken_over(pool: RealPool, keeper: int) -> bool:
    """The running supervisor has contacted its keeper and written its record."""
    info = pool.info()
    (record,) = pool.runtime.glob("[!@]*/wanted.json")
    supervisor = info["supervisor_pid"]
    return (
        is_alive(supervisor) and supervisor in children(keeper) and record.stat().st_mtime > info["started"]
    )


def main() -> None:
    """Run every point of every command with every victim, or as many as time allows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="leave out the points between")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--only", choices=(*VICTIMS, "successors"), help="nothing but this")
    parser.add_argument("--seconds", type=float, default=3600.0, help="end after that time")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    for victim in [options.only] if options.only else (*VICTIMS, "successors"):
        for number in points(options.every, options.first):
            runtime = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp"))
            directory = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp"))
            faults = Faults(directory, runtime)
            try:
                fired = (
                    successors(faults, number)
                    if victim == "successors"
                    else lifecycle(faults, victim, number)
                )
                outcome = f"ok, {faults.answered} requests" if fired else "beyond the last message"
                print(f"{victim} {number}: {outcome}", flush=True)
            except BaseException:
                print(
                    f"{victim} {number}: failed; see {runtime} and {directory}", file=sys.stderr, flush=True
                )
                for log in runtime.glob("*/supervisor.log"):
                    sys.stderr.write(log.read_text())
                faults.pool.end()
                raise
            faults.pool.end()
            for path in (runtime, directory):
                shutil.rmtree(path, ignore_errors=True)
            if not fired or time.monotonic() >= deadline:
                break


if __name__ == "__main__":
    sys.exit(main())
