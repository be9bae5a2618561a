"""The page on which a worker counts, as its supervisor reads it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import pytest

from poolctl.worker import tally
from tests.serving import blank_page


def test_count_of_one_process_is_read_by_another() -> None:
    fd = tally.create_tally_page()
    page = tally.map_page(fd)
    page[tally.STARTED] += 3
    counts = tally.read_tally_page(fd)
    os.close(fd)
    assert counts is not None
    assert counts[tally.STARTED] == 3


def test_page_of_another_layout_or_size_is_not_read() -> None:
    fd = tally.create_tally_page()
    os.pwrite(fd, (tally.LAYOUT + 1).to_bytes(8, "little"), 0)
    assert tally.read_tally_page(fd) is None
    os.close(fd)
    short = os.memfd_create("short")
    os.pwrite(short, tally.LAYOUT.to_bytes(8, "little"), 0)
    assert tally.read_tally_page(short) is None
    os.close(short)


def test_of_a_worker_that_has_ended_nothing_is_open_and_what_was_under_way_is_lost() -> None:
    page = blank_page()
    page[tally.STARTED] = 5
    page[tally.BUCKETS] = 3
    page[tally.OPEN_CONNECTIONS] = page[tally.OPEN_WEBSOCKETS] = 2
    left = tally.final_counts(page.tolist())
    assert tally.in_flight(left) == 0
    assert left[tally.DISCONNECTED] == 2
    assert (left[tally.OPEN_CONNECTIONS], left[tally.OPEN_WEBSOCKETS]) == (0, 0)
    total = tally.final_counts(blank_page().tolist())
    tally.add(total, left)
    tally.add(total, left)
    assert (total[tally.STARTED], tally.responses(total)) == (10, 6)


def test_page_keeps_its_size_whatever_an_application_does_with_it() -> None:
    fd = tally.create_tally_page()
    try:
        for size in (0, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", tally.STACKS_AT + tally.STACK_BYTES)
        tally.map_page(fd)[1] = 7
        assert (tally.read_tally_page(fd) or [])[1] == 7
    finally:
        os.close(fd)


def test_worker_that_has_not_begun_writes_no_stacks() -> None:
    fd = tally.create_tally_page()
    assert not tally.writes_stacks(fd)
    tally.promise_stacks(fd)
    assert tally.writes_stacks(fd)
    assert tally.read_tally_page(fd) is not None
    os.close(fd)


def test_every_number_has_its_slot_which_does_not_move_within_a_layout() -> None:
    # Another version reads the page: a slot that moves needs another number in LAYOUT.
    layout = {
        "STARTED": 1, "DISCONNECTED": 2, "BROKEN": 3, "MALFORMED": 4, "LATENCY_NS": 5, "CONNECTIONS": 6,
        "OPEN_CONNECTIONS": 7, "WEBSOCKETS": 8, "OPEN_WEBSOCKETS": 9, "STATUS": 10, "BUCKETS": 16, "COUNTED": 32,
        "BEAT_ASKED_NS": 48, "BEAT_LAG_NS": 49, "BEAT_ANSWERED_NS": 50, "_STACKS": 51, "BEAT_CPU_NS": 52,
    }  # fmt: skip
    assert {name: getattr(tally, name) for name in layout} == layout
    assert tally.LAYOUT.to_bytes(8, "big") == b"poolctl\x01"
    assert [bound / 1e6 for bound in tally.BOUNDS_NS] == [
        0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000,
    ]  # fmt: skip


def counts_with(**values: int) -> list[int]:
    counts = blank_page().tolist()
    for name, value in values.items():
        counts[getattr(tally, name)] = value
    return counts


def test_responses_and_requests_in_progress_follow_from_the_counts() -> None:
    counts = counts_with(STARTED=10, DISCONNECTED=1, BROKEN=2, BUCKETS=3)
    counts[tally.COUNTED - 1] = 1
    counts[tally.COUNTED] = 100
    assert (tally.responses(counts), tally.in_flight(counts)) == (4, 3)
    assert tally.in_flight(counts_with(STARTED=1, BUCKETS=2)) == 0


def test_threads_and_tasks_are_described_by_their_stacks() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="tick\ner")
    thread.start()

    async def waiting(event: asyncio.Event) -> None:
        await event.wait()

    async def chain(other: asyncio.Task[None]) -> None:
        await other

    async def scenario() -> list[str]:
        event = asyncio.Event()
        tasks = [asyncio.create_task(waiting(event), name=f"w{number}") for number in range(7)]
        tasks.append(asyncio.create_task(chain(tasks[0]), name="last"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        found = [*tally.describe_stacks(None)]
        event.set()
        await asyncio.gather(*tasks)
        return found

    try:
        lines = asyncio.run(scenario())
    finally:
        over.set()
        thread.join()
    heads = [line for line in lines if not line.startswith("  ")]
    assert heads[0] == f"Current thread 0x{threading.get_ident():016x} [MainThread] (most recent call first):"
    assert any(line.startswith("Thread 0x") and "[tick?er]" in line for line in heads)
    assert heads[-3] == "Tasks 7 [w0, w1, w2, w3, w4] waits for a Future (most recent call first):"
    assert heads[-2].startswith("Tasks 1 [Task-")
    assert "running or ready" in heads[-2]
    assert heads[-1] == "Tasks 1 [last] waits for task w0 (most recent call first):"
    stack = lines[lines.index(heads[-3]) + 1 : lines.index(heads[-2])]
    assert [line.rpartition(" in ")[2].rpartition(".")[2] for line in stack] == ["wait", "waiting"]
    assert stack[1].startswith(f'  File "{__file__}", line ')


def test_long_stacks_and_many_groups_of_tasks_are_cut() -> None:
    def deep(count: int) -> list[str]:
        return deep(count - 1) if count else [*tally.describe_stacks(sys._getframe())]

    lines = deep(200)
    first = lines.index("  ...")
    assert first == 101
    assert lines[1].endswith("deep")


def test_stacks_on_a_page_are_replaced_by_later_ones() -> None:
    fd = tally.create_tally_page()
    assert not tally.writes_stacks(fd)
    tally.promise_stacks(fd)
    assert tally.writes_stacks(fd)
    os.pwrite(fd, b"first stacks\0", tally.STACKS_AT)
    assert tally.read_stacks(fd) == b"first stacks"
    tally.clear_and_rewind_stacks(fd)
    assert tally.read_stacks(fd) == b""
    assert os.lseek(fd, 0, os.SEEK_CUR) == tally.STACKS_AT
    os.pwrite(fd, b"x" * tally.STACK_BYTES, tally.STACKS_AT)
    tally.clear_and_rewind_stacks(fd)
    assert tally.read_stacks(fd) == b""
    os.close(fd)


DUMP = """
import faulthandler, os, signal
from poolctl.worker import tally

fd, page, done = os.open(os.devnull, os.O_RDONLY), tally.create_tally_page(), []
dump = tally.StackDumper()
dump.install_signal_handlers(fd)
print(tally.writes_stacks(page))

def waits():
    signal.raise_signal(tally.ASK)

def waits_elsewhere():
    signal.raise_signal(tally.ASK)

def fail():
    raise ValueError

dump.enable_for_page(page, lambda: done.append(tally.read_stacks(page)))
print(tally.writes_stacks(page), os.path.sameopenfile(fd, page), os.get_inheritable(fd))
waits()
print(len(done), done[0].startswith(b"Current thread 0x"), b" in waits\\n" in done[0])
tally.clear_and_rewind_stacks(page)
dump.enable_for_page(page, fail)
waits_elsewhere()
print(b" in waits_elsewhere\\n" in tally.read_stacks(page), b" in waits\\n" in tally.read_stacks(page))
signal.signal(tally.ASK, signal.SIG_IGN)
dump.disable_and_close()
print(signal.getsignal(tally.ASK) is signal.SIG_IGN, faulthandler.unregister(tally.ASK_AGAIN))
dump.install_signal_handlers(fd)
dump.disable_and_close()
print(signal.getsignal(tally.ASK) is signal.SIG_DFL, faulthandler.unregister(tally.ASK_AGAIN))
print(os.path.exists(f"/proc/self/fd/{fd}"))
"""


def test_stacks_are_written_at_a_signal_until_the_handlers_are_removed() -> None:
    done = subprocess.run([sys.executable, "-c", DUMP], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "False",
        "True True False",
        "1 True True",
        "True False",
        "True False",
        "True False",
        "False",
    ], done.stderr
