"""Rotating a file that running processes append to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poolctl.keeper.spawn import MAX_SIZE_BYTES, rotate_if_large


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "helpers.log"


def test_small_output_file_is_not_rotated(path: Path) -> None:
    path.write_bytes(b"x" * MAX_SIZE_BYTES)
    rotate_if_large(str(path))
    assert os.listdir(path.parent) == [path.name]


def test_reader_that_has_the_output_file_open_continues_in_it(path: Path) -> None:
    with path.open("ab", buffering=0) as before:
        for _ in range(3):
            before.write(b"".join(b"line %d\n" % number for number in range(150_000)))
            rotate_if_large(str(path))
        before.write(b"the last\n")
    assert path.read_bytes() == b"the last\n"
    old = Path(f"{path}.1")
    assert old.stat().st_size <= MAX_SIZE_BYTES + 100
    assert oct(old.stat().st_mode)[-3:] == "600"
    first, second, *_, last = old.read_text().splitlines()
    assert first.startswith("(")
    assert first.endswith(" bytes before this were left out)")
    assert second.startswith("line ")
    assert last == "line 149999"


def test_repeated_lines_are_counted(path: Path) -> None:
    path.write_bytes(b"a\n" * MAX_SIZE_BYTES + b"b\nc\nc\nthe end")
    rotate_if_large(str(path))
    lines = Path(f"{path}.1").read_text().splitlines()[1:]
    repeated = int(lines[1].split()[5])
    assert MAX_SIZE_BYTES // 2 - 20 < repeated < MAX_SIZE_BYTES // 2
    assert lines == [
        "a", f"(the line above was repeated {repeated} times)", "b",
        "c", "(the line above was repeated 1 time)", "the end",
    ]  # fmt: skip


def test_output_that_cannot_be_kept_is_dropped(path: Path) -> None:
    path.write_bytes(b"x" * (MAX_SIZE_BYTES + 1))
    Path(f"{path}.1").mkdir()
    rotate_if_large(str(path))
    assert path.stat().st_size == 0


def test_path_that_is_no_file_is_left_alone() -> None:
    rotate_if_large(os.devnull)
