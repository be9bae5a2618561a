"""A logger that is killed at any moment, and the one that comes after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest

from poolctl.logs.file import LogFile
from poolctl.logs.line import as_text, stamp
from poolctl.logs.pipe import PipeReader
from poolctl.logs.read import tail
from poolctl.logs.stream import Stream
from poolctl.logs.underway import Underway

NOW = 1_790_000_000.0
LINES = b"".join(b"%d tick\n" % (number // 3) for number in range(9))  # some are the same
BLOCK = as_text(LINES, stamp(NOW))


class Interrupted:
    """A pipe with lines in it, a log, and the note of a logger that was moving the one into the other."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "web.log"
        self.read, self.write = os.pipe()
        os.set_blocking(self.read, False)
        self.note = Underway(os.memfd_create("note"))
        self.pipes = PipeReader()
        self.max_size_bytes = 0
        self.format = "text"

    def recover(self) -> None:
        """What the next logger does."""
        file = LogFile(str(self.path), max_size_bytes=self.max_size_bytes, keep=9)
        stream = Stream(
            "web.0",
            self.read,
            file,
            name="web",
            pid=42,
            format=self.format,
            pipes=self.pipes,
            underway=self.note,
        )
        stream.recover()
        while True:
            try:
                stream.pump(NOW + 1)
            except BlockingIOError:
                break
        file.close()

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
def test_killed_while_storing_every_line_is_there_once(interrupted: Interrupted, stored: int) -> None:
    interrupted.path.write_bytes(as_text(b"0 earlier\n", stamp(NOW - 1)) + BLOCK[:stored])
    os.write(interrupted.write, LINES + b"9 later\n")
    interrupted.note.begin("web.0", stamp(NOW), LINES)
    interrupted.recover()
    assert interrupted.texts() == EXPECTED


def test_killed_after_taking_the_lines_they_are_not_waited_for(interrupted: Interrupted) -> None:
    interrupted.path.write_bytes(as_text(b"0 earlier\n", stamp(NOW - 1)) + BLOCK)
    os.write(interrupted.write, b"9 later\n")
    interrupted.note.begin("web.0", stamp(NOW), LINES)
    interrupted.recover()
    assert interrupted.texts() == EXPECTED


@pytest.mark.parametrize("stored", range(1, 9))
def test_killed_between_two_files_every_line_is_there_once(interrupted: Interrupted, stored: int) -> None:
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


def test_the_note_of_another_stream_is_none(interrupted: Interrupted) -> None:
    os.write(interrupted.write, LINES)
    interrupted.note.begin("web.1", stamp(NOW), LINES)
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


def test_a_note_that_makes_no_sense_is_none(interrupted: Interrupted) -> None:
    fd = os.memfd_create("note")
    note = Underway(fd)
    for text in (b"", b"\n", b"[1", b"[1, 2]\n", b"{}\n", b"\0" * 64):
        os.ftruncate(fd, 0)
        os.pwrite(fd, text, 0)
        assert note.found("web.0") is None
    note.begin("web.0", "now", b"x")
    found = note.found("web.0")
    assert found is not None
    assert (found.when, found.length, found.checksum) == ("now", 1, crc32(b"x"))
    note.end()
    assert note.found("web.0") is None
    note.close()


def test_where_looking_is_not_allowed_it_reads(interrupted: Interrupted) -> None:
    interrupted.pipes._blind = True
    os.write(interrupted.write, b"one\ntwo")
    interrupted.recover()
    assert interrupted.texts() == ["one"]
    os.write(interrupted.write, b"\n" + LINES)
    interrupted.recover()
    assert len(interrupted.texts()) == 11


def test_an_empty_pipe_and_an_ended_one_are_told_apart() -> None:
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
