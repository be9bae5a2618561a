"""Programs that are no ASGI application: sockets, ports, readiness, jobs, and programs that are not there."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from typing import Any

import pytest

from tests.configuration import server
from tests.deadline import wait_until
from tests.http_get import get
from tests.real_pool import RealPool

# Takes the socket as systemd would pass it, and answers with its pid.
TAKES_SOCKET = """
import os, socket, http.server
assert os.environ["LISTEN_PID"] == str(os.getpid())
listeners = [socket.socket(fileno=3 + number) for number in range(int(os.environ["LISTEN_FDS"]))]
class Handler(http.server.BaseHTTPRequestHandler):
    def address_string(self):
        return "somebody"
    def do_GET(self):
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
httpd = http.server.HTTPServer(("", 0), Handler, bind_and_activate=False)
httpd.socket.close()
httpd.socket = listeners[0]
httpd.server_name, httpd.server_port = "test", 0
httpd.serve_forever()
"""


NOTIFIES = TAKES_SOCKET.replace(
    "httpd.serve_forever()",
    """
import pathlib, time
while not pathlib.Path("go").exists():
    time.sleep(0.01)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"STATUS=nearly\\nREADY=1\\n", os.environ["NOTIFY_SOCKET"])
httpd.serve_forever()
""",
)

PYTHON = sys.executable


def test_a_program_that_notifies_is_ready_when_it_says_so_and_is_replaced_without_a_gap(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    port = free_port()
    pool.write("notifies.py", NOTIFIES)
    pool.write(
        "pool.toml",
        server("web", bind=f"127.0.0.1:{port}", command=[PYTHON, "notifies.py"], notify=True),
    )
    pool.ok("start", "--no-wait")
    until(lambda: pool.items()["web"]["state"] == "starting")
    assert pool.run("wait", "--timeout", "0.3").code == 124
    (pool.directory / "go").touch()
    pool.ok("wait", "--timeout", "40")
    first = get(port).text
    (pool.directory / "go").unlink()
    restarting = pool.spawn("restart")
    until(lambda: len(pool.ok("show", "web", "-o", "json").json["items"][0]["worker_list"]) == 2)
    # The replacement has not said that it is ready: the old one answers, or they share.
    assert pool.items()["web"]["ready"]
    (pool.directory / "go").touch()
    restarting.communicate(timeout=60)
    assert restarting.returncode == 0
    assert get(port).text != first


@pytest.mark.heavy
def test_a_program_that_notifies_after_its_supervisor_was_killed_is_heard_by_the_next(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    pool.write("notifies.py", NOTIFIES)
    bind = f"127.0.0.1:{free_port()}"
    pool.write("pool.toml", server("web", bind=bind, command=[PYTHON, "notifies.py"], notify=True))
    pool.ok("start", "--no-wait")
    before = until(lambda: pool.items()["web"]["pids"])
    pool.replace_supervisor()
    (pool.directory / "go").touch()
    pool.ok("wait", "--timeout", "40")
    assert pool.items()["web"]["pids"] == before


def test_programs_that_cannot_run_are_failures_that_say_why(pool: RealPool) -> None:
    pool.write("not-executable", "#!/bin/sh\n").chmod(0o644)
    programs = {
        "absent": (["no-such-program-anywhere"], ["127", "no-such-program-anywhere"]),
        "closed": (["./not-executable"], ["126", "not-executable"]),
        "directory": (["/"], ["126"]),
        "ends": ([PYTHON, "-c", "print('gave up'); raise SystemExit(9)"], ["9", "gave up"]),
    }
    tables = [
        server(name, command=command, restart="no", ready_after="1h")
        for name, (command, _) in programs.items()
    ]
    pool.write("pool.toml", "".join(tables))
    done = pool.run("start", "-o", "json")
    assert done.code == 1, str(done)
    said = {error["name"]: error["message"] for error in done.json["errors"]}
    assert [
        name for name, (_, words) in programs.items() if not all(word in said[name] for word in words)
    ] == []


@pytest.mark.heavy
def test_many_long_jobs_do_not_hold_up_the_servers(pool: RealPool) -> None:
    ports = pool.write_hello("a", "b")
    jobs = "".join(server(f"job{number}", job=True, command=["sleep", "50"]) for number in range(8))
    pool.write("pool.toml", jobs + (pool.directory / "pool.toml").read_text())
    pool.ok("start", "--no-wait")
    pool.ok("wait", "a", "b", "--timeout", "40")
    assert get(ports["b"]).status == 200


def test_servers_that_wait_for_one_another_in_their_startup_become_ready(
    pool: RealPool, free_port: Any
) -> None:
    last = free_port()
    pool.write_hello()
    pool.write(
        "waits.py",
        f"""
        import asyncio
        from hello import app as hello
        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                while True:
                    try:
                        reader, writer = await asyncio.open_connection("127.0.0.1", {last})
                        writer.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
                        if await reader.read(1):
                            break
                    except OSError:
                        await asyncio.sleep(0.02)
            await hello(scope, receive, send)
        """,
    )
    pool.write(
        "pool.toml",
        "".join(
            server(f"w{number}", bind=f"127.0.0.1:{free_port()}", app="waits:app", start_timeout="40s")
            for number in range(12)
        )
        + server("last", bind=f"127.0.0.1:{last}", app="hello:app"),
    )
    pool.ok("start")


def test_program_that_has_ended_is_told_apart_from_one_that_was_stopped(real_pool: RealPool) -> None:
    work = server("work", command=["true"], restart="on-failure")
    real_pool.write("pool.toml", work + server("off", command=["cat"]))
    real_pool.run("start", "work")
    wait_until(lambda: "ended" in real_pool.run("list", "-o", "name,state").stdout)
    ended, off = real_pool.run("list", "-o", "json").json["items"]
    assert (ended["state"], off["state"], "ended" in off) == ("stopped", "stopped", False)
    assert (ended["ended"]["status"], ended["ended"]["signal"]) == (0, None)
    assert abs(datetime.fromisoformat(ended["ended"]["at"]).timestamp() - time.time()) < 60
    status = real_pool.run("status")
    assert status.code == 3
    assert 'work  ended with status 0; restart = "always" restarts it' in status.stdout
    assert real_pool.run("list", "--state", "ended", "-o", "name").stdout == "work\n"
    assert "ended with status 0" in real_pool.run("health").stdout


def test_last_line_of_a_program_that_has_ended_is_its_reason(real_pool: RealPool) -> None:
    said = "\\033[31mno jobs\\tat postgres://me:secret@db/\\033[0m\\033]0;title\\007\\r\\n\\n"
    script = f'[ -e done ] || printf "{said}"; while [ ! -e may-end ]; do sleep 0.02; done'
    receiver = '\n[[notify]]\ntype = "command"\ncommand = ["sh", "-c", "cat >> {name}"]\nname = "{name}"\n'
    notify = receiver.format(name="plain") + receiver.format(name="full") + "output = true\n"
    work = server("work", command=["sh", "-c", script], restart="on-failure", ready_after="10ms")
    real_pool.write("pool.toml", work + notify)
    real_pool.ok("start")
    may_end = real_pool.write("may-end", "")
    wait_until(lambda: "ended" in real_pool.ok("list", "-o", "state").stdout)
    line = 'last line: "no jobs at postgres://me:********@db/"'
    assert f'ended with status 0; restart = "always" restarts it; {line}' in real_pool.run("status").stdout
    for command in ("health", "top"):
        assert f"ended with status 0; {line}" in real_pool.run(command).stdout
    (item,) = real_pool.run("list", "-o", "json").json["items"]
    assert item["last_line"] == line.removeprefix("last line: ").strip('"')
    events = map(json.loads, real_pool.ok("events", "-o", "json").stdout.splitlines())
    (event,) = [each for each in events if each["event"] == "ended"]
    assert (event["severity"], event["after"]) == ("warning", "stopped")
    assert event["last_line"] == item["last_line"]
    for name, expected in (("plain", False), ("full", True)):
        told = real_pool.directory / name
        wait_until(lambda told=told: told.exists() and told.read_text().endswith("}\n"))
        (message,) = map(json.loads, told.read_text().splitlines())
        assert message["title"].endswith("work: ended")
        assert ("no jobs" in json.dumps(message)) is expected
    # What an earlier process printed is no reason for the end of a silent one.
    real_pool.write("done", "")
    may_end.unlink()
    real_pool.ok("start")
    may_end.touch()
    wait_until(lambda: "ended" in real_pool.ok("list", "-o", "state").stdout)
    assert "last line" not in real_pool.run("status").stdout


def test_end_of_a_program_is_reported_once_whatever_supervisor_runs(real_pool: RealPool) -> None:
    receiver = '[[notify]]\ntype = "command"\nevents = ["lifecycle"]\ncommand = ["sh", "-c", "cat >> told"]\n'
    script = "echo bye; while [ ! -e may-end ]; do sleep 0.02; done"
    work = server("work", command=["sh", "-c", script], restart="on-failure", ready_after="10ms")
    real_pool.write("pool.toml", work + server("web", command=["cat"], stdin="open") + receiver)
    real_pool.ok("start")
    real_pool.write("may-end", "")
    told = real_pool.directory / "told"
    wait_until(lambda: " sent: command: " in real_pool.ok("events").stdout)
    real_pool.replace_supervisor()
    assert 'last line: "bye"' in real_pool.run("status").stdout
    real_pool.ok("stop", "work")
    wait_until(lambda: told.read_text().count("}\n") == 2)
    messages = [json.loads(each) for each in told.read_text().splitlines()]
    assert [each["status"] for each in messages] == ["problem", "resolved"]
    ends = [each for each in real_pool.ok("events").stdout.splitlines() if "→ ended" in each]
    assert len(ends) == 1
