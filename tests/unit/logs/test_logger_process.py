"""The logger: what it stores and reports, and what its successor continues after a kill."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl.bootstrap import command
from poolctl.keeper import wire
from poolctl.keeper.supervisor_link import SupervisorLink
from poolctl.logs.log_tail import tail
from poolctl.logs.logger_process import (
    OutputLogger,
)
from poolctl.selection.regular_expressions import FASTER, SLOW
from tests.deadline import wait_until
from tests.descriptors import no_descriptor_left
from tests.processes import freeze
from tests.slow_expression import HOSTILE_TEXT, SLOW_EXPRESSION

DEADLINE_SECONDS = 60.0


class Session:
    """The supervisor's side of a logger, and the servers' side of its pipes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.control, self.theirs = wire.pair()
        self.control.settimeout(DEADLINE_SECONDS)
        self.writers: dict[str, int] = {}
        self.readers: dict[str, int] = {}

    def add(self, id: str, *, file: str = "web.log", **options: Any) -> int:
        """The write end of a new stream's pipe."""
        read, write = os.pipe()
        self.writers[id], self.readers[id] = write, read
        self.hand_over(id, file=file, **options)
        return write

    def hand_over(self, id: str, *, file: str = "web.log", **options: Any) -> None:
        path = file if file.startswith("/") else str(self.directory / file)
        order = {"t": "add", "id": id, "name": id.partition(".")[0], "pid": 42, "path": path} | options
        wire.send(self.control, order, [self.readers[id]])

    def report(self) -> wire.Message:
        received = wire.receive(self.control)
        assert received is not None
        return received[0]

    def sync(self) -> list[wire.Message]:
        """The reports until the content of the pipes is stored."""
        wire.send(self.control, {"t": "performed", "id": 7})
        reports = [self.report()]
        while reports[-1] != {"t": "performed", "id": 7}:
            reports.append(self.report())
        return reports[:-1]

    def finish(self, id: str) -> str:
        """Close the server's end; returns the end of its output, when the logger has seen it all."""
        os.close(self.writers.pop(id))
        while (report := self.report()).get("t") != "eof":
            pass
        assert report["id"] == id
        return str(report["tail"])

    def texts(self, file: str = "web.log") -> list[str]:
        return [line.text for line in tail(str(self.directory / file), None)]

    def close(self) -> None:
        self.control.close()
        for fd in [*self.writers.values(), *self.readers.values()]:
            os.close(fd)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """A session with a logger in a thread; it must end when no supervisor and no server is left."""
    session = Session(tmp_path)
    logger = OutputLogger(SupervisorLink(session.theirs))
    assert repr(logger) == "<Logger of 0 streams into 0 files>"
    thread = threading.Thread(target=logger.run)
    thread.start()
    yield session
    session.close()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()


def test_lines_of_several_servers_keep_whole_in_one_file(session: Session) -> None:
    one, two = session.add("one.0"), session.add("two.0")
    os.write(one, b"first half, ")
    session.sync()
    os.write(two, b"in between\n")
    session.sync()
    os.write(one, b"second half\nnext\n")
    session.sync()
    assert session.texts() == ["in between", "first half, second half", "next"]


def test_every_line_carries_the_time_at_which_it_came(session: Session) -> None:
    before = time.time()
    os.write(session.add("web.0"), b"hello\n")
    session.sync()
    line = (session.directory / "web.log").read_text()
    moment, _, text = line.partition(" ")
    assert text == "hello\n"
    assert abs(time.mktime(time.strptime(moment[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone - before) < 60


def test_json_lines_name_the_server(session: Session) -> None:
    os.write(session.add("web.0", format="json"), b'say "hi"\n')
    session.sync()
    found = json.loads((session.directory / "web.log").read_text())
    assert (found["name"], found["pid"], found["line"]) == ("web", 42, 'say "hi"')


def test_raw_lines_are_stored_as_they_were_written(session: Session) -> None:
    os.write(session.add("web.0", format="raw"), b'{"time": "now"}\nnext\n')
    session.sync()
    assert (session.directory / "web.log").read_text() == '{"time": "now"}\nnext\n'


def test_the_end_of_a_pipe_is_reported_after_its_last_words_are_stored(session: Session) -> None:
    os.write(session.add("web.0"), b"no newline at the end")
    assert session.finish("web.0") == "no newline at the end\n"
    assert session.texts() == ["no newline at the end"]


def test_the_end_of_a_pipe_is_reported_with_the_last_lines_of_this_pipe_alone(session: Session) -> None:
    web, other = session.add("web.0"), session.add("web.1")
    for number in range(3000):
        os.write(web, b"line %d\n" % number)
    os.write(other, b"of another process\n")
    lines = session.finish("web.0").splitlines()
    assert lines == [f"line {number}" for number in range(3000 - len(lines), 3000)]
    assert 800 < len(lines) < 820  # 8 KiB
    os.write(other, b"x" * 20_000)
    assert session.finish("web.1") == "x" * 8191 + "\n"


def test_a_line_without_end_is_broken_up_instead_of_filling_the_memory(session: Session) -> None:
    write = session.add("web.0")
    for _ in range(3):
        os.write(write, b"x" * 60_000)
        session.sync()
    session.finish("web.0")
    assert [len(text) for text in session.texts()] == [65_536, 65_536, 48_928]


def test_a_file_is_rotated_when_it_is_old_enough_though_nothing_comes(session: Session) -> None:
    os.write(session.add("web.0", max_age=0.2, keep=2), b"hello\n")
    other = session.add("other.0", file="other.log")
    old = session.directory / "web.log.1"
    new = session.directory / "web.log"
    wait_until(lambda: old.exists() and new.exists() and new.read_text() == "")
    assert old.read_text().endswith(" hello\n")
    os.write(session.writers["web.0"], b"again\n")
    wait_until((session.directory / "web.log.2").exists)
    os.write(other, b"still there\n")
    session.sync()
    assert session.texts("other.log") == ["still there"]


def test_a_full_disk_costs_lines_that_are_counted_and_nothing_else(session: Session) -> None:
    full, fine = session.add("full.0", file="/dev/full"), session.add("fine.0")
    began = time.monotonic()
    for _ in range(50):  # far more than a pipe holds: the writer would hang if the logger stopped reading
        os.write(full, b"x" * 9_999 + b"\n")
        os.write(fine, b"still here\n")
    lost = [report for report in session.sync() if report["t"] == "dropped"]
    while sum(report["bytes"] for report in lost) < 500_000:
        lost.append(session.report())
    assert sum(report["bytes"] for report in lost) == 500_000
    assert len(lost) <= 2 + (time.monotonic() - began), "they are reported once a second"
    assert {(report["id"], report["error"]) for report in lost} == {("full.0", "No space left on device")}
    assert session.texts() == ["still here"] * 50


def test_lost_lines_of_a_stream_are_counted_before_its_end_is_reported(session: Session) -> None:
    write = session.add("full.0", file="/dev/full")
    os.write(write, b"one\n")
    reports = session.sync()
    os.write(write, b"three\n")
    os.close(session.writers.pop("full.0"))
    while not reports or reports[-1]["t"] != "eof":
        reports.append(session.report())
    assert sum(report["bytes"] for report in reports[:-1]) == len(b"one\nthree\n")


def test_lost_lines_are_counted_in_the_file_once_it_takes_lines_again(session: Session) -> None:
    (session.directory / "logs").write_text("a file where a directory should be")
    write = session.add("web.0", file="logs/web.log")
    os.write(write, b"lost\n")
    (report,) = session.sync() or [session.report()]
    assert (report["bytes"], report["error"]) == (5, "Not a directory")
    (session.directory / "logs").unlink()
    os.write(write, b"stored\n")
    session.sync()
    gap, stored = session.texts("logs/web.log")
    assert gap.startswith("[poolctl: 5 bytes of output were lost here")
    assert stored == "stored"


def test_lines_that_one_worker_lost_are_counted_when_its_successor_prints(session: Session) -> None:
    (session.directory / "logs").write_text("a file where a directory should be")
    os.write(session.add("web.0", file="logs/web.log"), b"lost\n")
    session.sync()
    write = session.add("web.1", file="logs/web.log")
    session.finish("web.0")
    (session.directory / "logs").unlink()
    os.write(write, b"stored\n")
    session.sync()
    gap, stored = session.texts("logs/web.log")
    assert gap.startswith("[poolctl: 5 bytes of output were lost here")
    assert stored == "stored"


def test_a_stream_that_is_added_again_takes_the_place_of_the_old_one(session: Session) -> None:
    old = session.add("web.0")
    os.write(old, b"to the old file\n")
    os.close(session.writers.pop("web.0"))
    os.close(session.readers.pop("web.0"))
    os.write(session.add("web.0", file="other.log"), b"to the new one\n")
    session.sync()
    assert (session.texts(), session.texts("other.log")) == (["to the old file"], ["to the new one"])


def test_end_of_a_pipe_that_was_replaced_is_not_the_end_of_its_stream(session: Session) -> None:
    session.add("web.0")
    old = session.writers.pop("web.0"), session.readers.pop("web.0")
    write = session.add("web.0", file="other.log")
    assert session.sync() == []
    for fd in old:
        os.close(fd)
    os.write(write, b"still here\n")
    assert session.sync() == []
    assert session.texts("other.log") == ["still here"]


@pytest.mark.parametrize(
    "order",
    [{"t": "dance"}, {"t": "add"}, {"t": "add", "id": "x", "name": "x", "path": "/x", "pid": 1}, {"t": None}],
)
def test_an_order_that_makes_no_sense_is_answered_and_changes_nothing(session: Session, order: Any) -> None:
    wire.send(session.control, order)
    assert session.report()["t"] == "error"
    os.write(session.add("web.0"), b"fine\n")
    assert session.sync() == []
    assert session.texts() == ["fine"]


def test_descriptors_of_a_refused_order_are_closed(session: Session) -> None:
    read, write = os.pipe()
    wire.send(session.control, {"t": "dance"}, [write])
    assert session.report()["t"] == "error"
    os.close(write)
    assert os.read(read, 1) == b""  # the write end is closed everywhere
    os.close(read)


def test_a_packet_that_is_no_message_is_answered(session: Session) -> None:
    session.control.send(b"not JSON")
    assert session.report()["t"] == "error"


def test_supervisor_that_reads_no_reports_does_not_hold_up_logging(session: Session) -> None:
    session.control.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for _ in range(2000):
        wire.send(session.control, {"t": "dance"})
    reports = [session.report() for _ in range(2000)]
    assert {report["t"] for report in reports} == {"error"}


def test_logger_stores_the_pipes_content_when_it_ends(tmp_path: Path) -> None:
    with no_descriptor_left():
        session = Session(tmp_path)
        os.write(session.add("web.0"), b"whole\nunfinished")
        wire.send(session.control, {"t": "end"})
        OutputLogger(SupervisorLink(session.theirs)).run()
        assert session.texts() == ["whole", "unfinished"]
        session.close()


def test_logger_without_a_supervisor_goes_on_for_its_writers(tmp_path: Path) -> None:
    session = Session(tmp_path)
    write = session.add("web.0")
    session.control.close()
    thread = threading.Thread(target=OutputLogger(SupervisorLink(session.theirs)).run)
    thread.start()
    for number in range(3):
        os.write(write, b"line %d\n" % number)
        wait_until(lambda number=number: len(session.texts()) == number + 1)
    session.close()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()


def test_a_pipe_that_is_handed_over_again_is_read_on_in_the_middle_of_a_line(session: Session) -> None:
    write = session.add("web.0")
    os.write(write, b"first half, ")
    session.sync()
    session.hand_over("web.0", max_size=1000)
    os.write(write, b"second half\n")
    assert session.sync() == []
    assert session.texts() == ["first half, second half"]


def process(session: Session, **options: Any) -> subprocess.Popen[bytes]:
    """The logger as a process of its own, started as the supervisor does it."""
    argv = command(sys.executable, "logs", isolated=True)
    script = f'exec 3<&{session.theirs.fileno()}; exec "$@"'
    return subprocess.Popen(
        ["bash", "-c", script, "bash", *argv], pass_fds=[session.theirs.fileno()], **options
    )


def restart(session: Session, logger: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """Kill the logger, and start the next one."""
    logger.kill()
    logger.wait(DEADLINE_SECONDS)
    session.theirs.close()
    session.control.close()
    session.control, session.theirs = wire.pair()
    session.control.settimeout(DEADLINE_SECONDS)
    return process(session)


def test_killed_logger_loses_nothing_that_is_still_in_a_pipe(tmp_path: Path) -> None:
    session = Session(tmp_path)
    write = session.add("web.0")
    first = process(session)
    sent = 0
    for _ in range(200):
        os.write(write, b"%d\n" % sent)
        sent += 1
    session.sync()
    freeze(first.pid)
    for _ in range(200):
        os.write(write, b"%d\n" % sent)
        sent += 1
    second = restart(session, first)
    session.theirs.close()
    session.hand_over("web.0")
    session.finish("web.0")
    assert session.texts() == [str(number) for number in range(sent)]
    session.close()
    assert second.wait(DEADLINE_SECONDS) == 0


@pytest.mark.parametrize("line_bytes", [100, 4_087, 70_000, 10_000_000])
def test_one_large_write_ends_whatever_its_lines_are(session: Session, line_bytes: int) -> None:
    write = session.add("web.0")
    os.write(write, b"an incomplete line, ")
    session.sync()
    lines = (b"x" * line_bytes + b"\n") * (5_000_000 // line_bytes or 1)
    writer = threading.Thread(target=os.write, args=(write, lines))
    writer.start()
    writer.join(DEADLINE_SECONDS)
    assert not writer.is_alive()
    session.finish("web.0")
    assert sum(text.count("x") for text in session.texts()) == lines.count(b"x")


def test_signals_of_a_terminal_or_a_shutdown_do_not_end_the_logger(tmp_path: Path) -> None:
    session = Session(tmp_path)
    logger = process(session)
    session.theirs.close()
    write = session.add("web.0")
    session.sync()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        logger.send_signal(number)
    os.write(write, b"last words\n")
    session.sync()
    session.close()
    assert logger.wait(DEADLINE_SECONDS) == 0
    assert session.texts() == ["last words"]


def test_a_logger_that_prints_nothing_uses_no_processor_time(tmp_path: Path) -> None:
    session = Session(tmp_path)
    os.write(session.add("web.0"), b"a prompt without a line break")
    logger = process(session)
    session.theirs.close()
    session.sync()

    def switches() -> int:
        status = Path(f"/proc/{logger.pid}/status").read_text()
        return int(
            status.rpartition("nonvoluntary_ctxt_switches")[0].rpartition("voluntary_ctxt_switches:")[2]
        )

    before = switches()
    threading.Event().wait(0.5)
    assert switches() - before <= 1
    session.close()
    assert logger.wait(DEADLINE_SECONDS) == 0


def test_the_logger_raises_its_own_limit_of_open_files(tmp_path: Path) -> None:
    session = Session(tmp_path)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    logger = process(session, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)))
    session.theirs.close()
    for number in range(80):
        os.write(session.add(f"web.{number}", file=f"{number}.log"), b"here\n")
    assert session.sync() == [{"t": "up"}]
    assert session.texts("79.log") == ["here"]
    session.close()
    assert logger.wait(DEADLINE_SECONDS) == 0


READY = {"t": "ready", "id": "web.0", "error": "", "fix": ""}


@pytest.mark.parametrize(
    ("expression", "output"),
    [
        ("ready to acc", [b"2026-01-01 INFO worker is ready to accept jobs\n"]),
        ("^ready$", [b"ready\r\n"]),
        ("ready", [b"10 %\r20 %\rready\r\n"]),
        ("^ready$", [b"one\nrea", b"d", b"y\ntwo\n"]),
        ("^INFO ready", [b"\x1b[1;32mINFO\x1b[0m ready\n"]),
        ("ready.", ["ready für\n".encode("latin-1")]),
        ("ready", [b"x" * 4091 + b"ready and more\n"]),
        (r"(?i)\bREADY\b", [b"0\n" * 30_000, b"it is ready.\n"]),
    ],
)
def test_ready_line_is_reported_once_when_it_is_stored(
    session: Session, expression: str, output: list[bytes]
) -> None:
    write = session.add("web.0", ready_line=expression)
    for piece in [b"loading\n", *output[:-1]]:
        os.write(write, piece)
        assert session.sync() == []
    os.write(write, output[-1])
    assert session.report() == READY
    stored = session.texts()[-1]
    assert stored in output[-1].decode(errors="backslashreplace")
    os.write(write, output[-1])
    assert session.sync() == []


@pytest.mark.parametrize(
    ("expression", "line"),
    [
        ("ready", b"x" * 4092 + b"ready\n"),
        ("ready", b"rea\nready"),
        ("a.b", b"a\nb\n"),
        ("32m", b"\x1b[32mready\n"),
        ("ready", b"READY\n"),
        ("^INFO ready", b"GET /\rINFO ready\n"),
    ],
)
def test_what_no_whole_line_has_in_its_first_4_kib_is_no_ready_line(
    session: Session, expression: str, line: bytes
) -> None:
    os.write(session.add("web.0", ready_line=expression), line)
    assert session.sync() == []


def test_ready_line_counts_for_its_own_stream_and_at_its_end_without_a_line_break(session: Session) -> None:
    one, two = session.add("web.0", ready_line="ready"), session.add("web.1", ready_line="ready")
    other = session.add("other.0")
    os.write(other, b"ready\n")
    os.write(one, b"ready")
    os.write(two, b"still loading\n")
    assert session.sync() == []
    os.close(session.writers.pop("web.0"))
    assert session.report() == READY
    assert session.report()["t"] == "eof"
    os.write(two, b"ready\n")
    assert session.report() == READY | {"id": "web.1"}


def test_next_logger_looks_for_the_ready_line_that_was_not_there(tmp_path: Path) -> None:
    session = Session(tmp_path)
    write = session.add("web.0", ready_line="^ready$")
    logger = process(session)
    os.write(write, b"loading\n")
    assert session.sync() == [{"t": "up"}]
    logger = restart(session, logger)
    session.hand_over("web.0", ready_line="^ready$")
    os.write(write, b"ready\n")
    assert READY in session.sync()
    session.theirs.close()
    session.close()
    assert logger.wait(DEADLINE_SECONDS) == 0


def test_logger_that_is_told_to_end_reports_the_ready_line_that_it_stores_last(tmp_path: Path) -> None:
    session = Session(tmp_path)
    os.write(session.add("web.0", ready_line="ready"), b"ready\n")
    wire.send(session.control, {"t": "end"})
    OutputLogger(SupervisorLink(session.theirs)).run()
    assert session.report() == READY
    session.close()


def test_slow_expression_ends_the_search_and_loses_no_line(session: Session) -> None:
    write = session.add("web.0", ready_line=SLOW_EXPRESSION)
    for _ in range(100):
        os.write(write, f"{HOSTILE_TEXT}\n".encode())
    os.write(session.add("other.0", file="other.log"), b"hello\n")
    (report,) = session.sync()
    assert report == READY | {"error": SLOW, "fix": FASTER}
    assert session.texts() == [HOSTILE_TEXT] * 100
    assert session.texts("other.log") == ["hello"]


def test_logger_loads_no_expressions_without_a_ready_line(tmp_path: Path) -> None:
    session = Session(tmp_path)
    logger = process(session)
    session.theirs.close()
    maps = Path(f"/proc/{logger.pid}/maps")
    os.write(session.add("web.0"), b"ready\n")
    session.sync()
    assert "/_regex." not in maps.read_text()
    os.write(session.add("web.1", ready_line="ready"), b"ready\n")
    session.sync()
    assert "/_regex." in maps.read_text()
    session.close()
    assert logger.wait(DEADLINE_SECONDS) == 0


def test_a_long_line_is_stored_once_it_is_whole_however_it_was_written(session: Session) -> None:
    write = session.add("web.0")
    for _ in range(21):
        os.write(write, b"x" * 3000)  # a page holds one of these
        session.sync()
    assert session.texts() == []
    os.write(write, b"\nnext\n")
    session.sync()
    assert session.texts() == ["x" * 63_000, "next"]


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("character", ["é", "語", "😀"])
def test_a_long_line_is_split_between_two_characters(session: Session, character: str, before: int) -> None:
    text = "x" * before + character * 40_000
    line, write = f"{text}\n".encode(), session.add("web.0")
    for start in range(0, len(line), 3000):
        os.write(write, line[start : start + 3000])
    session.sync()
    assert "".join(session.texts()) == text
    assert len(session.texts()) == len(line) // 65536 + 1


def test_long_binary_line_is_split(session: Session) -> None:
    os.write(session.add("web.0"), b"\x80" * 65536)
    session.sync()
    assert (session.directory / "web.log").read_bytes().endswith(b"\x80" * 65536 + b"\n")


def test_ping_is_answered_with_the_loggers_pid(session: Session) -> None:
    wire.send(session.control, {"t": "ping"})
    assert session.report() == {"t": "pong"}


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"t": "dance", "id": "a"}, "dance: ValueError: unknown order 'dance'"),
        ({"t": "add", "id": "b"}, "add: IndexError: list index out of range"),
    ],
)
def test_refused_order_is_named_with_its_error(session: Session, order: Any, message: str) -> None:
    wire.send(session.control, order)
    assert session.report() == {"t": "error", "id": order["id"], "message": message}


def test_invalid_limits_leave_a_stream_as_it_was(session: Session) -> None:
    write = session.add("web.0")
    session.hand_over("web.0", max_age="long")
    assert session.report()["message"] == "add: ValueError: could not convert string to float: 'long'"
    os.write(write, b"still here\n")
    assert session.sync() == []
    assert session.texts() == ["still here"]


def test_stream_that_is_handed_over_again_has_the_new_pid(session: Session) -> None:
    write = session.add("web.0", format="json")
    session.hand_over("web.0", pid=43, format="json")
    os.write(write, b"hello\n")
    session.sync()
    assert json.loads((session.directory / "web.log").read_text())["pid"] == 43
