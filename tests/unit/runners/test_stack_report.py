"""A report of stacks is read from a text that an application may have written."""

from __future__ import annotations

from poolctl.json_form import from_json, to_json
from poolctl.runners.stack_report import (
    FAULTHANDLER,
    PYTHON,
    KernelThread,
    ThreadStack,
    WorkerStacks,
    find_main_thread_hang,
    parse,
)

DIRECTORIES = ("/srv/shop", "")
WRITTEN = b"""\
Thread 0x00007f0000000001 [reader] (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait
  File "/srv/venv/lib/python3.12/site-packages/redis/client.py", line 77 in Client.read
Current thread 0x00007f0000000002 [MainThread] (most recent call first):
  Garbage-collecting
  File "/usr/lib/python3.11/ssl.py", line 1132 in SSLSocket.read
  File "/srv/shop/shop/payment.py", line 42 in charge
  File "/srv/shop/shop/web.py", line ??? in app
  ...
nonsense \xff
Tasks 12 [Task-1, Task-2] waits for a Future (most recent call first):
  File "/usr/lib/python3.11/asyncio/locks.py", line 213 in Event.wait
"""


def stacks(written: bytes, source: str = PYTHON) -> WorkerStacks:
    threads, tasks = parse(written, source, DIRECTORIES)
    return WorkerStacks(name="web", worker="web.1.0", pid=7, threads=tuple(threads), tasks=tuple(tasks))


def place(written: bytes, source: str = PYTHON) -> str:
    return find_main_thread_hang(parse(written, source, DIRECTORIES)[0])


def test_main_thread_comes_first_and_paths_are_short() -> None:
    found = stacks(WRITTEN)
    assert list(found.lines()) == [
        "main thread:",
        "  SSLSocket.read (ssl.py:1132)",
        "  charge (shop/payment.py:42)",
        "  app (shop/web.py:?)",
        "thread reader:",
        "  wait (threading.py:320)",
        "  Client.read (redis/client.py:77)",
        "12 tasks Task-1, Task-2 and 10 more, waits for a Future:",
        "  Event.wait (asyncio/locks.py:213)",
    ]
    assert from_json(WorkerStacks, to_json(found)) == found


def test_place_is_the_applications_innermost_call() -> None:
    assert place(WRITTEN) == "charge (shop/payment.py:42)"
    only_libraries = b"Current thread 0x1 (most recent call first):\n" + WRITTEN.splitlines(keepends=True)[5]
    assert place(only_libraries) == "SSLSocket.read (ssl.py:1132)"


def test_main_thread_that_waits_for_events_hangs_nowhere() -> None:
    selecting = b"""\
Current thread 0x1 (most recent call first):
  File "/usr/lib/python3.11/selectors.py", line 468 in EpollSelector.select
  File "/srv/shop/shop/web.py", line 1 in main
"""
    assert place(selecting) == place(b"") == ""


def test_last_thread_that_faulthandler_writes_is_the_main_thread() -> None:
    written = b"""\
Current thread 0x2 (most recent call first):
  File "/srv/shop/a.py", line 1 in in_a_thread

Thread 0x1 (most recent call first):
  File "/srv/shop/b.py", line 2 in main
"""
    assert place(written, FAULTHANDLER) == "main (b.py:2)"
    assert [each.main for each in parse(written, FAULTHANDLER, DIRECTORIES)[0]] == [True, False]


def test_text_of_a_hostile_application_is_bounded_and_printable() -> None:
    evil = (
        b'  File "/srv/shop/\x1b[31m", line 99999999999999999999 in f\n  File "x", line 1 in \x1b]0;t\x07\n'
        * 9
    )
    head = b"Thread 0x1 [\x1b[0m] (most recent call first):\n"
    found = stacks(head + evil + head * 1000)
    assert len(found.threads) == 100
    assert "\x1b" not in str(found)
    assert len(stacks(head + evil).threads[0].frames) == 9
    assert len(stacks(head + evil * 1000).threads[0].frames) == 100
    brackets = b"Tasks 1 [" + b"] " * 990 + b"\n"
    assert stacks(brackets * 130 + b"Tasks 1 [" + b"] " * 100_000).tasks == ()
    assert len(stacks(b"Current " + head.lower() * 6000).threads) <= 100
    assert stacks(b"\0\1\2" * 1000).threads == ()


def test_shortened_report_keeps_the_innermost_calls() -> None:
    found = stacks(WRITTEN * 50).shortened(3, 1)
    assert (len(found.threads), len(found.tasks)) == (3, 3)
    assert [frame.function for frame in found.threads[0].frames] == ["SSLSocket.read"]


def test_workers_own_calls_are_left_out_below_the_applications() -> None:
    from poolctl.worker import worker_process

    written = (
        'Current thread 0x1 (most recent call first):\n  File "/srv/shop/a.py", line 1 in f\n'
        f'  File "{worker_process.__file__}", line 2 in run\n'
    )
    (thread,) = stacks(written.encode()).threads
    assert isinstance(thread, ThreadStack)
    assert [frame.function for frame in thread.frames] == ["f"]


def test_kernels_view_of_a_thread_names_only_what_can_be_read() -> None:
    read = KernelThread(
        tid=7, name="python", state="D", wchan="nfs_wait", syscall="0", stack=("nfs_wait+0x1", "vfs_read+0x2")
    )
    unreadable = KernelThread(tid=8, name="python", state="S", wchan="", syscall="", stack=())
    found = WorkerStacks(
        name="web", worker="web.1.0", pid=7, problem="it is blocked", kernel=(read, unreadable)
    )
    assert list(found.lines()) == [
        "it is blocked",
        "kernel, thread 7 python: state D, waits in nfs_wait, system call 0",
        "  nfs_wait+0x1",
        "  vfs_read+0x2",
        "kernel, thread 8 python: state S",
    ]
    shortened = found.shortened(1, 1)
    assert [(each.tid, each.stack) for each in shortened.kernel] == [(7, ("nfs_wait+0x1",))]


def test_thread_without_a_name_and_a_single_task_are_named_as_they_are() -> None:
    written = b"Thread 0x1 (most recent call first):\nTasks 1 [poll] sleeps (most recent call first):\n"
    assert list(stacks(written).lines()) == ["thread:", "task poll, sleeps:"]


def test_place_is_never_in_the_workers_own_code_or_a_frozen_module() -> None:
    from poolctl.worker import worker_process

    written = (
        "Current thread 0x1 (most recent call first):\n"
        '  File "<frozen importlib._bootstrap>", line 1 in _find\n'
        f'  File "{worker_process.__file__}", line 2 in stop\n'
        '  File "/srv/shop/a.py", line 3 in f\n'
    )
    assert place(written.encode()) == "f (a.py:3)"


def test_loop_that_has_just_been_started_waits_for_events_too() -> None:
    written = b"""\
Current thread 0x1 (most recent call first):
  File "/usr/lib/python3.11/asyncio/runners.py", line 118 in Runner.run
  File "/srv/shop/a.py", line 3 in f
"""
    assert place(written) == ""
    assert place(written.replace(b"Runner.run", b"Runner.close")) == "f (a.py:3)"
