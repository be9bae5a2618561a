"""A loop that gave back its blank pages works as before, and holds less."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("uvloop")

SCRIPT = """
import asyncio, socket, sys, uvloop
from poolctl.worker.sharing.thrift import give_back_blank_pages

def private():
    return sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Private_Dirty"))

async def echo():
    ours, theirs = socket.socketpair()
    got = b""
    reader, writer = await asyncio.open_connection(sock=ours)
    theirs.sendall(b"x" * 200_000)
    while len(got) < 200_000:
        got += await reader.read(65536)
    writer.close()
    return got == b"x" * 200_000

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    loop = runner.get_loop()
    before = private()
    given = give_back_blank_pages(loop)
    assert given >= 200_000, given
    assert before - private() >= 150, (before, private())
    assert give_back_blank_pages(loop) >= given  # blank they stay
    assert runner.run(echo())
with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
    assert give_back_blank_pages(runner.get_loop()) == 0
print("as before")
"""


def test_a_loop_gives_back_what_is_blank_and_receives_as_before() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "as before\n"), done.stderr
