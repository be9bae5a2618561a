"""What servers print: to other files on demand, and never lost."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import signal
import sys
from collections import defaultdict
from typing import Any

import pytest

from tests.configuration import server
from tests.http_get import get
from tests.processes import processor_seconds
from tests.real_pool import RealPool

PRINTS = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        print(scope["path"], flush=True)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
"""


@pytest.mark.capability
def test_reading_what_a_failed_program_has_printed_costs_the_supervisor_little(pool: RealPool) -> None:
    """500 lines that each look like the beginnings of hundreds of frames, with a path of two thousand parts."""
    line = '  File "' + 'File "' * 340 + "/" * 2_000 + '", line 1'
    pool.write("printed.txt", "Traceback (most recent call last):\n" + f"{line}\n" * 499)
    bad = server("bad", command=["sh", "-c", "cat printed.txt; exit 1"], restart="no", ready_after="1h")
    pool.write("pool.toml", server("good", command=["sleep", "1000"]) + bad)
    pool.ok("start", "good")
    before = processor_seconds(pool.info()["supervisor_pid"])
    assert pool.run("start", "bad").code == 1
    assert processor_seconds(pool.info()["supervisor_pid"]) - before < 2


def test_full_disk_stops_no_server_and_is_reported(pool: RealPool, free_port: Any, until: Any) -> None:
    port = free_port()
    pool.write("app.py", PRINTS)
    keys = {"bind": f"127.0.0.1:{port}", "app": "app:app", "log": {"path": "/dev/full"}}
    pool.write("pool.toml", server("web", **keys))
    pool.ok("start")
    for number in range(300):
        assert get(port, f"/{'long/' * 20}{number}").status == 200
    (event,) = until(
        lambda: [
            json.loads(line)
            for line in pool.ok("events", "-o", "json", "--kind", "pool").stdout.splitlines()
            if "output lost" in line
        ]
    )
    assert event["server"] == "web"
    assert event["cause"] == "No space left on device"
    assert event["message"].endswith(
        " bytes of output could not be written to /dev/full: No space left on device"
    )
    assert event["severity"] == "error"
    assert get(port, "/").status == 200


def test_logs_and_a_journal_that_cannot_be_written_are_reported_before_anything_is_lost(
    real_pool: RealPool,
) -> None:
    real_pool.write("plain.txt", "")
    ports = real_pool.write_hello("web", extra='log = { path = "plain.txt/web.log" }')
    text = (real_pool.directory / "pool.toml").read_text()
    real_pool.write("pool.toml", f'{text}[events]\npath = "plain.txt/events.jsonl"\n')
    for command, code in (("validate", 5), ("start", 0), ("doctor", 1)):
        done = real_pool.run(command)
        assert done.code == code, str(done)
        for key in ("web.log", "events.jsonl"):
            why = f"plain.txt/{key} cannot be written: {real_pool.directory}/plain.txt is not a directory"
            assert why in done.stdout + done.stderr, str(done)
    assert get(ports["web"]).status == 200
    assert real_pool.run("events").code == 0
    real_pool.ok("stop")


MOVES_ITS_LOGS = """
import os
async def app(scope, receive, send):
    if scope["type"] == "http":
        if scope["path"] == "/attack":
            os.rename("theirs/logs", "theirs/before")
            os.symlink(os.path.abspath("ours"), "theirs/logs")
        print(scope["path"], flush=True)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as other users")
def test_directory_made_for_a_log_belongs_to_the_user_of_its_server(pool: RealPool) -> None:
    pool.open_to_all()
    log = pool.directory / "logs" / "deep" / "web.log"
    pool.write_hello("web", extra=f'user = "nobody:www-data"\nlog = {{ path = "{log}" }}')
    pool.ok("start")
    pool.ok("stop")
    for directory in (log.parent, log.parent.parent):
        status = directory.stat()
        found = (
            pwd.getpwuid(status.st_uid).pw_name,
            grp.getgrgid(status.st_gid).gr_name,
            status.st_mode & 0o777,
        )
        assert found == ("nobody", "www-data", 0o750)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as other users")
def test_processes_of_another_user_can_open_their_output_by_name(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    pool.open_to_all()
    port = free_port()
    opens = ["sh", "-c", "echo {name} > /dev/stdout && echo aloud > /dev/stderr"]
    pool.write("app.py", f"open('/dev/stdout', 'w').write('app\\n')\n{PRINTS}")
    probed = {"startup": {"exec": opens, "timeout": "20s"}}
    hooked = {"user": "nobody", "hooks": {"before_start": [*opens[:2], opens[2].replace("{name}", "hook")]}}
    pool.write(
        "pool.toml",
        server("task", job=True, command=opens, **hooked)
        + server("web", bind=f"127.0.0.1:{port}", app="app:app", user="nobody", health=probed)
        + server("forked", bind=f"127.0.0.1:{free_port()}", app="app:app", user="nobody", preload=True),
    )
    pool.ok("start")
    expected = {("task", "hook"), ("task", "task"), ("task", "aloud"), ("web", "app"), ("forked", "app")}

    def texts() -> set[tuple[str, str]]:
        lines = pool.ok("logs", "-n", "all").stdout.splitlines()
        return {(name.strip(), text) for name, _, text in (line.partition(" | ") for line in lines)}

    until(lambda: texts() >= expected, what=lambda: str(texts()))


def test_a_server_that_turns_its_log_directory_into_a_link_makes_the_logger_write_nowhere_else(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    port = free_port()
    pool.open_to_all()
    ours = pool.write("ours/web.log", "precious\n")
    (pool.directory / "theirs").mkdir()
    shutil.chown(pool.directory / "theirs", "nobody")
    pool.write("app.py", MOVES_ITS_LOGS)
    keys = {"bind": f"127.0.0.1:{port}", "app": "app:app", "user": "nobody"}
    pool.write("pool.toml", server("web", **keys, log={"path": "theirs/logs/web.log"}))
    pool.ok("start")
    get(port, "/attack")

    def lost() -> Any:
        get(port, "/more")
        lines = pool.ok("events", "-o", "json", "--kind", "pool").stdout.splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == "output lost"]

    (event,) = until(lost)
    assert event["cause"].startswith("logs on its path is a link that another user can make")
    assert os.listdir(ours.parent) == ["web.log"]
    assert ours.read_text() == "precious\n"
    assert pool.ok("logs").stdout == ""
    for command, code in (("validate", 5), ("doctor", 1)):
        done = pool.run(command)
        assert done.code == code, str(done)
        assert "logs on its path is a link that another user can make" in done.stdout, str(done)


# Counts aloud until it is told to end, and says how far it came.
COUNTS = """
import os, signal, socket, time
over = []
signal.signal(signal.SIGTERM, lambda *args: over.append(True))
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
me, number = os.getpid(), 0
while not over:
    for number in range(number, number + 50):
        os.write(1, f"{me} {number} of a line that is long enough to be torn\\n".encode())
    number += 1
    time.sleep(0.005)
os.write(1, f"{me} end {number}\\n".encode())
"""


@pytest.mark.slow
def test_no_line_is_lost_torn_or_doubled_by_any_kill_or_rotation(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    pool.write("counts.py", COUNTS)
    log = {"max_size": 100_000, "keep": 2000}
    command = [sys.executable, "counts.py"]
    keys = {"bind": f"127.0.0.1:{free_port()}", "command": command, "notify": True, "log": log}
    pool.write("pool.toml", server("web", **keys))
    pool.ok("start")
    for part in ("logs", "logs", "supervisor", "logs", "keeper", "logs"):
        (pid,) = until(lambda part=part: now if len(now := _there(pool, part)) == 1 else None)
        os.kill(pid, signal.SIGKILL)
        until(lambda part=part, pid=pid: len(now := _there(pool, part)) == 1 and now != [pid])
        pool.ok("restart", "web")
    pool.ok("stop", "web")
    counted: dict[str, list[str]] = defaultdict(list)
    ends: dict[str, str] = {}

    def all_ended() -> bool:
        counted.clear()
        for line in pool.ok("logs", "web", "-n", "all", "--raw").stdout.splitlines():
            who, number, *rest = line.split(" ", 2)
            if number == "end":
                ends[who] = rest[0]
            else:
                assert rest == ["of a line that is long enough to be torn"], line
                counted[who].append(number)
        return len(ends) == 7

    until(all_ended)
    for who, numbers in counted.items():
        assert numbers == [str(number) for number in range(int(ends[who]))]


def _there(pool: RealPool, part: str) -> list[int]:
    processes = pool.processes().items()
    return [pid for pid, line in processes if f" {part} " in f"{line} "]
