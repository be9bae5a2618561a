"""Tests that change what belongs to a whole process, such as its children: they run in a process of their own."""

from __future__ import annotations

import subprocess
import sys


def run_in_own_process(program: str) -> None:
    """Run the program's text; its exception is the message of the test's failure."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
