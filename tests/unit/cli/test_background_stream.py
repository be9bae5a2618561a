from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from poolctl.cli.commands import run
from poolctl.cli.commands.run import BackgroundStream, stream_of_its_own

LINE = "x" * 99 + "\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that takes 40 lines; its ends may be closed by the test."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    yield read, write
    for end in (read, write):
        try:
            os.close(end)
        except OSError:
            continue


def test_a_text_has_been_written_when_write_returns(pipe: tuple[int, int]) -> None:
    read, write = pipe
    with open(write, "w", closefd=False) as stderr, BackgroundStream(stderr) as stream:
        for text in ("one\n", "two\n"):
            assert stream.write(text) == len(text)
            assert os.read(read, 100) == text.encode()
        assert stream.fileno() == write


def test_a_stuck_reader_delays_once_and_gets_everything_in_the_end(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(run, "END_SECONDS", 30.0)
    read, write = pipe
    with open(write, "w", closefd=False) as stderr:
        begun = time.monotonic()
        with BackgroundStream(stderr) as stream:
            for _ in range(60):
                stream.write(LINE)
            assert time.monotonic() - begun < 10, "twenty delays are ten seconds"
            stderr.flush()  # its lock is free
            reader = threading.Thread(target=os.read, args=(read, 4096))
            reader.start()
        reader.join()
        assert len(os.read(read, 4096)) == 20 * len(LINE)


def test_text_for_a_reader_that_is_gone_is_dropped(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.close(read)
    with open(write, "w", closefd=False) as stderr, BackgroundStream(stderr) as stream:
        assert [stream.write(LINE) for _ in range(3)] == [len(LINE)] * 3


def test_a_stream_without_a_descriptor_is_used_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with stream_of_its_own(sys.stderr) as own:
        assert own is sys.stderr
    with BackgroundStream(sys.stderr) as stream:
        stream.write("one\n")
    assert capsys.readouterr().err == "one\n"
