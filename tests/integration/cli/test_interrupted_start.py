"""Ctrl-C at any moment from the first line of poolctl on: exit 130, and no traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.real_pool import RealPool

# Sends SIGINT at the INTERRUPT_AT-th of the events that the interpreter reports (imports, opened files, code that
# begins), counted from when Ctrl-C is in the command's hands.
SITECUSTOMIZE = """
import os, sys
import _signal

count, at = 0, int(os.environ["INTERRUPT_AT"])

def hook(event, arguments):
    global count
    if event not in ("import", "open", "exec", "marshal.loads", "socket.connect"):
        return
    if count or _signal.getsignal(_signal.SIGINT) is not _signal.default_int_handler:
        count += 1
        if count == at:
            os.kill(os.getpid(), _signal.SIGINT)

sys.addaudithook(hook)
"""
# Command lines, and how many of the moments come before their end at least.
LINES = {
    "list": 8,
    "validate -o json": 10,
    "list --name=x -qo name": 10,
    "status": 8,
    "--version": 8,
}


@pytest.mark.heavy_variants
@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("list", False),
        ("list", True),
        *(pytest.param(line, False, marks=pytest.mark.heavy) for line in LINES if line != "list"),
    ],
)
def test_ctrl_c_while_the_command_starts_is_130_without_a_traceback(
    real_pool: RealPool, line: str, module: bool
) -> None:
    real_pool.write_hello("web")
    real_pool.write("site/sitecustomize.py", SITECUSTOMIZE)
    command = [sys.executable, "-m", "poolctl"] if module else real_pool.command()
    interrupted = 0
    while True:
        at = round(1.9**interrupted)
        done = subprocess.run(
            [*command, *line.split()], cwd=real_pool.directory, capture_output=True, text=True, timeout=60,
            env=real_pool.env | {"PYTHONPATH": "site", "INTERRUPT_AT": str(at)},
        )  # fmt: skip
        assert "Traceback" not in done.stderr, (at, done)
        assert "internal error" not in done.stderr, (at, done)
        if done.returncode != 130:
            break  # it had ended before
        interrupted += 1
    assert interrupted >= LINES[line]
    assert done.returncode in (0, 3, 4), done
