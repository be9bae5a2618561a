"""The notes of processes: what is read again, what is ended, and how long the file is."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolctl.platform import process_start
from poolctl.runners.left_overs import (
    ProcessNote,
    ProcessNotes,
    end_left_overs,
    forget_ended,
    left_over_text,
    left_overs,
)
from tests.deadline import wait_until
from tests.processes import freeze, is_alive

STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"


def note_of(process: subprocess.Popen[bytes], **fields: object) -> ProcessNote:
    start = process_start(process.pid)
    assert start is not None
    return ProcessNote(process.pid, start, "web", "web", **fields)  # type: ignore[arg-type]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield process
        process.kill()


@pytest.fixture
def stubborn() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", STUBBORN], start_new_session=True, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_notes_are_read_again_and_forgotten_with_their_processes(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    notes = ProcessNotes(str(tmp_path))
    notes.add(note := note_of(sleeper))
    assert left_overs(str(tmp_path)) == [note]
    assert ProcessNotes(str(tmp_path)).earlier == [note]
    notes.close([note])
    assert left_overs(str(tmp_path)) == [note]
    sleeper.kill()
    sleeper.wait()
    assert left_overs(str(tmp_path)) == []
    forget_ended(str(tmp_path))
    assert [*tmp_path.iterdir()] == []


def test_lines_that_were_cut_off_are_left_out(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    notes = ProcessNotes(str(tmp_path))
    notes.add(note_of(sleeper))
    with (tmp_path / "processes").open("a") as file:
        file.write('[1, 2, "we\n[3]\n{}\n')
    assert [each.pid for each in left_overs(str(tmp_path))] == [sleeper.pid]
    (tmp_path / "processes").write_bytes(b"\xff\n")
    assert left_overs(str(tmp_path)) == []


def test_file_stays_small_however_many_processes_come_and_go(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    notes, file = ProcessNotes(str(tmp_path)), tmp_path / "processes"
    notes.add(note_of(sleeper))
    longest = 0
    for number in range(2000):
        notes.add(ProcessNote(1 << 22, number, "job", "job"))  # above each pid that there is
        longest = max(longest, len(file.read_bytes().splitlines()))
    assert 100 < longest < 300
    assert [each.pid for each in left_overs(str(tmp_path))] == [sleeper.pid]


def test_file_that_was_removed_is_written_anew(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    notes = ProcessNotes(str(tmp_path))
    notes.add(note_of(sleeper))
    (tmp_path / "processes").unlink()
    notes.rewrite()
    assert [each.pid for each in left_overs(str(tmp_path))] == [sleeper.pid]


def test_signal_and_time_are_those_of_the_note(
    sleeper: subprocess.Popen[bytes], stubborn: subprocess.Popen[bytes]
) -> None:
    began = time.monotonic()
    ended = end_left_overs(
        [
            note_of(sleeper, stop_signal=signal.SIGINT),
            note_of(stubborn, stop_seconds=0.3),
        ]
    )
    assert time.monotonic() - began >= 0.3
    assert (sleeper.wait(), stubborn.wait()) == (-signal.SIGINT, -signal.SIGKILL)
    assert [each.warnings for each in ended] == [[], [f"web: pid {stubborn.pid} had to be killed"]]


def test_limit_is_shorter_than_the_time_of_a_note(stubborn: subprocess.Popen[bytes]) -> None:
    end_left_overs([note_of(stubborn, stop_seconds=60.0)], limit_seconds=0.1)
    assert stubborn.wait(60) == -signal.SIGKILL


def test_what_only_finishes_its_requests_gets_a_signal_after_the_time_for_them(
    sleeper: subprocess.Popen[bytes], stubborn: subprocess.Popen[bytes]
) -> None:
    released: list[int | None] = []
    began = time.monotonic()
    end_left_overs(
        [
            note_of(sleeper, drain_seconds=0.3),
            note_of(stubborn, drain_seconds=None, stop_seconds=0.3),  # ends after all others
        ],
        on_released=lambda sessions: released.append(sleeper.poll()),
    )
    assert released == [None], "before its time has passed"
    assert time.monotonic() - began >= 0.6
    assert (sleeper.wait(), stubborn.wait()) == (-signal.SIGTERM, -signal.SIGKILL)


def test_pid_that_has_come_round_is_a_strangers(sleeper: subprocess.Popen[bytes]) -> None:
    note = note_of(sleeper)
    earlier = ProcessNote(note.pid, note.start - 1, "web", "web")
    assert [each.warnings for each in end_left_overs([earlier])] == [[]]
    assert sleeper.poll() is None


def test_member_of_a_session_is_ended_though_its_pid_was_another_ones() -> None:
    script = "sleep 600 >/dev/null & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        member = int(leader.stdout.readline())
        stale = ProcessNote(member, 1, "old", "old")
        end_left_overs([note_of(leader), stale])
        wait_until(lambda: not is_alive(member))


def test_stopped_process_is_continued(sleeper: subprocess.Popen[bytes]) -> None:
    freeze(sleeper.pid)
    stat = Path(f"/proc/{sleeper.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
    end_left_overs([note_of(sleeper)])
    assert sleeper.wait(60) == -signal.SIGTERM


def test_text_counts_and_names() -> None:
    assert left_over_text(["web"]) == "1 process of a killed pool was left over: web"
    assert left_over_text(["web", "db", "web"]) == "3 processes of a killed pool were left over: web, db"
