"""The exit of a pool's processes and its reason."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from poolctl.control.pool_processes import PoolExit, await_end, clear_exit, last_words, read_exit, write_exit

FATAL = "Fatal Python error: init_fs_encoding: failed to get the Python codec of the filesystem encoding"
PYTHON = f"""\
Python path configuration:
  PYTHONHOME = '/nowhere'
  sys.path = [
    '/nowhere/lib/python3.11',
  ]
{FATAL}
Python runtime state: core initialized
ModuleNotFoundError: No module named 'encodings'

Current thread 0x00007f6f8f1b8740 (most recent call first):
  <no Python frame>
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PYTHON, f"{FATAL}: ModuleNotFoundError: No module named 'encodings'"),
        (f"earlier\n{FATAL}\n", FATAL),
        (PYTHON + "later\n" * 12, "later"),
        (
            "Traceback (most recent call last):\n  File …\nImportError: no pydantic\n\n",
            "ImportError: no pydantic",
        ),
        ("", ""),
    ],
)
def test_reason_is_the_interpreters_error_or_the_last_line(tmp_path: Path, text: str, words: str) -> None:
    log = tmp_path / "supervisor.log"
    assert last_words(str(log)) == ""
    log.write_text(text)
    assert last_words(str(log)) == words


def test_reason_is_looked_for_from_a_position_on_unless_the_log_was_emptied(tmp_path: Path) -> None:
    log = tmp_path / "supervisor.log"
    log.write_text("of an earlier one\n")
    end = log.stat().st_size
    assert last_words(str(log), end) == ""
    log.write_text("of an earlier one\nthis one\n")
    assert last_words(str(log), end) == "this one"
    log.write_text("the reason\n")
    assert last_words(str(log), end) == "the reason"


def test_end_of_a_process_is_awaited_within_the_limit() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert not await_end(process.pid, 0.01)
        process.kill()
        assert await_end(process.pid, 60)
    assert await_end(process.pid, 0)
    assert await_end(0, 0)


def test_exit_of_a_pool_is_read_until_it_is_cleared(tmp_path: Path) -> None:
    end = PoolExit(status=3, reason="web failed", keeper_pid=7)
    assert read_exit(str(tmp_path)) is None
    write_exit(str(tmp_path), end)
    assert read_exit(str(tmp_path)) == end
    clear_exit(str(tmp_path))
    clear_exit(str(tmp_path))
    assert read_exit(str(tmp_path)) is None
