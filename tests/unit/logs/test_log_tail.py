"""Reading logs back: their ends, several merged, and as they grow."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.logs import log_tail
from poolctl.logs.line_filter import LineFilter
from poolctl.logs.log_file import LogFile
from poolctl.logs.log_line import LogLine, parse_line, stamp, with_timestamp_prefix
from poolctl.logs.log_tail import (
    DirectoryWatch,
    Follower,
    LogReorderBuffer,
    OpenLog,
    TailedFile,
    follow,
    merged_tails,
    tail,
)
from tests.descriptors import free_descriptors, no_descriptor_left
from tests.sandbox import INOTIFY_INIT, run_without


def at(second: int, *texts: str) -> bytes:
    return with_timestamp_prefix("".join(f"{text}\n" for text in texts).encode(), stamp(second))


def texts(lines: list[LogLine]) -> list[str]:
    return [line.text for line in lines]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web.log"


def test_newest_files_are_read_if_there_are_too_few_descriptors(path: Path) -> None:
    names = [f"{path}.{each}" if each else str(path) for each in range(9)]
    for number, name in enumerate(names):
        Path(name).write_bytes(b"x" * number)
    with no_descriptor_left():
        with free_descriptors(6):
            log = OpenLog(str(path))
        sizes = [size for _, size in log.parts]
        assert sizes in [list(range(count)) for count in range(1, 7)]
        log.close()
        with free_descriptors(0), pytest.raises(OSError, match="Too many open files"):
            OpenLog(str(path))


def test_rotated_file_that_cannot_be_opened_is_an_error(path: Path) -> None:
    path.touch()
    with no_descriptor_left(), socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{path}.1")
        with pytest.raises(OSError, match="No such device or address"):
            OpenLog(str(path))


class TestTail:
    def test_tail_goes_back_into_rotated_files(self, path: Path) -> None:
        file = LogFile(str(path), max_size_bytes=80, keep=5)
        file.append_and_count_written(b"".join(at(second, f"line {second}") for second in range(9)))
        file.close()
        assert len(list(path.parent.iterdir())) > 3
        assert texts(tail(str(path), 4)) == ["line 5", "line 6", "line 7", "line 8"]
        assert texts(tail(str(path), None)) == [f"line {number}" for number in range(9)]

    def test_tail_leaves_no_file_open(self, path: Path) -> None:
        path.write_bytes(at(1, "one"))
        Path(f"{path}.1").hardlink_to(path)
        with no_descriptor_left():
            assert texts(tail(str(path), 5)) == ["one"]

    def test_tail_of_a_missing_file_is_empty(self, path: Path) -> None:
        assert tail(str(path), 10) == []

    def test_files_that_are_missing_while_others_are_renamed_are_passed(self, path: Path) -> None:
        Path(f"{path}.2").write_bytes(at(2, "two"))
        Path(f"{path}.4").write_bytes(at(1, "one"))
        Path(f"{path}.7").write_bytes(at(0, "of an earlier log"))
        assert texts(tail(str(path), None)) == ["one", "two"]
        Path(f"{path}.2").unlink()
        assert tail(str(path), None) == []

    def test_tail_ends_where_lines_are_too_old(self, path: Path) -> None:
        path.write_bytes(at(1, "old") + at(2, "new") + b"continued\n" + at(3, "newest"))
        assert texts(tail(str(path), None, since=stamp(2))) == ["new", "continued", "newest"]

    def test_a_line_without_a_time_has_that_of_the_one_before(self, path: Path) -> None:
        path.write_bytes(at(1, "one") + b"two\n")
        assert {line.time for line in tail(str(path), 2)} == {stamp(1)}

    def test_tail_is_the_same_when_the_files_are_rotated_meanwhile(self, path: Path) -> None:
        path.write_bytes(at(1, "one"))
        log = log_tail.OpenLog(str(path))
        path.rename(f"{path}.1")
        path.write_bytes(at(2, "two"))
        assert texts(log.tail(None)) == ["one"]
        log.close()

    def test_file_seen_under_two_names_is_read_once(self, path: Path) -> None:
        path.write_bytes(at(1, "one"))
        Path(f"{path}.1").hardlink_to(path)
        assert texts(tail(str(path), None)) == ["one"]

    @given(
        st.lists(st.text(st.characters(codec="ascii", exclude_characters="\n"), max_size=12), max_size=30),
        st.integers(1, 40),
        st.booleans(),
        st.integers(0, 400),
        st.integers(1, 2),
    )
    def test_tail_finds_the_lines_wherever_blocks_of_64_kib_end(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        lines: list[str],
        count: int,
        ended: bool,
        before: int,
        blocks: int,
    ) -> None:
        path = tmp_path_factory.mktemp("tail") / "x.log"
        lines.append("".join(map(str, range(40_000)))[: blocks * 65536 - before])
        path.write_text("\n".join(lines) + ("\n" if ended else ""))
        assert texts(tail(str(path), count)) == lines[-count:]

    def test_tail_of_several_logs_is_in_the_order_of_time(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(at(1, "a1") + at(3, "a3") + b"  trace\n" + at(5, "a5"))
        (tmp_path / "b").write_bytes(at(2, "b2") + at(4, "b4"))
        merged = merged_tails({"one": str(tmp_path / "a"), "two": str(tmp_path / "b")}, 3)
        assert texts(merged) == ["b2", "a3", "  trace", "b4", "a5"]
        assert [line.name for line in merged] == ["two", "one", "one", "two", "one"]


@pytest.fixture(params=["inotify", "polling"])
def followed(request: pytest.FixtureRequest) -> Iterator[Callable[..., Follower]]:
    errors = {INOTIFY_INIT: errno.EMFILE} if request.param == "polling" else {}
    followers: list[Follower] = []

    def make(*paths: Path, **limits: Any) -> Follower:
        files = {path.stem: str(path) for path in paths}
        followers.append(run_without(errors, lambda: Follower(files, **limits)))
        assert (followers[-1].fileno() == -1) is bool(errors)
        return followers[-1]

    yield make
    for follower in followers:
        follower.close()


class TestFollower:
    def test_last_lines_and_new_ones_follow_without_a_gap(
        self, path: Path, followed: Callable[..., Follower]
    ) -> None:
        path.write_bytes(at(1, "a", "b", "c"))
        follower = followed(path, lines=2)
        assert texts(follower.first) == ["b", "c"]
        with open(path, "ab") as file:
            file.write(at(2, "d"))
        assert follower.wait_for_new_lines(60, reader=-1)
        assert texts(follower.read()) == ["d"]
        assert follower.read() == []

    def test_line_is_followed_once_it_is_whole(self, path: Path, followed: Callable[..., Follower]) -> None:
        path.write_bytes(at(1, "one")[:-1])
        follower = followed(path)
        with open(path, "ab", buffering=0) as file:
            file.write(b"\n" + at(2, "two")[:-1])
            assert texts(follower.read()) == [""]
            file.write(b"\n")
            assert texts(follower.read()) == ["two"]

    def test_following_continues_over_many_rotations_at_once(
        self, path: Path, followed: Callable[..., Follower]
    ) -> None:
        file = LogFile(str(path), max_size_bytes=60, keep=9)
        file.append_and_count_written(at(0, "seen"))
        follower = followed(path)
        for second in range(1, 9):
            file.append_and_count_written(at(second, f"line {second}"))
        assert texts(follower.read()) == [f"line {number}" for number in range(1, 9)]
        file.append_and_count_written(at(9, "line 9"))
        assert texts(follower.read()) == ["line 9"]
        file.close()

    def test_remaining_files_are_read_when_the_followed_one_was_rotated_away(
        self, path: Path, followed: Callable[..., Follower]
    ) -> None:
        file = LogFile(str(path), max_size_bytes=35, keep=1)
        file.append_and_count_written(at(0, "older") + at(0, "seen"))
        follower = followed(path)
        for second in range(1, 5):
            file.append_and_count_written(at(second, f"line {second}"))
        assert texts(follower.read()) == ["line 3", "line 4"]
        file.close()

    def test_incomplete_line_is_ended_when_the_file_is_replaced(
        self, path: Path, followed: Callable[..., Follower]
    ) -> None:
        path.touch()
        follower = followed(path)
        with open(path, "ab") as file:
            file.write(at(1, "torn")[:-1])
        assert follower.read() == []
        path.rename(f"{path}.1")
        path.write_bytes(at(2, "next"))
        assert texts(follower.read()) == ["torn", "next"]

    def test_old_files_are_not_repeated_when_the_current_one_is_removed(
        self, path: Path, followed: Callable[..., Follower]
    ) -> None:
        Path(f"{path}.1").write_bytes(at(0, "old"))
        path.write_bytes(at(1, "seen"))
        follower = followed(path)
        path.unlink()
        assert follower.read() == []
        path.write_bytes(at(2, "new"))
        assert texts(follower.read()) == ["new"]

    def test_files_read_meanwhile_are_not_repeated_when_the_current_one_is_removed(
        self, path: Path, followed: Callable[..., Follower]
    ) -> None:
        path.write_bytes(at(1, "seen"))
        follower = followed(path)
        path.rename(f"{path}.1")
        path.write_bytes(at(2, "new"))
        assert texts(follower.read()) == ["new"]
        path.unlink()
        path.write_bytes(at(3, "newest"))
        assert texts(follower.read()) == ["newest"]

    def test_following_over_rotations_leaves_no_file_open(
        self, path: Path, followed: Callable[..., Follower]
    ) -> None:
        with no_descriptor_left():
            Path(f"{path}.1").write_bytes(at(0, "old"))
            path.write_bytes(at(1, "seen"))
            follower = Follower({"web": str(path)})
            path.rename(f"{path}.2")
            path.write_bytes(at(2, "new"))
            assert texts(follower.read()) == ["new"]
            follower.close()

    def test_log_behind_a_link_is_followed_over_rotations_and_to_where_the_link_leads_later(
        self, tmp_path: Path, path: Path, followed: Callable[..., Follower]
    ) -> None:
        for disk in ("one", "two"):
            (tmp_path / disk).mkdir()
        path.symlink_to(tmp_path / "one" / "web.log")
        log = LogFile(str(path), max_size_bytes=80, keep=5)
        log.append_and_count_written(at(0, "line 0"))
        follower = followed(path)
        for number in range(1, 6):
            log.append_and_count_written(at(number, f"line {number}"))
            assert texts(follower.read()) == [f"line {number}"]
        assert texts(tail(str(path), None)) == [f"line {number}" for number in range(6)]
        path.unlink()
        path.symlink_to(tmp_path / "two" / "web.log")
        log.close()
        for number in range(6, 9):
            log.append_and_count_written(at(number, f"line {number}"))
            assert texts(follower.read()) == [f"line {number}"]
        log.close()

    def test_line_longer_than_the_longest_is_followed_in_pieces(
        self, path: Path, followed: Callable[..., Follower]
    ) -> None:
        path.touch()
        follower = followed(path)
        line = "x" * (log_tail.MAX_LINE_BYTES + 100_000)
        path.write_text(line)
        first = texts(follower.read())
        with path.open("a") as file:
            file.write("y\nz\n")
        *last, after = texts(follower.read())
        assert "".join((*first, *last)) == line + "y"
        assert after == "z"

    def test_line_without_a_time_has_that_of_the_line_before_in_each_reading(
        self, path: Path, followed: Callable[..., Follower]
    ) -> None:
        path.write_bytes(at(1, "INFO: one") + at(2, "DEBUG: two"))
        followers = [followed(path), followed(path, lines=2, wanted=LineFilter(least="info"))]
        for time, text in ((stamp(2), b"ERROR: a\n"), (stamp(3), at(3, "ERROR: b") + b"ERROR: c\n")):
            with path.open("ab") as file:
                file.write(text)
            for follower in followers:
                assert {line.time for line in follower.read()} == {time}
        with path.open("ab") as file:
            file.write(b"ERROR: d\n")
        assert [line.time for follower in followers for line in follower.read()] == [stamp(3)] * 2

    def test_last_lines_of_several_logs_are_in_the_order_of_time(
        self, tmp_path: Path, followed: Callable[..., Follower]
    ) -> None:
        (tmp_path / "a.log").write_bytes(at(1, "a1") + at(3, "a3"))
        (tmp_path / "b.log").write_bytes(at(2, "b2") + at(4, "b4"))
        logs = tmp_path / "a.log", tmp_path / "b.log"
        assert texts(followed(*logs, lines=None).first) == ["a1", "b2", "a3", "b4"]
        assert followed(*logs).first == []

    def test_file_that_was_emptied_is_read_from_its_beginning(
        self, path: Path, followed: Callable[..., Follower]
    ) -> None:
        path.write_bytes(at(1, "a long line that was there"))
        follower = followed(path)
        path.write_bytes(at(2, "new"))
        assert texts(follower.read()) == ["new"]

    def test_missing_file_and_directory_are_waited_for(
        self, tmp_path: Path, followed: Callable[..., Follower]
    ) -> None:
        follower = followed(tmp_path / "later" / "web.log")
        assert follower.read() == []
        assert follower.wait_for_new_lines(None, reader=-1)
        (tmp_path / "later").mkdir()
        (tmp_path / "later" / "web.log").write_bytes(at(1, "hello"))
        assert texts(follower.read()) == ["hello"]
        with open(tmp_path / "later" / "web.log", "ab") as file:
            file.write(at(2, "again"))
        assert follower.wait_for_new_lines(60, reader=-1)
        assert texts(follower.read()) == ["again"]

    def test_new_lines_are_merged_in_the_order_of_time(
        self, tmp_path: Path, followed: Callable[..., Follower]
    ) -> None:
        follower = followed(tmp_path / "a.log", tmp_path / "b.log")
        (tmp_path / "a.log").write_bytes(at(1, "a1") + at(3, "a3") + b"  trace\n")
        (tmp_path / "b.log").write_bytes(at(2, "b2") + at(4, "b4"))
        assert texts(follower.read()) == ["a1", "b2", "a3", "  trace", "b4"]


def test_quiet_log_wakes_no_process(path: Path) -> None:
    path.touch()
    follower = Follower({"web": str(path)})
    assert follower.fileno() >= 0
    assert not follower.wait_for_new_lines(0.05, reader=-1)
    follower.close()


def test_log_whose_directory_was_missing_is_polled_no_longer_once_it_is_there(tmp_path: Path) -> None:
    follower = Follower({"web": str(tmp_path / "later" / "web.log")})
    (tmp_path / "later").mkdir()
    assert follower.wait_for_new_lines(0, reader=-1), "it may be there"
    assert follower.read() == []
    assert not follower.wait_for_new_lines(0, reader=-1)
    follower.close()


def test_a_follower_ends_when_its_reader_has_gone(path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    path.touch()
    for present in (True, False):  # it polls while its file is missing
        if not present:
            path.unlink()
        follower = Follower({"web": str(path)})
        with pytest.raises(BrokenPipeError):
            follower.wait_for_new_lines(60, reader=writer)
        follower.close()
    os.close(writer)


def test_no_change_is_reported_until_there_is_one(tmp_path: Path) -> None:
    watch = DirectoryWatch()
    assert (watch.add_if_new(str(tmp_path)), watch.add_if_new(str(tmp_path))) == (True, False)
    assert watch.changed() == set()
    (tmp_path / "x").touch()
    assert watch.changed() == {str(tmp_path / "x")}
    watch.close()


def test_too_many_changes_to_tell_are_all_changes(tmp_path: Path) -> None:
    queued = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if queued > 20_000:
        pytest.skip("the kernel's queue of changes is large here")
    watch = DirectoryWatch()
    watch.add_if_new(str(tmp_path))
    for _ in range(queued // 2 + 1):
        (tmp_path / "x").touch()
        (tmp_path / "x").unlink()
    while changes := watch.changed():
        assert changes == {str(tmp_path / "x")}
    assert changes is None
    watch.close()


def test_following_begins_with_new_lines_unless_earlier_ones_are_asked_for(path: Path) -> None:
    path.write_bytes(at(1, "old"))
    found: list[str] = []
    with no_descriptor_left():
        lines = follow({"web": str(path)})
        reading = threading.Thread(target=lambda: found.append(next(lines).text))
        reading.start()
        while reading.is_alive():
            with path.open("ab") as file:
                file.write(at(2, "new"))
            reading.join(0.01)
        lines.close()  # type: ignore[attr-defined]
    assert found == ["new"]


def test_a_line_that_is_read_late_still_comes_before_a_newer_one(tmp_path: Path) -> None:
    merge = LogReorderBuffer()
    one, two, three = (parse_line(at(second, str(second))[:-1]) for second in (1, 2, 3))
    assert merge.hold_back([two]) == []
    assert merge.holds
    assert texts(merge.hold_back([one, three])) == ["1", "2"]
    assert texts(merge.hold_back([])) == ["3"]
    assert not merge.holds
    assert merge.hold_back([one]) == []
    assert texts(merge.hold_back([])) == ["1"]


def test_several_logs_are_followed_in_the_order_of_time(tmp_path: Path) -> None:
    paths = {name: str(tmp_path / name) for name in ("a", "b")}
    lines = follow(paths, lines=None)

    def write() -> None:
        for second in range(200):
            with open(paths["ab"[second % 2]], "ab") as file:
                file.write(at(second, str(second)))

    writer = threading.Thread(target=write)
    writer.start()
    assert texts(list(islice(lines, 200))) == [str(second) for second in range(200)]
    writer.join()
    lines.close()


def test_lines_that_come_while_the_next_log_is_opened_are_in_their_place(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"

    class Paths(dict[str, str]):
        def items(self) -> Any:
            yield "a", str(first)
            first.write_bytes(at(1, "one"))
            second.write_bytes(at(2, "two"))
            yield "b", str(second)

    paths = Paths(a="", b="")
    lines = follow(paths, lines=None)
    assert texts(list(islice(lines, 2))) == ["one", "two"]
    lines.close()


def test_a_gap_between_rotated_files_is_passed(path: Path) -> None:
    path.write_bytes(at(1, "one"))
    follower = Follower({"web": str(path)})
    path.rename(f"{path}.3")  # 2 is missing: its writer was killed while it renamed
    Path(f"{path}.1").write_bytes(at(2, "two"))
    path.write_bytes(at(3, "three"))
    assert texts(follower.read()) == ["two", "three"]
    follower.close()


def test_following_ends_when_its_iterator_is_closed(path: Path) -> None:
    path.write_bytes(at(1, "a"))
    lines = follow({"web": str(path)}, lines=None)
    assert next(lines).text == "a"
    with open(path, "ab") as file:
        file.write(at(2, "b"))
    assert next(lines).text == "b"
    lines.close()  # type: ignore[attr-defined]


def test_log_is_followed_by_a_process_without_standard_input(tmp_path: Path) -> None:
    first = set()
    saved = os.dup(0)
    try:
        # The free number is that of the followed file or of a directory above it.
        for path in (tmp_path / "web.log", tmp_path / "deeper" / "web.log"):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"old\n")
            os.close(0)
            file, log = TailedFile(str(path)), OpenLog(str(path))
            file.begin(log)
            log.close()
            first.add(os.path.exists("/dev/fd/0") and os.path.samefile("/dev/fd/0", path))
            with path.open("ab") as output:
                output.write(b"one\n")
            assert file.read() == [b"one"]
            path.rename(f"{path}.1")
            path.write_bytes(b"two\n")
            assert file.read() == [b"two"]
            path.unlink()
            assert file.read() == []
            path.write_bytes(b"three\n")
            assert file.read() == [b"three"]
            file.close()
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(0)
            os.dup2(saved, 0)
    finally:
        os.dup2(saved, 0)
        os.close(saved)
    assert True in first


class TestHostileFiles:
    """A log in a directory of the server's user may be anything."""

    def test_a_line_without_an_end_takes_no_more_memory_than_the_longest_line(self, path: Path) -> None:
        path.write_bytes(at(1, "before"))
        with path.open("r+b") as file:
            file.truncate(10**12)
        found = tail(str(path), 5)
        assert len(found) == 1
        assert len(found[0].text) <= 2 * log_tail.MAX_LINE_BYTES

    @pytest.mark.slow
    def test_file_that_grows_by_more_than_was_written_is_followed_at_its_end(self, path: Path) -> None:
        path.write_bytes(at(1, "before"))
        follower = Follower({"web": str(path)}, lines=0)
        try:
            with path.open("r+b") as file:
                file.truncate(10**12)
                file.seek(0, 2)
                grown = file.write(b"\n" + at(2, "after")) + 10**12 - len(at(1, "before"))
            found = texts(follower.read())
        finally:
            follower.close()
        assert found[0] == f"... ({grown - log_tail.MAX_READ_BYTES} bytes are left out here)"
        assert found[-1] == "after"
        assert max(map(len, found)) <= 2 * log_tail.MAX_LINE_BYTES

    @pytest.mark.slow
    def test_any_number_of_old_files_costs_no_more_than_so_many_descriptors(self, path: Path) -> None:
        path.write_bytes(at(9, "newest"))
        for number in range(1, log_tail.MAX_FILES + 50):
            path.with_name(f"web.log.{number}").touch()
        log = log_tail.OpenLog(str(path))
        assert len(log.parts) <= log_tail.MAX_FILES
        log.close()
        file = LogFile(str(path), max_size_bytes=1, keep=1)
        assert file.append_and_count_written(at(10, "next")) > 0
        assert texts(tail(str(path), 2, max_files=2)) == ["newest", "next"]
