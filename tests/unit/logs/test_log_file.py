"""A log file: whole lines, rotation, and what a full or forbidden disk does to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from poolctl.logs.log_file import LogFile
from poolctl.logs.log_line import stamp, with_timestamp_prefix
from poolctl.logs.log_tail import tail
from tests.manual_clock import ManualClock


def contents(path: Path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in sorted(path.parent.glob(f"{path.name}*"))}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "web.log"


def test_directories_are_made_and_the_file_is_for_owner_and_group(path: Path) -> None:
    file = LogFile(str(path))
    assert file.append_and_count_written(b"one\n") == 4
    file.close()
    assert path.read_text() == "one\n"
    assert path.stat().st_mode & 0o7777 & ~0o040 == 0o600
    assert path.parent.stat().st_mode & 0o007 == 0
    assert repr(file) == f"<LogFile {path}, open>"


def test_no_file_grows_beyond_its_limit_and_no_line_is_torn_by_rotation(path: Path) -> None:
    file = LogFile(str(path), max_size_bytes=10, keep=3)
    assert file.append_and_count_written(b"aaa\nbbb\nccc\nddd\n") == 16
    assert file.append_and_count_written(b"eee\n") == 4
    file.close()
    assert contents(path) == {"web.log": "eee\n", "web.log.1": "ccc\nddd\n", "web.log.2": "aaa\nbbb\n"}


def test_a_line_longer_than_the_limit_has_a_file_of_its_own(path: Path) -> None:
    file = LogFile(str(path), max_size_bytes=4, keep=5)
    file.append_and_count_written(b"a\nlonger than that\nb\n")
    file.close()
    assert contents(path) == {"web.log": "b\n", "web.log.1": "longer than that\n", "web.log.2": "a\n"}


def test_surplus_old_files_are_removed_when_fewer_are_to_be_kept(path: Path) -> None:
    many = LogFile(str(path), max_size_bytes=2, keep=4)
    many.append_and_count_written(b"1\n2\n3\n4\n5\n6\n")
    many.close()
    assert list(contents(path)) == ["web.log", "web.log.1", "web.log.2", "web.log.3", "web.log.4"]
    few = LogFile(str(path), max_size_bytes=2, keep=1)
    few.append_and_count_written(b"7\n")
    few.close()
    assert contents(path) == {"web.log": "7\n", "web.log.1": "6\n"}


def test_file_without_anything_to_keep_starts_empty(path: Path) -> None:
    file = LogFile(str(path), max_size_bytes=4, keep=0)
    file.append_and_count_written(b"a\nb\nc\n")
    file.close()
    assert contents(path) == {"web.log": "c\n"}


@pytest.mark.parametrize("first", ["{time} x\n", '{{"time": "{time}", "line": "x"}}\n'])
def test_a_file_is_rotated_when_its_first_line_is_old_enough(path: Path, first: str) -> None:
    clock = ManualClock()
    path.parent.mkdir()
    path.write_text(first.format(time=stamp(clock.time() - 50)))
    file = LogFile(str(path), max_age_seconds=60, keep=1, clock=clock)
    file.append_and_count_written(b"young\n")
    assert list(contents(path)) == ["web.log"]
    clock.advance(20)
    file.append_and_count_written(b"old\n")
    file.append_and_count_written(b"new again\n")
    file.close()
    assert contents(path)["web.log"] == "old\nnew again\n"
    assert contents(path)["web.log.1"].endswith("young\n")


def test_a_file_that_is_old_enough_is_rotated_also_when_nothing_more_is_printed(path: Path) -> None:
    clock = ManualClock()
    file = LogFile(str(path), keep=1, clock=clock)
    assert file.rotate_when_old() is None, "no age limit"
    file.limit(max_size_bytes=0, keep=1, max_age_seconds=60)
    assert file.rotate_when_old() == 60
    assert not path.exists()
    file.append_and_count_written(b"%s young\n" % stamp(clock.time()).encode())
    clock.advance(20)
    assert file.rotate_when_old() == 40
    file.close()
    assert file.rotate_when_old() == pytest.approx(40), "by any writer"
    clock.advance(41)
    assert file.rotate_when_old() == 60
    assert contents(path).keys() == {"web.log", "web.log.1"}
    assert contents(path)["web.log"] == ""
    clock.advance(100)
    assert file.rotate_when_old() == 60, "an empty one has no age"
    assert contents(path).keys() == {"web.log", "web.log.1"}
    file.close()


@pytest.mark.parametrize("first", ["2026-99-99T99:99:99.000000Z x\n", "no time\n"])
def test_a_first_line_without_a_time_is_of_now(path: Path, first: str) -> None:
    clock = ManualClock()
    path.parent.mkdir()
    path.write_text(first)
    file = LogFile(str(path), max_age_seconds=60, clock=clock)
    assert file.rotate_when_old() == 60
    file.close()


def test_an_unfinished_line_of_an_earlier_writer_is_ended_first(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("whole\ntorn")
    file = LogFile(str(path))
    assert file.append_and_count_written(b"next\n") == 5
    file.close()
    assert path.read_text() == "whole\ntorn\nnext\n"


def test_file_that_another_program_moved_away_is_opened_again(path: Path) -> None:
    clock = ManualClock()
    file = LogFile(str(path), clock=clock)
    file.append_and_count_written(b"one\n")
    path.rename(path.with_name("moved"))
    file.append_and_count_written(b"two\n")  # within the second in which it is not checked
    clock.advance(1)
    file.append_and_count_written(b"three\n")
    path.rename(path.with_name("again"))
    file.close()
    file.append_and_count_written(b"four\n")
    file.close()
    assert (path.with_name("moved").read_text(), path.with_name("again").read_text()) == (
        "one\ntwo\n",
        "three\n",
    )
    assert path.read_text() == "four\n"


def test_a_file_that_was_emptied_counts_as_empty(path: Path) -> None:
    clock = ManualClock()
    file = LogFile(str(path), max_size_bytes=10, keep=1, clock=clock)
    file.append_and_count_written(b"123456789\n")
    os.truncate(path, 0)
    clock.advance(1)
    file.append_and_count_written(b"123456789\n")
    file.close()
    assert list(contents(path)) == ["web.log"]


def test_a_device_that_is_full_takes_nothing_and_says_why() -> None:
    file = LogFile("/dev/full", max_size_bytes=1, keep=1)
    assert file.append_and_count_written(b"one\ntwo\n") == 0
    assert file.error == "No space left on device"
    file.close()


def test_a_device_is_never_rotated() -> None:
    file = LogFile("/dev/null", max_size_bytes=1, keep=1, max_age_seconds=0.001)
    assert file.append_and_count_written(b"one\ntwo\n") == 8
    assert file.append_and_count_written(b"three\n") == 6
    file.close()


def test_a_fifo_without_a_reader_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    file = LogFile(str(tmp_path / "fifo"))
    assert file.append_and_count_written(b"lost\n") == 0
    assert file.error


def test_a_path_that_is_a_directory_is_an_error_that_does_not_raise(tmp_path: Path) -> None:
    file = LogFile(str(tmp_path))
    assert file.append_and_count_written(b"lost\n") == 0
    assert file.error == "Is a directory"


def test_a_link_is_followed_only_when_its_owner_has_the_same_rights(tmp_path: Path) -> None:
    (tmp_path / "web.log").symlink_to(tmp_path / "elsewhere.log")
    file = LogFile(str(tmp_path / "web.log"))
    assert file.append_and_count_written(b"one\n") == 4
    file.close()
    assert (tmp_path / "elsewhere.log").read_text() == "one\n"


@pytest.mark.parametrize("keep", [0, 2])
def test_a_link_stays_and_the_file_to_which_it_leads_is_rotated(tmp_path: Path, keep: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    link = tmp_path / "web.log"
    link.symlink_to("disk/web.log")
    file = LogFile(str(link), max_size_bytes=10, keep=keep)
    assert file.append_and_count_written(b"line\n" * 20) == 100
    file.close()
    assert os.readlink(link) == "disk/web.log"
    assert sorted(os.listdir(tmp_path)) == ["disk", "web.log"]
    assert sorted(os.listdir(disk)) == ["web.log", "web.log.1", "web.log.2"][: keep + 1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a link that belongs to somebody else")
def test_a_link_of_another_user_leads_nowhere(tmp_path: Path) -> None:
    link = tmp_path / "web.log"
    link.symlink_to(tmp_path / "precious")
    os.chown(link, 65534, 65534, follow_symlinks=False)
    file = LogFile(str(link))
    assert file.append_and_count_written(b"evil\n") == 0
    assert not (tmp_path / "precious").exists()


def test_file_that_cannot_be_rotated_grows_and_loses_no_line(path: Path) -> None:
    clock = ManualClock()
    file = LogFile(str(path), max_size_bytes=4, keep=1, clock=clock)
    file.append_and_count_written(b"one\n")
    (path.parent / "web.log.1").mkdir()  # neither removed nor renamed over
    assert file.append_and_count_written(b"two\n") == 4
    assert file.append_and_count_written(b"three\n") == 6
    assert path.read_text() == "one\ntwo\nthree\n"
    (path.parent / "web.log.1").rmdir()
    clock.advance(60)
    clock.set_time_of_day(-3600.0)  # the machine's time was corrected: only running time counts
    file.append_and_count_written(b"four\n")
    file.close()
    assert contents(path) == {"web.log": "four\n", "web.log.1": "one\ntwo\nthree\n"}


LIMITED = """
import resource, sys
from poolctl.logs.log_file import LogFile
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
file = LogFile(sys.argv[1])
print(file.append_and_count_written(b"aaa\\nbbb\\nccc\\nddd\\n"), file.error)
print(file.append_and_count_written(b"eee\\n"), file.error)
print(file.append_and_count_written(b"e\\n"), file.error)
"""


def test_a_limit_that_is_met_within_a_line_leaves_whole_lines(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["8 File too large", "0 File too large", "2 "]
    assert path.read_text() == "aaa\nbbb\ne\n"


SHARED = """
import resource, sys
from poolctl.logs.log_file import LogFile
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
file = LogFile(sys.argv[1])
file.append_and_count_written(b"a\\n")
with open(sys.argv[1], "ab") as other:
    other.write(b"x\\n")
print(file.append_and_count_written(b"bb\\ncccccccc\\n"))
"""


def test_lines_of_another_program_are_never_cut_away(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHARED, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "3\n"
    assert path.read_text() == "a\nx\nbb\nccc"
    file = LogFile(str(path))
    file.append_and_count_written(b"next\n")
    file.close()
    assert path.read_text() == "a\nx\nbb\nccc\nnext\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_keeps_whole_lines_and_is_used_again_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (disk / "ballast").write_bytes(b"x" * 40 * 1024)
        file = LogFile(str(disk / "web.log"))
        line = b"y" * 99 + b"\n"
        stored = file.append_and_count_written(line * 1000)
        assert 0 < stored < 100_000
        assert stored % 100 == 0
        assert file.error == "No space left on device"
        assert (disk / "web.log").stat().st_size == stored
        (disk / "ballast").unlink()
        assert file.append_and_count_written(line) == 100
        assert file.error == ""
        file.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_gap_that_a_killed_writer_left_is_filled_and_hides_nothing(path: Path) -> None:
    file = LogFile(str(path), max_size_bytes=2, keep=5)
    file.append_and_count_written(b"1\n2\n3\n4\n")
    os.rename(f"{path}.2", f"{path}.9")
    os.rename(f"{path}.3", f"{path}.4")
    os.rename(f"{path}.9", f"{path}.3")
    assert [line.text for line in tail(str(path), None)] == ["1", "2", "3", "4"]
    file.append_and_count_written(b"5\n")
    file.close()
    assert [line.text for line in tail(str(path), None)] == ["1", "2", "3", "4", "5"]
    assert not path.with_name("web.log.5").exists()


def test_file_whose_last_line_is_whole_is_continued_without_an_empty_line(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("whole\n")
    file = LogFile(str(path))
    file.append_and_count_written(b"next\n")
    file.close()
    assert path.read_text() == "whole\nnext\n"


def test_log_of_a_process_without_standard_input_is_kept_like_any_other(path: Path) -> None:
    first = set()
    saved = os.dup(0)
    try:
        # The free number is that of the file or of a directory above it.
        for each in (path, path.parent / "deeper" / "web.log"):
            os.close(0)
            clock = ManualClock()
            file = LogFile(str(each), keep=3, max_age_seconds=60, clock=clock)
            assert file.append_and_count_written(with_timestamp_prefix(b"one\n", stamp(clock.time()))) > 0
            first.add(os.path.exists("/dev/fd/0") and os.path.samefile("/dev/fd/0", each))
            file.append_and_count_written(b"two\n")
            each.rename(each.with_name("moved"))
            clock.advance(5)
            file.append_and_count_written(with_timestamp_prefix(b"three\n", stamp(clock.time())))
            clock.advance(61)
            file.rotate_when_old()
            file.append_and_count_written(b"four\n")
            file.close()
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(0)
            os.dup2(saved, 0)
            assert each.with_name("moved").read_text().endswith("one\ntwo\n")
            assert each.with_name("web.log.1").read_text().endswith("three\n")
            assert each.read_text() == "four\n"
    finally:
        os.dup2(saved, 0)
        os.close(saved)
    assert True in first
