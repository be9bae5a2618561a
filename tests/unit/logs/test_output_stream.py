"""A logger that is killed at any moment, and the one that comes after it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest

from poolctl.logs.log_file import LogFile
from poolctl.logs.log_line import as_text, stamp
from poolctl.logs.log_tail import tail
from poolctl.logs.output_stream import Move, OutputStream, PipeReader, WriteAheadNote

NOW = 1_790_000_000.0
LINES = b"".join(b"%d tick\n" % (number // 3) for number in range(9))  # some are the same
BLOCK = as_text(LINES, stamp(NOW))


class Interrupted:
    """A pipe with lines in it, a log, and the note of a logger that was moving the one into the other."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "web.log"
        self.read, self.write = os.pipe()
        os.set_blocking(self.read, False)
        self.kept = [os.memfd_create("note"), *os.pipe2(os.O_NONBLOCK)]
        self.note = WriteAheadNote(self.kept)
        self.pipes = PipeReader()
        self.max_size_bytes = 0
        self.format = "text"

    def recover(self) -> None:
        """What the next logger does."""
        kept = [os.dup(fd) for fd in self.kept]
        self.note.close()
        self.kept, self.note = kept, WriteAheadNote(kept)
        stream = self.stream()
        stream.recover()
        while True:
            try:
                stream.pump(NOW + 1)
            except BlockingIOError:
                break
        stream.file.close()

    def stream(self) -> OutputStream:
        return OutputStream(
            {"id": "web.0", "name": "web", "pid": 42, "format": self.format},
            self.read,
            LogFile(str(self.path), max_size_bytes=self.max_size_bytes, keep=9),
            self.pipes,
            self.note,
        )

    def texts(self) -> list[str]:
        return [line.text for line in tail(str(self.path), None)]

    def close(self) -> None:
        self.note.close()
        self.pipes.close()
        os.close(self.read)
        os.close(self.write)


@pytest.fixture
def interrupted(tmp_path: Path) -> Iterator[Interrupted]:
    made = Interrupted(tmp_path)
    yield made
    made.close()


EXPECTED = ["0 earlier", *LINES.decode().splitlines(), "9 later"]


@pytest.mark.parametrize("stored", range(0, len(BLOCK) + 1, 7))
def test_logger_killed_while_storing_leaves_every_line_once(interrupted: Interrupted, stored: int) -> None:
    interrupted.path.write_bytes(as_text(b"0 earlier\n", stamp(NOW - 1)) + BLOCK[:stored])
    os.write(interrupted.write, LINES + b"9 later\n")
    interrupted.note.begin("web.0", stamp(NOW), LINES)
    interrupted.recover()
    assert interrupted.texts() == EXPECTED


def test_logger_killed_after_taking_lines_does_not_wait_for_them(interrupted: Interrupted) -> None:
    interrupted.path.write_bytes(as_text(b"0 earlier\n", stamp(NOW - 1)) + BLOCK)
    os.write(interrupted.write, b"9 later\n")
    interrupted.note.begin("web.0", stamp(NOW), LINES)
    interrupted.recover()
    assert interrupted.texts() == EXPECTED


@pytest.mark.parametrize("taken", [len(LINES), len(LINES) - 1, 1])
def test_equal_lines_after_those_of_a_killed_logger_are_kept(interrupted: Interrupted, taken: int) -> None:
    interrupted.path.write_bytes(as_text(b"0 earlier\n", stamp(NOW - 1)) + BLOCK)
    os.write(interrupted.write, LINES)
    interrupted.note.begin("web.0", stamp(NOW), LINES)
    interrupted.pipes.take(interrupted.read, taken, interrupted.note.sink)
    os.write(interrupted.write, LINES + b"9 later\n")
    interrupted.recover()
    assert interrupted.texts() == [*EXPECTED[:-1], *EXPECTED[1:]]
    interrupted.recover()
    assert len(interrupted.texts()) == 20


@pytest.mark.parametrize("stored", range(0, 40, 3))
def test_logger_killed_at_an_incomplete_last_line_leaves_it_once(
    interrupted: Interrupted, stored: int
) -> None:
    interrupted.path.write_bytes(as_text(b"last words\n", stamp(NOW))[:stored])
    os.write(interrupted.write, b"last words")
    interrupted.note.begin("web.0", stamp(NOW), b"last words")
    interrupted.recover()
    assert interrupted.texts() == ["last words"]


def test_a_long_line_stays_in_the_pipe_until_it_is_whole_however_it_was_written(
    interrupted: Interrupted,
) -> None:
    os.set_blocking(interrupted.write, False)
    part = b"x" * 3000  # a page holds one of these
    for _ in range(21):
        os.write(interrupted.write, part)
        interrupted.recover()
        assert interrupted.texts() == []
    os.write(interrupted.write, b"\nnext\n")
    interrupted.recover()
    assert interrupted.texts() == ["x" * 63_000, "next"]
    assert fcntl.fcntl(interrupted.read, fcntl.F_GETPIPE_SZ) == 65536


def test_a_line_that_never_ends_is_stored_in_parts(interrupted: Interrupted) -> None:
    os.set_blocking(interrupted.write, False)
    for _ in range(50):
        os.write(interrupted.write, b"x" * 3000)
        interrupted.recover()
    assert [len(text) for text in interrupted.texts()] == [65536, 65536]


def test_long_line_is_stored_whole_where_its_pipe_may_not_grow(interrupted: Interrupted) -> None:
    class Narrow(PipeReader):
        def enlarge(self, fd: int) -> bool:
            return False

    interrupted.pipes.close()
    interrupted.pipes = Narrow()
    os.set_blocking(interrupted.write, False)
    stream = interrupted.stream()
    for text in (b"x" * 3000,) * 20, (b"\nnext\n",):
        for part in text:
            os.write(interrupted.write, part)
            with contextlib.suppress(BlockingIOError):
                stream.pump(NOW)
    stream.file.close()
    assert interrupted.texts() == ["x" * 60_000, "next"]


@pytest.mark.parametrize("stored", range(1, 9))
def test_logger_killed_between_two_files_leaves_every_line_once(
    interrupted: Interrupted, stored: int
) -> None:
    whole = BLOCK.splitlines(keepends=True)
    interrupted.max_size_bytes = 2 * len(whole[0])
    file = LogFile(str(interrupted.path), max_size_bytes=interrupted.max_size_bytes, keep=9)
    file.append(as_text(b"0 earlier\n", stamp(NOW - 1)))
    file.append(b"".join(whole[:stored]))
    file.close()
    interrupted.path.rename(f"{interrupted.path}.0")  # in the middle of a rotation
    for number in range(8, -1, -1):
        older = Path(f"{interrupted.path}.{number}")
        if older.exists():
            older.rename(f"{interrupted.path}.{number + 1}")
    os.write(interrupted.write, LINES + b"9 later\n")
    interrupted.note.begin("web.0", stamp(NOW), LINES)
    interrupted.recover()
    assert interrupted.texts() == EXPECTED


def test_note_of_another_stream_is_ignored(interrupted: Interrupted) -> None:
    os.write(interrupted.write, LINES)
    interrupted.note.begin("web.1", stamp(NOW), LINES)
    interrupted.recover()
    interrupted.recover()
    assert len(interrupted.texts()) == 9
    assert interrupted.note.found("web.1") is None  # what was moved since then has been noted over it


def test_a_line_stays_in_the_pipe_until_it_is_whole(interrupted: Interrupted) -> None:
    os.write(interrupted.write, b"one\nhal")
    interrupted.recover()
    assert interrupted.texts() == ["one"]
    os.write(interrupted.write, b"f\n")
    interrupted.recover()
    assert interrupted.texts() == ["one", "half"]


def test_invalid_note_is_ignored(interrupted: Interrupted) -> None:
    fd = os.memfd_create("note")

    def found() -> Move | None:
        note = WriteAheadNote([os.dup(fd)])
        try:
            return note.found("web.0")
        finally:
            note.close()

    for text in (b"", b"\n", b"[1", b"[1, 2]\n", b"{}\n", b"\0" * 64):
        os.ftruncate(fd, 0)
        os.pwrite(fd, text, 0)
        assert found() is None
    note = WriteAheadNote([fd])
    note.begin("web.0", "now", b"x")
    move = found()
    assert move is not None
    assert (move.when, move.length, move.checksum, move.taken) == ("now", 1, crc32(b"x"), 0)
    note.end()
    assert found() is None
    note.close()


def test_pipe_that_cannot_be_inspected_is_read(interrupted: Interrupted) -> None:
    interrupted.pipes._blind = True
    os.write(interrupted.write, b"one\ntwo")
    interrupted.recover()
    assert interrupted.texts() == ["one"]
    os.write(interrupted.write, b"\n" + LINES)
    interrupted.recover()
    assert len(interrupted.texts()) == 11


def test_empty_pipe_and_ended_pipe_are_distinguished() -> None:
    pipes = PipeReader()
    read, write = os.pipe()
    os.set_blocking(read, False)
    for blind in (False, True):
        pipes._blind = blind
        with pytest.raises(BlockingIOError):
            pipes.look(read)
    os.close(write)
    for blind in (False, True):
        pipes._blind = blind
        assert pipes.look(read) == b""
    os.close(read)
    pipes.close()
