"""A supervisor whose loop hangs when its keeper ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from tests.deadline import wait_until
from tests.processes import stat

HUNG = """
import os, sys
from poolctl.supervisor.takeover import keeper_replacement
keeper_replacement._LATE_SECONDS = keeper_replacement.SILENT_SECONDS = 1

def replace(frame):
    print(frame.f_code.co_name, flush=True)
    os._exit(0)

def hang():
    print(os.getpid(), flush=True)
    if sys.argv[1] == "blocked":
        os.read(os.pipe()[0], 1)
    while True:
        pass

keeper_replacement.KeeperEndWatch(os.getppid(), replace)
hang()
"""


@pytest.mark.parametrize("how", ["busy", "blocked"])
def test_replaces_the_keeper_after_its_parents_end_and_not_before(how: str) -> None:
    # Two commands, so that the shell does not execute the first in its own place.
    shell = ["sh", "-c", '"$@"; exit', "sh", sys.executable, "-c", HUNG, how]
    with subprocess.Popen(shell, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        hung = int(parent.stdout.readline())
        try:
            for _ in range(5):
                os.kill(hung, signal.SIGCONT)
            os.kill(hung, signal.SIGSTOP)
            wait_until(lambda: stat(hung).state == "T")
            parent.kill()
            assert parent.stdout.read() == "hang\n"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(hung, signal.SIGKILL)
