"""Lines for a disk that may be full, or for a reader that may be gone."""

from __future__ import annotations

import os
import pty
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


def test_lines_that_are_lost_at_the_end_are_counted(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        output = LineOutput(full, str)
        assert output.loss == ""
        output.write("one\n")
        output.write("two\n")
        assert output.loss == "2 (No space left on device)"


@pytest.mark.parametrize(("option", "at_once"), [("-u", b"text"), ("-B", b"")])
def test_whole_stream_is_as_unbuffered_as_the_one_that_it_replaces(option: str, at_once: bytes) -> None:
    script = """if True:
        import os, sys
        from poolctl.cli.output import whole_stream
        stream = whole_stream(sys.stdout)
        stream.write("text")
        os._exit(0)"""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    found = subprocess.run(
        [sys.executable, option, "-c", script], stdout=subprocess.PIPE, env=env, check=True
    )
    assert found.stdout == at_once


def test_line_for_a_terminal_that_is_gone_raises() -> None:
    person, program = pty.openpty()
    with open(program, "w") as stream:
        output = LineOutput(stream, str)
        output.write("one\n")
        os.close(person)
        with pytest.raises(BrokenPipeError):
            output.write("two\n")


def test_line_is_in_the_encoding_of_its_stream(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="latin-1") as stream:
        LineOutput(stream, str).write("é✗\n")
    assert (tmp_path / "out").read_bytes() == b"\xe9\\u2717\n"


def test_line_for_a_reader_that_is_gone_raises() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream, pytest.raises(BrokenPipeError):
        LineOutput(stream, str).write("line\n")
