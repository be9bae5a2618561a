"""Real workers that are alive in name only: found, recovered as their server says, and reported."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
from typing import Any

import pytest

from tests.deadline import wait_until
from tests.http_get import get
from tests.load import Load
from tests.processes import freeze, is_alive
from tests.real_pool import RealPool

AILING = """
import asyncio, os, time
from hello import app as hello
held = []
ill = []
async def app(scope, receive, send):
    if scope["type"] == "http":
        if scope["path"] == "/stick":
            print("about to stick", flush=True)
            time.sleep(1000)
        elif scope["path"] == "/grow":
            held.append(bytearray(os.urandom(1 << 20) * 64))
        elif scope["path"] == "/fall-ill":
            ill.append(True)
        elif scope["path"] == "/alive" and (ill or os.path.exists("plague")):
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        elif scope["path"] == "/pid":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
            return
    await hello(scope, receive, send)
"""


def begin(pool: RealPool, extra: str = "") -> int:
    """The port of one server whose worker sticks, or grows, when it is asked to."""
    port = pool.write_hello(extra=extra)["web"]
    pool.write("ailing.py", AILING)
    pool.replace("hello:app", "ailing:app")
    pool.ok("start")
    return port


def events(pool: RealPool) -> list[dict[str, Any]]:
    """What the journal knows of, without a last line of which only a part has been written."""
    texts = [path.read_text() for path in pool.runtime.rglob("events.jsonl")]
    return [json.loads(line) for text in texts for line in text[: text.rfind("\n") + 1].splitlines()]


def reports(pool: RealPool) -> list[dict[str, Any]]:
    """The recoveries among that."""
    return [event for event in events(pool) if event["kind"] == "recovery"]


def first_report(pool: RealPool) -> dict[str, Any]:
    found: dict[str, Any] = wait_until(lambda: (reports(pool) or [None])[0], what="a report")
    return found


def pid_of(pool: RealPool) -> int:
    (pid,) = pool.items()["web"]["pids"]
    return int(pid)


def test_a_worker_that_has_outgrown_its_limit_is_swapped(real_pool: RealPool) -> None:
    port = begin(real_pool, 'limits = { memory = "40MiB" }')
    before = pid_of(real_pool)
    assert get(port, "/grow").status == 200
    report = first_report(real_pool)
    assert (report["outcome"], report["done"], report["cause"]) == ("recovered", "replaced", "memory")
    assert "limits.memory is 40MiB" in report["message"]
    assert report["before"]["pids"] == [before]
    after = pid_of(real_pool)
    assert after != before
    assert get(port, "/pid").text == str(after)
    wait_until(lambda: not is_alive(before))
    assert real_pool.items()["web"]["restarts"] == 0, "a swap is no failure"


# A worker of a busy machine may not get to run for a second.
QUICK = 'heartbeat = "200ms", stuck_after = "3s"'


def stick(port: int) -> None:
    """Ask for what never ends; the connection ends with the worker."""
    threading.Thread(target=suppressed_get, args=(port, "/stick"), daemon=True).start()


def suppressed_get(port: int, path: str) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        get(port, path, timeout_seconds=60)


@pytest.mark.capability
def test_a_worker_whose_loop_is_stuck_is_replaced_and_its_end_is_reported(real_pool: RealPool) -> None:
    port = begin(real_pool, f'stop_timeout = "300ms"\nrecovery = {{ strategy = "replace", {QUICK} }}')
    before = pid_of(real_pool)
    stick(port)
    report = first_report(real_pool)
    assert (report["outcome"], report["done"], report["cause"]) == ("recovered", "replaced", "heartbeat")
    assert report["seen"] == [f"the event loop of worker web.1.0 (pid {before}) has been stuck for 3s"]
    assert "about to stick" in "\n".join(report["lines"])
    assert 0 <= report["duration_seconds"] < 60
    assert get(port, "/pid").text == str(pid_of(real_pool)) != str(before)
    wait_until(lambda: not is_alive(before), what="the stuck one is killed")
    assert real_pool.items()["web"]["restarts"] == 1

    def health() -> dict[str, str]:
        return {event["event"]: event["message"] for event in events(real_pool) if event["kind"] == "health"}

    wait_until(lambda: "ok" in health(), what="whoever was told of it is told that it is over")
    assert list(health()) == ["heartbeat lost", "ko", "ok"]
    assert health()["ko"] == "the event loop of web.1.0 is stuck"


@pytest.mark.heavy
def test_recovery_report_names_the_function_in_which_the_worker_hung(real_pool: RealPool) -> None:
    quick = f'{QUICK}, backoff = {{ initial = "1ms", max = "1ms" }}, limit = 50'
    port = begin(real_pool, f'stop_timeout = "100ms"\nrecovery = {{ {quick} }}')
    # On a machine that is busy beyond measure no worker waits for its stacks: the next one hangs as well.
    seen: list[dict[str, Any]] = []
    while not (seen and seen[-1].get("stacks") and seen[-1]["stacks"][0]["place"]):
        assert len(seen) < 5, seen
        stick(port)
        seen = wait_until(lambda: found if len(found := reports(real_pool)) > len(seen) else None)  # noqa: B023
    (stacks,) = seen[-1]["stacks"]
    assert stacks["place"].startswith("app (ailing.py:")
    assert f", in {stacks['place']}: restarted within " in seen[-1]["message"]
    assert seen[-1]["workers"] == {"web.1.0": stacks["pid"]}


@pytest.mark.heavy
def test_a_stopped_process_is_stuck_too_and_restarted(real_pool: RealPool) -> None:
    port = begin(real_pool, f'stop_timeout = "1m"\nrecovery = {{ {QUICK} }}')
    before = pid_of(real_pool)
    freeze(before)
    # It waits, and is not refused: the stop lets the process continue, which may answer it before it exits.
    get(port, "/pid", timeout_seconds=60)
    report = first_report(real_pool)
    assert (report["outcome"], report["done"]) == ("recovered", "restarted")
    wait_until(lambda: not is_alive(before))
    assert get(port, "/pid").text != str(before)


@pytest.mark.heavy
@pytest.mark.parametrize(("strategy", "outcomes"), [("notify", ["notified"]), ("none", [])])
def test_hung_worker_is_only_reported_and_so_is_its_recovery(
    real_pool: RealPool, strategy: str, outcomes: list[str]
) -> None:
    begin(real_pool, f'recovery = {{ strategy = "{strategy}", {QUICK} }}')
    pid = pid_of(real_pool)
    freeze(pid)
    wait_until(lambda: "heartbeat lost" in {event["event"] for event in events(real_pool)})
    wait_until(lambda: len(reports(real_pool)) == len(outcomes))
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: "heartbeat back" in {event["event"] for event in events(real_pool)})
    assert ([each["outcome"] for each in reports(real_pool)], pid_of(real_pool)) == (outcomes, pid)


@pytest.mark.heavy
def test_a_stuck_server_can_be_disabled(real_pool: RealPool) -> None:
    begin(real_pool, f'stop_timeout = "200ms"\nrecovery = {{ strategy = "disable", {QUICK} }}')
    freeze(pid_of(real_pool))
    assert first_report(real_pool)["outcome"] == "disabled"
    assert real_pool.items()["web"]["state"] == "disabled"
    real_pool.ok("enable", "web")
    assert real_pool.items()["web"]["ready"]


@pytest.mark.heavy
def test_a_recovery_is_gone_on_with_when_the_supervisor_is_killed_in_it(real_pool: RealPool) -> None:
    port = begin(real_pool, f'stop_timeout = "1s"\nrecovery = {{ {QUICK} }}')
    before = pid_of(real_pool)
    freeze(before)
    wait_until(lambda: real_pool.items()["web"]["state"] == "starting", what="the recovery has begun")
    os.kill(real_pool.info()["supervisor_pid"], signal.SIGKILL)
    report = first_report(real_pool)
    assert (report["outcome"], report["done"], report["before"]["pids"]) == (
        "recovered",
        "restarted",
        [before],
    )
    assert get(port, "/pid").text == str(pid_of(real_pool)) != str(before)
    assert not is_alive(before)
    listed = real_pool.ok("events", "--kind", "recovery", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in listed] == [report["seq"]]
    assert "restarted within" in real_pool.ok("events", "--kind", "recovery").stdout


ALIVE = '{ http = "/alive", interval = "50ms", timeout = "20s", fall_count_ko = 2 }'


@pytest.mark.heavy_variants
@pytest.mark.parametrize(("strategy", "done"), [("restart", "restarted"), ("replace", "replaced")])
def test_a_worker_whose_liveness_is_ko_is_recovered(real_pool: RealPool, strategy: str, done: str) -> None:
    port = begin(real_pool, f'health = {{ liveness = {ALIVE} }}\nrecovery = "{strategy}"')
    before = pid_of(real_pool)
    get(port, "/fall-ill")
    report = first_report(real_pool)
    assert (report["outcome"], report["done"], report["cause"]) == ("recovered", done, "liveness")
    assert "500" in report["message"]
    assert get(port, "/pid").text == str(pid_of(real_pool)) != str(before)


def test_the_last_ready_worker_stays_when_the_probe_of_its_replacement_fails(real_pool: RealPool) -> None:
    health = f"health = {{ liveness = {ALIVE}, readiness = {ALIVE} }}"
    port = begin(real_pool, f'{health}\nstart_timeout = "60s"\nrecovery = "replace"')
    real_pool.replace('"60s"', '"500ms"')
    real_pool.ok("reload")
    before = pid_of(real_pool)
    (real_pool.directory / "plague").touch()
    report = first_report(real_pool)
    assert (report["outcome"], report["done"]) == ("failed", "replaced")
    assert report["after"]["pids"] == [before]
    assert get(port, "/pid").text == str(before)


CLIENTS = 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "workers"),
    [
        ("replace", 2),
        *(
            pytest.param(*each, marks=pytest.mark.heavy)
            for each in (("replace", 1), ("restart", 1), ("restart", 2))
        ),
    ],
)
def test_a_stuck_worker_under_load_costs_only_the_connections_that_it_has(
    real_pool: RealPool, strategy: str, workers: int
) -> None:
    extra = f'workers = {workers}\nstop_timeout = "500ms"\nrecovery = {{ strategy = "{strategy}", {QUICK} }}'
    port = begin(real_pool, extra)
    with Load([port], "new_connection", connections=CLIENTS, echo=False, pause=0.005) as load:
        wait_until(lambda: load.look().complete > 500)
        stick(port)
        assert first_report(real_pool)["outcome"] == "recovered"
        served = load.look().complete
        wait_until(lambda: load.look().complete > served + 500, what="all goes on")
        report = load.stop()
    assert (report.refused, report.wrong, report.unanswered) == (0, 0, 0), report
    assert report.failed <= CLIENTS, report
