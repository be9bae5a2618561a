"""What only Linux does."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from poolctl.platform import age_seconds, await_readable, bounded_file


@pytest.mark.parametrize("limit", [16_384, 256])
def test_the_table_of_descriptors_is_made_as_large_as_it_may_get(limit: int) -> None:
    look = f"""
import os, resource
from poolctl.platform import make_room_for_descriptors
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min({limit}, hard), hard))
before = os.listdir("/proc/self/fd")
make_room_for_descriptors()
assert os.listdir("/proc/self/fd") == before
size = [line for line in open("/proc/self/status") if line.startswith("FDSize:")]
print(int(size[0].split()[1]), min({limit}, hard))
"""
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, wanted = map(int, done.stdout.split())
    assert size >= wanted


def test_a_bounded_file_takes_so_many_bytes_and_reports_how_many_were_written() -> None:
    fd = bounded_file("test", 100)
    try:
        assert os.write(fd, b"x" * 90) == 90
        with pytest.raises(PermissionError):
            os.write(fd, b"y" * 20)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 90
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 200)
    finally:
        os.close(fd)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the GNU library alone keeps freed memory so")
def test_memory_that_was_freed_within_the_heap_is_given_back() -> None:
    look = """
import os
from poolctl.platform import memory_bytes, release_freed_memory
blocks = [bytearray(2000) for _ in range(10_000)]
last = blocks.pop()
blocks.clear()
held = memory_bytes(os.getpid())
release_freed_memory()
print(held - memory_bytes(os.getpid()))
"""
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15_000_000


def test_a_process_that_is_continued_periodically_does_not_stay_stopped() -> None:
    stop_itself_twice = """
import os, signal
from poolctl.platform import continue_periodically
signal.signal(signal.SIGCONT, lambda number, frame: None)
continue_periodically(1)
for _ in range(2):
    os.kill(os.getpid(), signal.SIGSTOP)
"""
    subprocess.run([sys.executable, "-c", stop_itself_twice], check=True, timeout=60)


def test_age_of_a_process_is_the_time_since_it_was_started() -> None:
    assert 0 < age_seconds(os.getpid()) <= age_seconds(os.getppid())
    assert age_seconds(2**22 + 1) == 0.0


def test_wait_ends_for_a_signal_that_arrived_before_it_began() -> None:
    script = """
import os, signal
from poolctl.platform import await_readable
signals = []
signal.signal(signal.SIGUSR1, lambda *signal: signals.append(signal))
silent, _ = os.pipe()
wakeup, waker = os.pipe()
os.set_blocking(waker, False)
signal.set_wakeup_fd(waker)
os.kill(os.getpid(), signal.SIGUSR1)
print(await_readable(silent, 60, -1, wakeup), len(signals))
print(await_readable(silent, 0.01, -1, wakeup))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["False 1", "False"], done.stderr


def test_wait_says_whether_there_is_something_to_read_and_raises_when_the_reader_has_gone() -> None:
    (readable, writable), (reader, output) = os.pipe(), os.pipe()
    assert not await_readable(readable, 0.01, output)
    os.write(writable, b"1")
    assert await_readable(readable, 60, output)
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        await_readable(readable, 60, output)
    for fd in (readable, writable, output):
        os.close(fd)
