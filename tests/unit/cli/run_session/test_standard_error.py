"""The messages of `run`, whose reader may be slow, stuck or gone."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import threading
from collections.abc import Iterator

import pytest

from poolctl.cli.run_session._standard_error import MAX_TEXTS, StandardError

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


def await_written(stream: StandardError, limit_seconds: float = 60.0) -> None:
    asyncio.run(stream.await_written(limit_seconds))


def test_texts_are_written_in_their_order_once_they_have_been_waited_for(pipe: tuple[int, int]) -> None:
    read, write = pipe
    with open(write, "w", closefd=False) as stderr:
        stream = StandardError(stderr)
        assert [stream.write(text) for text in ("one\n", "two\n")] == [4, 4]
        await_written(stream)
        assert os.read(read, 100) == b"one\ntwo\n"
        assert stream.fileno() == write


def test_reader_that_has_stopped_reading_delays_nothing_and_gets_everything_in_the_end(
    pipe: tuple[int, int],
) -> None:
    read, write = pipe
    with open(write, "w", closefd=False) as stderr:
        stream = StandardError(stderr)
        for _ in range(60):
            stream.write(LINE)
        await_written(stream, 0.05)
        stderr.flush()  # its lock is free
        received: list[bytes] = []

        def receive() -> None:
            while sum(map(len, received)) < 60 * len(LINE):
                received.append(os.read(read, 4096))

        reader = threading.Thread(target=receive)
        reader.start()
        await_written(stream)
        reader.join(60)
    assert b"".join(received) == LINE.encode() * 60


def test_texts_are_dropped_while_too_many_wait(pipe: tuple[int, int]) -> None:
    read, write = pipe
    kept = "".join(map(str, range(MAX_TEXTS - 1))).encode()
    with open(write, "w", closefd=False) as stderr:
        stream = StandardError(stderr)
        stream.write("x" * 5000)  # more than the pipe takes
        for number in range(MAX_TEXTS + 2):
            stream.write(str(number))
        found = b""
        while len(found.lstrip(b"x")) < len(kept):
            found += os.read(read, 4096)
        await_written(stream)
        stream.write("again")
        await_written(stream)
        assert (found.lstrip(b"x"), os.read(read, 4096)) == (kept, b"again")


def test_text_for_a_reader_that_is_gone_is_dropped(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.close(read)
    with open(write, "w", closefd=False) as stderr:
        stream = StandardError(stderr)
        assert [stream.write(LINE) for _ in range(3)] == [len(LINE)] * 3
        await_written(stream)


def test_stream_without_a_descriptor_is_used_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    stream = StandardError(sys.stderr)
    stream.write("one\n")
    await_written(stream)
    assert capsys.readouterr().err == "one\n"
