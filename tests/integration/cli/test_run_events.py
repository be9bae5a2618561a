"""`run` reports servers that die, are restarted and are given up; `run -- CMD…` names them at its end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.ports import claim_port
from tests.real_pool import COMMAND_TIMEOUT_SECONDS, RealPool

APP = """
import os

print("imported by", os.environ["POOLCTL_NAME_OF_TEST"], flush=True)

async def app(scope, receive, send):
    if scope["type"] == "http":
        if scope["path"] == "/die":
            print("about to die", flush=True)
            os._exit(7)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})
"""


@pytest.fixture
def pool(real_pool: RealPool) -> RealPool:
    real_pool.write("mortal.py", APP)
    real_pool.ports = {"orders": claim_port(), "users": claim_port()}
    real_pool.write(
        "pool.toml",
        "\n".join(
            f'[[server]]\nname = "{name}"\nbind = "127.0.0.1:{port}"\napp = "mortal:app"\n'
            'restart = { limit = 2, backoff = { jitter = 0 } }\nenv = { POOLCTL_NAME_OF_TEST = "it" }\n'
            for name, port in real_pool.ports.items()
        ),
    )
    return real_pool


def kill(pool: RealPool, until: Any, times: int) -> None:
    def dies() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{pool.ports['orders']}/die", timeout=30)
        except urllib.error.URLError:
            return False  # its listener is not open again
        except (ConnectionError, TimeoutError):
            return True
        return False

    for _ in range(times):
        until(dies, timeout_seconds=60)


@pytest.mark.parametrize("form", [pytest.param("text", marks=pytest.mark.capability), "json"])
def test_run_reports_deaths_restarts_and_giving_up(pool: RealPool, until: Any, form: str) -> None:
    running = pool.spawn("run", "--log-format", form)
    until(pool.is_ready, timeout_seconds=60)
    for _ in range(3):
        until(lambda: pool.items()["orders"]["ready"], timeout_seconds=60)
        before = pool.items()["orders"]
        kill(pool, until, 1)
        until(lambda b=before: pool.items()["orders"]["pids"] != b["pids"], timeout_seconds=60)
    until(lambda: pool.items()["orders"]["state"] == "failed", timeout_seconds=60)
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=60)[1].splitlines()
    expected = [
        ("orders: exited with status 7; restarting", "warning"),
        ("orders: exited with status 7; restarting in 200ms (2nd time)", "warning"),
        ("orders: exited with status 7; given up after 2 restarts in 5m: poolctl logs orders", "error"),
    ]
    if form == "text":
        assert [line for line in said if line.startswith("orders: ")] == [text for text, _ in expected]
        return
    found = [each for each in map(json.loads, said) if each["server"] == "orders"]
    assert [(each["message"], each["level"]) for each in found] == expected
    assert all(each["time"].endswith("Z") for each in found)


def test_run_reports_deaths_also_after_its_supervisor_was_replaced(pool: RealPool, until: Any) -> None:
    running = pool.spawn("run")
    until(pool.is_ready, timeout_seconds=60)
    pool.replace_supervisor()
    until(lambda: pool.items()["orders"]["ready"], timeout_seconds=60)
    restarts = pool.items()["orders"]["restarts"]
    kill(pool, until, 1)
    until(lambda: pool.items()["orders"]["restarts"] > restarts, timeout_seconds=60)
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=60)[1]
    assert "supervisor started: took over 2 workers\n" in said
    assert "orders: exited with status 7; restarting\n" in said


SCRIPT = """
import os, subprocess, sys, time, urllib.request
listed = subprocess.run([sys.argv[1], "list", "-o", "name"], cwd="/", capture_output=True, text=True)
print(listed.stdout.split(), os.environ["POOLCTL_PORT_USERS"], os.environ["POOLCTL_URL_USERS"], flush=True)
try:
    urllib.request.urlopen(os.environ["POOLCTL_URL_ORDERS"] + "/die", timeout=30)
except OSError:
    pass
while "exited with status 7" not in subprocess.run(
    [sys.argv[1], "events", "orders"], cwd="/", capture_output=True, text=True
).stdout:
    time.sleep(0.05)
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.heavy_variants
@pytest.mark.parametrize("code", [0, 3])
def test_command_knows_its_pool_and_the_servers_that_died(pool: RealPool, code: int) -> None:
    (poolctl,) = pool.command()
    done = pool.run(
        "run", "--", sys.executable, "-c", SCRIPT, poolctl, str(code), env={"GITHUB_ACTIONS": "true"}
    )
    port = pool.ports["users"]
    assert done.code == code, str(done)
    assert done.stdout == f"['orders', 'users'] {port} http://127.0.0.1:{port}\n"
    program = sys.executable.rpartition("/")[2]
    assert "orders: exited with status 7; restarting\n" in done.stderr
    assert f"orders died while {program} ran: exited with status 7\n" in done.stderr
    group = done.stderr[done.stderr.index("::group::last ") : done.stderr.index("::endgroup::")]
    assert "lines of orders\norders | imported by it\n" in group
    assert "orders | about to die\n" in group
    assert "users | " not in done.stderr


# Dies of the same cause each time: at once, or after the command of its arguments, once there is a file.
CRASHING = """
import os, subprocess, sys, time

if sys.argv[1:]:
    while not os.path.exists("go"):
        time.sleep(0.02)
    subprocess.run(sys.argv[1:], capture_output=True)
sys.exit("shop.NoSettings: SHOP_DSN is not set")
"""
# Creates that file, and waits for the second death.
WAITS = """
import pathlib, time

pathlib.Path("go").touch()
while "again" not in pathlib.Path("said").read_text():
    time.sleep(0.05)
"""


@pytest.mark.parametrize("code", [pytest.param(1, marks=pytest.mark.capability), 0])
def test_run_with_a_command_says_a_cause_once(real_pool: RealPool, code: int) -> None:
    is_ready_at_first = code == 0  # then the cause is told while the command runs, too
    waits_until_ready = [*real_pool.command(), "wait", "web"]
    real_pool.write("crashing.py", CRASHING)
    real_pool.write(
        "pool.toml",
        f"""
        [[server]]
        name = "web"
        command = {[sys.executable, "crashing.py", *(waits_until_ready if is_ready_at_first else [])]}
        ready_after = "{"10ms" if is_ready_at_first else "1h"}"
        restart = {{ policy = "always", backoff = {{ initial = "1s" }} }}
        """,
    )
    with open(real_pool.directory / "said", "w") as said:
        process = subprocess.Popen(
            [*real_pool.command(), "run", "--", sys.executable, "-c", WAITS],
            cwd=real_pool.directory, env=real_pool.env, stderr=said,
        )  # fmt: skip
        assert process.wait(COMMAND_TIMEOUT_SECONDS) == code
    text = (real_pool.directory / "said").read_text()
    assert text.count("SHOP_DSN is not set") == 1 + is_ready_at_first, text
    assert ("last line of web:\nweb | shop.NoSettings: SHOP_DSN is not set\n" in text) is is_ready_at_first
    assert ("web: died again for the same reason; restarting" in text) is is_ready_at_first, text
    assert (
        bool(re.search(r"web died \d times while python\S* ran: exited with status 1\n", text))
        is is_ready_at_first
    )


@pytest.mark.capability
def test_output_of_a_failed_server_is_no_command_of_github(real_pool: RealPool) -> None:
    script = "print('##[error]one\\r::error::two', flush=True); raise SystemExit('::error::three')"
    real_pool.write("loud.py", script)
    command = [sys.executable, "loud.py"]
    real_pool.write(
        "pool.toml", f'[[server]]\nname = "web"\ncommand = {command}\nrestart = "no"\nready_after = "1h"\n'
    )
    done = real_pool.run("run", "--", "true", env={"GITHUB_ACTIONS": "true"})
    text = done.stdout + done.stderr
    assert done.code == 1
    assert [line for line in text.splitlines() if line.lstrip().startswith("::")] == [
        "::group::other line of web",
        "::endgroup::",
    ]
    assert "##[" not in text
    assert text.count("three") == 1
    document = real_pool.run("logs", "-o", "json").stdout
    assert "##[" not in document
    assert "##[error]one" in json.loads(document.splitlines()[0])["line"]
    assert real_pool.run("logs", "--raw").stdout.startswith("##[error]one")


def test_failure_of_the_command_alone_prints_what_every_server_said(pool: RealPool) -> None:
    done = pool.run("run", "--", "false")
    assert done.code == 1
    assert "orders:\norders | imported by it\n" in done.stderr
    assert "users:\nusers | imported by it\n" in done.stderr
    assert "died" not in done.stderr
    assert "imported by" not in pool.run("run", "--", "true").stderr
