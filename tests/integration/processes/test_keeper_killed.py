"""The keeper is killed: its supervisor holds all that it held, and gives it to another one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.faults import fuse_of
from tests.configuration import server
from tests.http_get import asked_all_the_time, get
from tests.processes import children, freeze, is_alive, stat
from tests.real_pool import HELLO_APP, RealPool

pytestmark = pytest.mark.slow


def whole_again(pool: RealPool, until: Callable[..., Any], keeper: int) -> dict[str, Any]:
    """The pool's information when another keeper and another supervisor are there."""

    def another() -> dict[str, Any] | None:
        info = pool.info()
        # It may be the supervisor before that says so, until it ends.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if info["keeper_pid"] != keeper and stat(info["supervisor_pid"]).parent == info["keeper_pid"]:
                return info
        return None

    found: dict[str, Any] = until(another)
    return found


def kill_keeper(pool: RealPool) -> int:
    keeper: int = pool.info()["keeper_pid"]
    os.kill(keeper, signal.SIGKILL)
    return keeper


@pytest.mark.capability
def test_servers_serve_on_with_their_processes(pool: RealPool, until: Any) -> None:
    ports = pool.write_hello("a", "b", "c", extra="workers = 2")
    pool.ok("start", "a", "b")
    pool.ok("restart", "a")
    before = pool.items()
    with asked_all_the_time(ports["a"]) as answers, asked_all_the_time(ports["b"]) as others:
        whole_again(pool, until, kill_keeper(pool))
        after = pool.items()
    assert [{*answers}, {*others}] == [{f"hello from {ports[name]}"} for name in "ab"]
    for name in before:
        assert after[name] | {"uptime_seconds": 0} == before[name] | {"uptime_seconds": 0}
    assert after["a"]["uptime_seconds"] >= before["a"]["uptime_seconds"]
    assert pool.run("status").code == 3  # c never ran


def test_all_that_can_be_done_before_can_be_done_afterwards(pool: RealPool, until: Any) -> None:
    ports = pool.write_hello("a", "b", "c")
    pool.ok("start", "a", "b")
    keeper = whole_again(pool, until, kill_keeper(pool))["keeper_pid"]
    before = pool.items()["a"]["pids"]
    pool.ok("restart", "a")
    assert set(pool.items()["a"]["pids"]).isdisjoint(before)
    pool.ok("start", "c")
    pool.ok("stop", "b")
    assert [get(ports[name]).status for name in ("a", "c")] == [200, 200]
    # Those that came later are the new keeper's own children.
    assert all(stat(pid).parent == keeper for item in pool.items().values() for pid in item["pids"])
    pool.ok("stop")
    assert pool.processes() == {}


HELD = "import os, time\nwhile os.path.exists('held'): time.sleep(0.02)\nfrom hello import app\n"


@pytest.mark.heavy
def test_reload_under_way_is_completed_by_the_next_supervisor(pool: RealPool, until: Any) -> None:
    pool.write_hello("web", extra="workers = 2")
    pool.write("slow.py", HELD)
    pool.replace("hello:app", "slow:app")
    pool.ok("start")
    before = pool.items()["web"]["pids"]
    pool.append('env = { CHANGED = "yes" }\n')
    held = pool.write("held", "")
    command = pool.spawn("reload")
    until(lambda: any(each["event"] == "restart" for each in recorded(pool)))
    whole_again(pool, until, kill_keeper(pool))
    held.unlink()
    _, said = command.communicate(timeout=60)
    assert command.returncode == 0, said
    assert "the supervisor was replaced during the reload, and the next one was asked again" in said
    # The next reload finds nothing to change, while the former workers still end.
    until(lambda: set(pool.items()["web"]["pids"]).isdisjoint(before))
    assert not pool.ok("status").stderr, "the file is in force"


def recorded(pool: RealPool) -> list[dict[str, Any]]:
    """The events in the journal."""
    texts = [path.read_text() for path in pool.runtime.rglob("events.jsonl")]
    return [json.loads(line) for text in texts for line in text[: text.rfind("\n") + 1].splitlines()]


def test_an_orphan_that_dies_is_replaced(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    pool.ok("start")
    whole_again(pool, until, kill_keeper(pool))
    (orphan,) = pool.items()["web"]["pids"]
    os.kill(orphan, signal.SIGKILL)
    assert get(port).status == 200
    until(lambda: pool.items()["web"]["ready"] and pool.items()["web"]["pids"] != [orphan])
    assert pool.items()["web"]["restarts"] == 1


@pytest.mark.heavy
def test_processes_left_in_an_orphans_group_end_with_it(pool: RealPool, until: Any) -> None:
    pool.write_hello()
    pool.replace("hello:app", "parent:app")
    pool.write(
        "parent.py",
        """
        import subprocess
        from hello import app
        subprocess.Popen(["sleep", "60"], start_new_session=False)
        """,
    )
    pool.ok("start")
    (orphan,) = pool.items()["web"]["pids"]
    (sleeper,) = children(orphan)
    whole_again(pool, until, kill_keeper(pool))
    os.kill(orphan, signal.SIGKILL)
    until(lambda: not is_alive(sleeper))


def test_worker_that_died_unobserved_is_replaced(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    pool.ok("start")
    (worker,) = pool.items()["web"]["pids"]
    supervisor = pool.info()["supervisor_pid"]
    freeze(supervisor)
    keeper = kill_keeper(pool)
    os.kill(worker, signal.SIGKILL)
    os.kill(supervisor, signal.SIGCONT)
    whole_again(pool, until, keeper)
    until(lambda: pool.items()["web"]["ready"] and pool.items()["web"]["pids"] != [worker])
    assert get(port).status == 200


@pytest.mark.heavy
def test_stopped_supervisor_goes_on_when_its_keeper_is_killed_and_sleepers_wake(
    pool: RealPool, until: Any
) -> None:
    ports = pool.write_hello("web", extra='scale = { min = 0, idle = "1h" }')
    pool.ok("start")
    info = pool.info()
    freeze(info["supervisor_pid"])
    os.kill(info["keeper_pid"], signal.SIGKILL)
    assert get(ports["web"], timeout_seconds=60).status == 200
    whole_again(pool, until, info["keeper_pid"])


@pytest.mark.heavy
@pytest.mark.parametrize("fault", ["busy 1", "blocked 1", "orphan"])
def test_supervisor_that_hangs_or_is_stopped_after_its_keepers_death_is_replaced_and_sleepers_wake(
    pool: RealPool, until: Any, fault: str
) -> None:
    fuse = fuse_of(pool)
    ports = pool.write_hello("web", "sleeper", extra='scale = { min = 0, idle = "1h" }')
    pool.ok("start")
    assert get(ports["web"]).status == 200
    before = pool.items()["web"]["pids"]
    info = pool.info()
    fuse.write_text(fault)
    if fault != "orphan":
        until(lambda: not fuse.exists())  # it hangs at the next ping
    os.kill(info["keeper_pid"], signal.SIGKILL)
    until(lambda: not fuse.exists())
    assert get(ports["sleeper"], timeout_seconds=60).status == 200
    whole_again(pool, until, info["keeper_pid"])
    assert pool.items()["web"]["pids"] == before
    until(lambda: not is_alive(info["supervisor_pid"]))
    pool.ok("stop")
    assert pool.processes() == {}


@pytest.mark.heavy
def test_supervisor_that_is_stopped_at_its_start_ends_with_its_keeper_and_the_pool_can_be_started(
    pool: RealPool, until: Any
) -> None:
    fuse = fuse_of(pool)
    port = pool.write_hello()["web"]
    pool.ok("start")
    info = pool.info()
    fuse.write_text("stopped 1")
    os.kill(info["supervisor_pid"], signal.SIGKILL)
    until(lambda: not fuse.exists())
    os.kill(info["keeper_pid"], signal.SIGKILL)
    until(lambda: not any(" supervisor " in line for line in pool.processes().values()))
    pool.ok("start")
    assert get(port).status == 200


def test_programs_go_on_and_what_is_printed_is_kept(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    prints = '    if scope["type"] == "http":\n        print(scope["path"], flush=True)\n'
    pool.write("hello.py", HELLO_APP.replace("    if scope", f"{prints}    if scope", 1))
    pool.append(server("job", job=True, command=["sleep", "600"]))
    pool.ok("start", "--no-wait")
    pool.ok("wait", "web")
    until(lambda: pool.items()["job"]["pids"])
    before = pool.items()
    keeper = kill_keeper(pool)
    for number in range(20):
        assert get(port, f"/line-{number}").status == 200
    whole_again(pool, until, keeper)
    for number in range(20, 30):
        assert get(port, f"/line-{number}").status == 200
    assert pool.items()["job"]["pids"] == before["job"]["pids"]

    def lines() -> list[str]:
        printed = pool.ok("logs", "web", "-n", "1000").stdout.splitlines()
        return [line.rpartition("/")[2] for line in printed if "/line-" in line]

    until(lambda: len(lines()) >= 30)
    assert lines() == [f"line-{number}" for number in range(30)]


@pytest.mark.heavy
def test_keepers_that_are_killed_one_after_the_other(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    pool.ok("start")
    before = pool.items()["web"]["pids"]
    killed: set[int] = set()
    with asked_all_the_time(port) as answers:
        for _ in range(4):
            # The next one as soon as it is there, whatever it holds by then.
            keeper = until(
                lambda: [
                    pid
                    for pid, line in pool.processes().items()
                    if " keeper " in line and pid not in killed and is_alive(pid)
                ]
            )[0]
            killed.add(keeper)
            os.kill(keeper, signal.SIGKILL)
        until(lambda: pool.info()["keeper_pid"] not in killed)
        until(lambda: pool.items()["web"]["ready"])
    assert {*answers} == {f"hello from {port}"}
    assert pool.items()["web"]["pids"] == before


@pytest.mark.heavy
def test_run_still_ends_with_its_lifeline(pool: RealPool, until: Any) -> None:
    pool.write_hello()
    running = pool.spawn("run", "--quiet")
    until(pool.is_ready)
    whole_again(pool, until, kill_keeper(pool))
    assert running.poll() is None
    running.kill()
    until(lambda: not pool.processes())
