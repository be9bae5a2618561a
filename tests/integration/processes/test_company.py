"""Programs that are started together: the first is the parent of the others, and each holds what is its own."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from poolctl.keeper import wire
from poolctl.keeper.spawn import CompanionSpec, start_with_companions
from tests.deadline import wait_until

# Writes into its first argument who its parent is, what it holds and may hold, and its other arguments; stays until
# descriptor 3 ends.
SAY = """
import json, os, resource, sys
held = sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))
limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
said = {"pid": os.getpid(), "parent": os.getppid(), "held": held, "limit": limit, "more": sys.argv[2:]}
with open(sys.argv[1] + ".new", "w") as file:
    json.dump(said, file)
os.rename(sys.argv[1] + ".new", sys.argv[1])
os.read(3, 1)
"""


def say(path: Path) -> list[str]:
    return [sys.executable, "-I", "-c", SAY, str(path)]


def company(directory: Path, *companions: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the program was told and says, and what the last companion says."""
    program, last = (directory / name for name in ("program", "last"))
    read, write = os.pipe()
    links = [wire.pair() for _ in companions]

    try:
        fds = [read, *(ours.fileno() for ours, _ in links)]
        output = str(directory / "output")
        accompanied = [
            CompanionSpec(argv, output, session=True, fds=[theirs.fileno()])
            for argv, (_, theirs) in zip(companions, links, strict=True)
        ]
        start_with_companions(say(program), dict(os.environ), fds, accompanied)
        wait_until(lambda: program.exists() and last.exists())
    finally:
        for fd in (read, write):
            os.close(fd)
        for pair in links:
            for end in pair:
                end.close()
    said = json.loads(program.read_text())
    return said | json.loads(said["more"][0]), json.loads(last.read_text())


def test_companions_are_children_of_the_program_and_hold_their_link_only(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowered = min(soft, 1000)
    with open(os.devnull) as stray:
        os.set_inheritable(stray.fileno(), True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowered, hard))
        try:
            program, last = company(tmp_path, say(tmp_path / "first"), say(tmp_path / "last"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert program["open_files"] == [lowered, hard]
    assert program["limit"] == last["limit"] == hard
    assert last["parent"] == program["pid"] != os.getpid()
    assert program["pids"][1] == last["pid"]
    assert program["held"] == [0, 1, 2, 3, 4, 5]
    assert last["held"] == [0, 1, 2, 3]


def test_companion_that_cannot_be_started_does_not_prevent_the_program(tmp_path: Path) -> None:
    program, last = company(tmp_path, ["/no/such/program"], say(tmp_path / "last"))
    assert program["pids"] == [0, last["pid"]]
    assert last["held"] == [0, 1, 2, 3]
