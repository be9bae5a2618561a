"""Lines for a disk that may be full, or for a reader that may be gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from poolctl.cli.output import LineOutput

# Writes lines while the file may not grow beyond 20 bytes, then one when it may, as after a disk had no room.
LIMITED = """
import resource, sys
from poolctl.cli.output import LineOutput
resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
output = LineOutput(sys.stdout, lambda text: f"{text}\\n")
for number in range(4):
    output.write(f"a line {number}\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
output.write("again\\n")
output.write("and again\\n")
"""


def test_lines_without_room_are_dropped_and_counted_once_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("w") as out:
        subprocess.run([sys.executable, "-c", LIMITED], stdout=out, check=True)
    assert path.read_text().splitlines() == [
        "a line 0", "a line 1", "a ", "[poolctl: lines of output lost here: 2 (File too large)]", "again", "and again",
    ]  # fmt: skip


def test_line_for_a_reader_that_is_gone_raises() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream, pytest.raises(BrokenPipeError):
        LineOutput(stream, str).write("line\n")
