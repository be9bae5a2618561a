"""The output of servers: it never holds them up, and is kept line by line."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.configuration import server
from tests.http_get import get
from tests.real_pool import HELLO_APP, RealPool

Until = Callable[..., Any]

# Prints a part of a line, 700,000 bytes of lines in one write, a line of 200,000 bytes, and a last line in two parts.
PRINTS = r"""
import os, time

def write(data):
    while data:
        data = data[os.write(1, data) :]

write(b"begun, ")
write(b"".join(b"%d of a document\n" % number for number in range(40_000)))
write(b"x" * 200_000 + b"\n")
write(b"all ")
write(b"written\n")
time.sleep(1000)
"""


def test_exception_is_logged_whatever_logging_the_application_sets_up(
    real_pool: RealPool, until: Until
) -> None:
    port = real_pool.write_hello("web")["web"]
    own = 'import logging.config\nlogging.config.dictConfig({"version": 1, "root": {"level": "WARNING"}})\n'
    fails = HELLO_APP.replace(
        '    await send({"type": "http.response.start"',
        '    raise ValueError("no address")\n    await send({"type": "http.response.start"',
    )
    real_pool.write("hello.py", own + fails)
    real_pool.ok("start")
    assert get(port).status == 500
    until(lambda: "ValueError: no address" in real_pool.ok("logs", "web", "-n", "all").stdout)


@pytest.mark.capability
def test_output_of_any_size_holds_up_no_program_and_is_kept_line_by_line(
    real_pool: RealPool, until: Until
) -> None:
    real_pool.write("prints.py", PRINTS)
    keys = {"command": [sys.executable, "prints.py"], "log": {"max_size": "64MiB"}}
    real_pool.write("pool.toml", server("prints", **keys))
    real_pool.ok("start")
    until(lambda: real_pool.ok("logs", "prints", "-n", "1").stdout.endswith("all written\n"))
    lines = real_pool.ok("logs", "prints", "-n", "all", "--raw").stdout.splitlines()
    assert lines[0] == "begun, 0 of a document"
    assert lines[1:40_000] == [f"{number} of a document" for number in range(1, 40_000)]
    assert [len(line) for line in lines[40_000:-1]] == [65536, 65536, 65536, 200_000 - 3 * 65536]


PRINTS_LINES = """
import time
for number in range(15_000):
    print("line", number, "x" * 60)
print("end", flush=True)
time.sleep(1000)
"""


@pytest.mark.capability
@pytest.mark.parametrize("stream", ["/dev/stdout", pytest.param("-", marks=pytest.mark.slow)])
def test_output_to_standard_output_is_printed_by_run_and_kept_in_a_small_file(
    real_pool: RealPool, until: Until, stream: str
) -> None:
    real_pool.write("prints.py", PRINTS_LINES)
    keys = {"command": [sys.executable, "prints.py"], "log": {"path": stream}}
    real_pool.write("pool.toml", server("prints", **keys))
    running = real_pool.spawn("run")
    assert running.stdout is not None
    lines = [running.stdout.readline() for _ in range(15_000)]
    assert lines == [f"prints | line {number} {'x' * 60}\n" for number in range(15_000)]
    until(lambda: real_pool.ok("logs", "-n", "1").stdout == "prints | end\n")
    files = list(real_pool.runtime.rglob("prints.log*"))
    assert len(files) == 2, "it was rotated"
    assert sum(file.stat().st_size for file in files) < 2 * 1024 * 1024
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=50)


FAILS = """
import logging, time
print("plain")
logging.basicConfig(format="%(levelname)s:    %(message)s")
try:
    raise ValueError("a bug")
except ValueError:
    logging.exception("it failed")
print("plain", flush=True)
time.sleep(1000)
"""


@pytest.mark.capability
def test_object_of_each_line_has_its_level_and_its_own_text(real_pool: RealPool) -> None:
    real_pool.write("fails.py", FAILS)
    real_pool.write("pool.toml", server("fails", command=[sys.executable, "-u", "fails.py"]))
    running = real_pool.spawn("run", "--log-format", "json")
    assert running.stdout is not None
    lines = [json.loads(running.stdout.readline()) for _ in range(7)]
    assert [(line["message"].strip(), line.get("level")) for line in lines] == [
        ("plain", None),
        ("it failed", "error"),
        ("Traceback (most recent call last):", "error"),
        (f'File "{real_pool.directory}/fails.py", line 5, in <module>', "error"),
        ('raise ValueError("a bug")', "error"),
        ("ValueError: a bug", "error"),
        ("plain", None),
    ]
    printed = [json.loads(line) for line in real_pool.ok("logs", "-n", "2", "-o", "json").stdout.splitlines()]
    assert [(line["line"], line["level"]) for line in printed] == [
        ("ValueError: a bug", "error"),
        ("plain", None),
    ]
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=50)


@pytest.mark.slow
def test_log_that_cannot_be_read_is_named_and_hides_no_other(real_pool: RealPool, until: Until) -> None:
    keys: dict[str, Any] = {"command": ["sh", "-c", "echo begun; exec sleep 1000"]}
    path = real_pool.directory / "here" / "log"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as place:
        place.bind(str(path))  # not even root can open it
        real_pool.write(
            "pool.toml",
            server("closed", **keys, log={"path": str(path)})
            + server("open", **keys)
            + f'[events]\npath = "{path}"\n',
        )
        running = real_pool.spawn("run")
        done = until(lambda: (said := real_pool.run("logs")).stdout == "open   | begun\n" and said)
        assert done.code == 1
        why = f"{path} cannot be read: No such device or address"
        assert done.stderr == f"error: closed: {why}\n"
        followed = real_pool.spawn("logs", "-f")
        assert followed.stdout is not None
        assert followed.stdout.readline() == "open   | begun\n"
        followed.send_signal(signal.SIGINT)
        assert followed.communicate()[1] == done.stderr
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate()
        assert "open   | begun\n" in stdout
        assert f"[poolctl: the output of closed is not shown, as {why}]\n" in stderr
        done = real_pool.run("run", "--", "sh", "-c", "exit 7")
        assert done.code == 7, str(done)
        done = real_pool.run("events")
        assert (done.code, done.stderr) == (1, f"error: {why}\n")
