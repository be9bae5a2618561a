"""Which files have changed since they were read."""

from __future__ import annotations

import os
import time
from pathlib import Path

from poolctl.config.files.marks import changed_files, marks_of
from poolctl.config.files.read_file import stamp_of
from tests.deadline import wait_until


def test_unchanged_files_are_not_read_again_and_changed_new_and_gone_ones_are_found(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("1.toml", "2.yaml", "3.json"))
    (tmp_path / "notes.txt").write_text("no configuration")
    for path in (first, second):
        path.write_text("a")
        os.utime(path, (1, 1))
    marks = marks_of([str(tmp_path)])
    assert [*marks] == [str(first), str(second)]
    assert changed_files(marks, [str(tmp_path)]) == []
    os.utime(first, (2, 2))
    assert changed_files(marks, [str(tmp_path)]) == []
    first.write_text("b")
    second.unlink()
    third.write_text("c")
    assert changed_files(marks, [str(tmp_path)]) == [str(second), str(first), str(third)]


def test_mark_without_a_stamp_is_of_a_file_that_has_just_been_written(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    (mark,) = marks_of([str(path)]).values()
    assert (mark.stamp, mark.digest) == (None, "unreadable: FileNotFoundError")
    path.write_text("a")
    found = os.stat(path)
    assert stamp_of(str(path)) == (found.st_ino, found.st_ctime_ns, found.st_mtime_ns, 1)
    assert stamp_of("a\0b") is None
    wait_until(lambda: marks_of([str(path)])[str(path)].stamp == stamp_of(str(path)))
    os.utime(path, ns=(time.time_ns() + 10**12,) * 2)
    assert marks_of([str(path)])[str(path)].stamp is None


def test_only_the_pools_part_of_a_pyproject_counts(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    digests = set()
    for text in ("[project]\nname = 'a'\n", "[project]\nname = 'b'\n"):
        path.write_text(text + "[tool.poolctl.pool]\nname = 'x'\n")
        digests.add(marks_of([str(path)])[str(path)].digest)
    assert len(digests) == 1
    for text in ("[tool.poolctl.pool]\nname = 'y'\n", "broken [", "broken ["):
        path.write_text(text)
        digests.add(marks_of([str(path)])[str(path)].digest)
    assert len(digests) == 3


def test_directory_without_files_is_marked_itself(tmp_path: Path) -> None:
    assert [*marks_of([str(tmp_path)])] == [str(tmp_path)]
