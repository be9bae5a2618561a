"""Contract §5: events with and without a supervisor, with a broken file, and across supervisor deaths."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import poolctl
from poolctl.errors import PoolParamError
from tests.deadline import wait_until
from tests.processes import is_alive
from tests.real_pool import RealPool


def told(pool: RealPool, *args: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in pool.ok("events", "-o", "json", "-n", "all", *args).stdout.splitlines()
    ]


class Following:
    """`events -f` in the background, and its output so far, which begins with the last event."""

    def __init__(self, pool: RealPool, *args: str) -> None:
        self.process = pool.spawn("events", "-f", "-n1", "-o", "jsonl", *args)
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()
        wait_until(lambda: self.events)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def seen(self, word: str, count: int = 1) -> Callable[[], bool]:
        return lambda: sum(event["event"] == word for event in list(self.events)) >= count


def test_the_journal_of_a_pool_is_readable_after_its_end(real_pool: RealPool) -> None:
    real_pool.write_hello("a", "b")
    real_pool.ok("start")
    (running,) = told(real_pool, "a", "--kind", "lifecycle")[-1:]
    assert (running["server"], running["after"], running["cause"]) == ("a", "running", "start")
    assert running["pids"] == real_pool.items()["a"]["pids"]
    (asked, done) = told(real_pool, "--kind", "audit")
    assert (asked["event"], done["event"], done["exit_code"], done["servers"]) == (
        "start",
        "start done",
        0,
        ["a", "b"],
    )
    assert asked["by"]["uid"] == os.getuid()
    real_pool.run("restart", "nobody")
    real_pool.write("pool.toml", "broken [")
    refused = told(real_pool, "--kind", "audit")[-1]
    assert (refused["event"], refused["exit_code"]) == ("restart failed", 4)
    assert real_pool.run("events", "nobody").code == 4
    assert told(real_pool, "b", "--kind", "lifecycle")[-1]["event"] == "running"
    real_pool.ok("stop")
    assert [event["event"] for event in told(real_pool)][-2:] == ["stop done", "supervisor ended"]
    numbers = [event["seq"] for event in told(real_pool)]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.heavy
@pytest.mark.slow
def test_following_goes_on_over_a_killed_supervisor_and_its_successor(real_pool: RealPool) -> None:
    real_pool.write_hello()
    real_pool.ok("start")
    following = Following(real_pool)
    (replaced,) = real_pool.items()["web"]["pids"]
    real_pool.ok("restart")
    wait_until(following.seen("restart done"))
    wait_until(lambda: not is_alive(replaced))  # else it would be taken over as well
    os.kill(real_pool.info()["supervisor_pid"], signal.SIGKILL)
    wait_until(following.seen("supervisor started"))
    real_pool.ok("drain", "web")
    wait_until(following.seen("draining"))
    taken_over = next(event for event in following.events if event["event"] == "supervisor started")
    assert (taken_over["message"], taken_over["adopted"]) == ("took over 1 worker", 1)
    real_pool.ok("stop")
    wait_until(following.seen("supervisor ended"))
    real_pool.ok("start")
    wait_until(following.seen("start done"))
    numbers = [event["seq"] for event in following.events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), (
        "none twice, none left out, over three"
    )
    following.process.send_signal(signal.SIGINT)
    assert following.process.wait(60) == 130


@pytest.mark.slow
def test_following_goes_on_over_rotation(real_pool: RealPool) -> None:
    real_pool.write_hello()
    real_pool.append('[events]\nmax_size = "1KiB"\nkeep = 3\npath = "e.jsonl"\n')
    real_pool.ok("start")
    following = Following(real_pool, "--kind", "lifecycle")
    for round_ in range(1, 5):
        real_pool.ok("drain", "web")
        real_pool.ok("undrain", "web")
        wait_until(following.seen("draining", round_))
    # The next event may be rotating the files.
    names = ["e.jsonl", "e.jsonl.1", "e.jsonl.2", "e.jsonl.3"]
    wait_until(lambda: sorted(path.name for path in real_pool.directory.glob("e.jsonl*")) == names)
    wait_until(following.seen("running", 5))
    assert [each["event"] for each in following.events] == ["running", *["draining", "running"] * 4]


@pytest.mark.heavy
@pytest.mark.slow
def test_line_torn_by_a_kill_does_no_harm(real_pool: RealPool) -> None:
    real_pool.write_hello()
    real_pool.ok("start")
    before = real_pool.info()["supervisor_pid"]
    wait_until(lambda: told(real_pool)[-1:] and told(real_pool)[-1]["event"] == "start done")
    journal = next(real_pool.runtime.glob("*/state/events.jsonl"))
    last = told(real_pool)[-1]["seq"]
    with journal.open("a") as file:
        file.write('{"time": "2026-')
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: real_pool.run("status").code == 0 and real_pool.info()["supervisor_pid"] != before)
    # An event in between (a worker became ready) may still have been queued.
    wait_until(lambda: [each["event"] for each in told(real_pool)[-2:]] == ["supervisor started", "damaged"])
    assert "ends with 1 damaged line" in told(real_pool)[-1]["message"]
    numbers = [each["seq"] for each in told(real_pool)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert numbers[-1] > last


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk that is full")
def test_a_full_disk_keeps_no_server_from_anything(real_pool: RealPool, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        real_pool.write_hello()
        real_pool.append(f'[events]\npath = "{disk}/e.jsonl"\n')
        real_pool.ok("start")
        following = Following(real_pool)
        real_pool.ok("drain", "web")
        wait_until(following.seen("drain done"))
        with (disk / "fill").open("wb", buffering=0) as fill:
            while True:
                try:
                    fill.write(b"x" * 512)
                except OSError:
                    break
        for _ in range(10):
            real_pool.ok("undrain", "web")
            real_pool.ok("drain", "web")
        wait_until(following.seen("drain done", 11))
        (disk / "fill").unlink()
        real_pool.ok("undrain", "web")
        wait_until(lambda: "events lost" in [event["event"] for event in told(real_pool)])
        assert told(real_pool)[-1]["event"] in ("events lost", "undrain done", "running")
    finally:
        real_pool.run("stop")
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_from_python_the_events_come_as_dictionaries(
    real_pool: RealPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_pool.write_hello()
    real_pool.ok("start")
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(real_pool.runtime))
    client = poolctl.connect(real_pool.directory / "pool.toml")
    assert [event["event"] for event in client.events("web", kinds=["lifecycle"])] == ["starting", "running"]
    assert list(client.events(since=datetime.now(UTC) + timedelta(hours=1))) == []
    with pytest.raises(PoolParamError):
        list(client.events("nobody"))
    coming = client.events(follow=True, lines=1, kinds=["audit"])
    assert next(coming)["event"] == "start done"  # by now it follows the journal
    real_pool.ok("drain", "web")
    assert next(coming)["message"] == "drain web"
    coming.close()
