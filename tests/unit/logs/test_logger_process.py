"""The logger: what it stores, what it reports, and what it survives."""

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
from poolctl.logs.log_tail import tail
from poolctl.logs.logger_process import Logger
from tests.deadline import wait_until

DEADLINE_SECONDS = 10.0


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
        wire.send(self.control, {"t": "sync", "token": 7})
        reports = [self.report()]
        while reports[-1] != {"t": "synced", "token": 7}:
            reports.append(self.report())
        return reports[:-1]

    def finish(self, id: str) -> None:
        """Close the server's end; returns when the logger has seen it."""
        os.close(self.writers.pop(id))
        while self.report() != {"t": "eof", "id": id}:
            pass

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
    logger = Logger(session.theirs)
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
    assert abs(time.mktime(time.strptime(moment[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone - before) < 5


def test_json_lines_name_the_server(session: Session) -> None:
    os.write(session.add("web.0", format="json"), b'say "hi"\n')
    session.sync()
    found = json.loads((session.directory / "web.log").read_text())
    assert (found["name"], found["pid"], found["line"]) == ("web", 42, 'say "hi"')


def test_the_end_of_a_pipe_is_reported_after_its_last_words_are_stored(session: Session) -> None:
    os.write(session.add("web.0"), b"no newline at the end")
    session.finish("web.0")
    assert session.texts() == ["no newline at the end"]


def test_a_line_without_end_is_broken_up_instead_of_filling_the_memory(session: Session) -> None:
    write = session.add("web.0")
    for _ in range(3):
        os.write(write, b"x" * 60_000)
        session.sync()
    session.finish("web.0")
    assert [len(text) for text in session.texts()] == [65_536, 65_536, 48_928]


def test_files_are_rotated_as_the_order_says(session: Session) -> None:
    os.write(session.add("web.0", max_size=100, keep=2, max_age=3600), b"0123456789\n" * 20)
    session.sync()
    assert len(session.texts("web.log.2")) > 0
    assert not (session.directory / "web.log.3").exists()


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
    for _ in range(50):  # far more than a pipe holds: the writer would hang if the logger stopped reading
        os.write(full, b"x" * 9_999 + b"\n")
        os.write(fine, b"still here\n")
    lost = [report for report in session.sync() if report["t"] == "dropped"]
    while sum(report["bytes"] for report in lost) < 500_000:
        lost.append(session.report())
    assert sum(report["bytes"] for report in lost) == 500_000
    assert {(report["id"], report["error"]) for report in lost} == {("full.0", "No space left on device")}
    assert session.texts() == ["still here"] * 50


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


def test_reopen_follows_a_file_that_was_moved_away(session: Session) -> None:
    write = session.add("web.0")
    os.write(write, b"old\n")
    session.sync()
    (session.directory / "web.log").rename(session.directory / "moved.log")
    wire.send(session.control, {"t": "reopen"})
    os.write(write, b"new\n")
    session.sync()
    assert (session.texts("moved.log"), session.texts()) == (["old"], ["new"])


def test_a_stream_that_is_added_again_takes_the_place_of_the_old_one(session: Session) -> None:
    old = session.add("web.0")
    os.write(old, b"to the old file\n")
    os.close(session.writers.pop("web.0"))
    os.close(session.readers.pop("web.0"))
    os.write(session.add("web.0", file="other.log"), b"to the new one\n")
    session.sync()
    assert (session.texts(), session.texts("other.log")) == (["to the old file"], ["to the new one"])


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
    session = Session(tmp_path)
    os.write(session.add("web.0"), b"whole\nunfinished")
    wire.send(session.control, {"t": "end"})
    Logger(session.theirs).run()
    assert session.texts() == ["whole", "unfinished"]
    session.close()


def test_logger_without_a_supervisor_goes_on_for_its_writers(tmp_path: Path) -> None:
    session = Session(tmp_path)
    write = session.add("web.0")
    session.control.close()
    thread = threading.Thread(target=Logger(session.theirs).run)
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


def test_killed_logger_loses_nothing_that_is_still_in_a_pipe(tmp_path: Path) -> None:
    session = Session(tmp_path)
    write = session.add("web.0")
    first = process(session)
    sent = 0
    for _ in range(200):
        os.write(write, b"%d\n" % sent)
        sent += 1
    session.sync()
    first.send_signal(signal.SIGSTOP)
    for _ in range(200):
        os.write(write, b"%d\n" % sent)
        sent += 1
    first.kill()
    first.wait(DEADLINE_SECONDS)
    session.theirs.close()
    session.control.close()
    session.control, session.theirs = wire.pair()
    session.control.settimeout(DEADLINE_SECONDS)
    second = process(session)
    session.theirs.close()
    session.hand_over("web.0")
    session.finish("web.0")
    assert session.texts() == [str(number) for number in range(sent)]
    session.close()
    assert second.wait(DEADLINE_SECONDS) == 0


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
    session.add("web.0")
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
    assert session.sync() == []
    assert session.texts("79.log") == ["here"]
    session.close()
    assert logger.wait(DEADLINE_SECONDS) == 0
