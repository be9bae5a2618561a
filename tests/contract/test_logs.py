"""The output of servers: it never holds them up, and is kept line by line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.configuration import server
from tests.real_pool import RealPool

Until = Callable[..., Any]

# Prints a part of a line, 700 KB of lines in one write, a line of 200 KiB, and the end of a last line.
PRINTS = r"""
import os, time

def write(data):
    while data:
        data = data[os.write(1, data) :]

write(b"begun, ")
time.sleep(0.2)
write(b"".join(b"%d of a document\n" % number for number in range(40_000)))
write(b"x" * 200_000 + b"\n")
write(b"all ")
time.sleep(0.2)
write(b"written\n")
time.sleep(1000)
"""


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
