"""The lock of a pool: who holds it, when it is free, and what becomes of it in files that others share or remove."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolctl.control.pool_lock import PoolLocks, holder, user_locks
from poolctl.control.pool_paths import runtime_root_candidates
from poolctl.platform import boot_identity
from tests.other_user import as_user
from tests.sandbox import run_in_namespace

# Of this process: the holder of a lock is looked for in the whole machine, by the position of the pool's byte.
POOL = f"/nowhere/{os.getpid():08x}"
OTHERS = [f"{POOL}0", POOL.replace("nowhere", "elsewhere")]
# Holds the lock of POOL in the directories given, until it is killed.
HOLDER = """
import signal, sys
from poolctl.control.pool_lock import PoolLocks
PoolLocks(sys.argv[2:]).acquire(sys.argv[1])
print("held", flush=True)
signal.pause()
"""


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    """The directories for locks, the preferred one first. They do not exist yet."""
    return [tmp_path / "state", tmp_path / "last"]


@pytest.fixture
def locks(places: list[Path]) -> PoolLocks:
    return PoolLocks([*map(str, places)])


@pytest.fixture
def other(places: list[Path]) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of POOL."""
    command = [sys.executable, "-c", HOLDER, POOL, *map(str, places)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def free_again(locks: PoolLocks, *descriptors: int) -> bool:
    for descriptor in descriptors:
        os.close(descriptor)
    return not locks.is_held(POOL)


def test_lock_is_held_until_its_last_descriptor_is_closed(locks: PoolLocks) -> None:
    assert not locks.is_held(POOL)
    lock = locks.acquire(POOL)
    second = os.dup(lock)
    assert locks.is_held(POOL)
    with pytest.raises(BlockingIOError):
        locks.acquire(POOL)
    os.close(lock)
    assert locks.is_held(POOL)
    assert free_again(locks, second)
    assert free_again(locks, locks.acquire(POOL))


def test_one_private_empty_file_has_the_locks_of_all_pools(places: list[Path], locks: PoolLocks) -> None:
    held = [locks.acquire(pool) for pool in (POOL, *OTHERS)]
    assert all(map(locks.is_held, (POOL, *OTHERS)))
    (file,) = places[0].iterdir()
    assert (file.stat().st_size, file.stat().st_mode & 0o777) == (0, 0o600)
    assert places[0].stat().st_mode & 0o777 == 0o700
    assert not any(map(os.get_inheritable, held))
    assert free_again(locks, held.pop(0))
    assert all(map(locks.is_held, OTHERS))
    assert free_again(locks, *held)
    assert file.exists()


def test_lock_of_a_killed_process_is_free(locks: PoolLocks, other: subprocess.Popen[str]) -> None:
    assert locks.is_held(POOL)
    other.kill()
    other.wait()
    assert free_again(locks, locks.acquire(POOL))


def test_holder_is_the_keeper_and_not_its_child(locks: PoolLocks) -> None:
    assert holder(POOL) == 0
    lock = locks.acquire(POOL)
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        assert holder(POOL) == os.getpid()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert free_again(locks, lock)


def test_holder_is_found_in_another_process(places: list[Path], other: subprocess.Popen[str]) -> None:
    assert holder(POOL) == other.pid
    assert holder(OTHERS[0]) == 0


@pytest.mark.parametrize(
    "first",
    [
        lambda path: path.write_text("a file"),
        lambda path: path.mkdir(mode=0o777) or path.chmod(0o777),
        lambda path: (path / "lock").mkdir(parents=True),
    ],
    ids=["file", "unsafe", "directory in its place"],
)
def test_lock_is_kept_in_the_last_directory_if_the_first_is_not_usable(
    places: list[Path], locks: PoolLocks, first: object
) -> None:
    first(places[0])  # type: ignore[operator]
    lock = locks.acquire(POOL)
    assert os.path.samestat(os.fstat(lock), (places[1] / "lock").stat())
    # By now the first directory can be used.
    shutil.rmtree(places[0]) if places[0].is_dir() else places[0].unlink()
    assert locks.is_held(POOL)
    with pytest.raises(BlockingIOError):
        locks.acquire(POOL)
    assert free_again(locks, lock)


def test_lock_that_can_be_kept_nowhere_is_an_error_and_not_held(places: list[Path], locks: PoolLocks) -> None:
    for place in places:
        place.write_text("a file")
    with pytest.raises(OSError, match=r"state|directory") as caught:
        locks.acquire(POOL)
    assert not isinstance(caught.value, BlockingIOError)
    assert not locks.is_held(POOL)


def test_file_that_was_removed_holds_no_lock(places: list[Path], locks: PoolLocks) -> None:
    lock = locks.acquire(POOL)
    assert locks.is_in_place(lock)
    (places[0] / "lock").unlink()
    assert not locks.is_in_place(lock)
    again = locks.acquire(POOL)
    assert locks.is_in_place(again)
    shutil.rmtree(places[0])
    places[0].write_text("in the way")
    assert not locks.is_in_place(again)
    assert free_again(locks, lock, again)


def test_lock_of_an_earlier_boot_or_another_machine_does_not_count(locks: PoolLocks, tmp_path: Path) -> None:
    def in_another_boot() -> bool:
        boot_identity.cache_clear()
        try:
            return locks.is_held(POOL)
        finally:
            boot_identity.cache_clear()

    lock = locks.acquire(POOL)
    (tmp_path / "boot").write_text("another")
    another = f"mount --bind {tmp_path}/boot /proc/sys/kernel/random/boot_id"
    assert not run_in_namespace(another, in_another_boot)
    assert locks.is_held(POOL)
    os.close(lock)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for another PID namespace")
def test_process_in_another_pid_namespace_does_not_find_the_lock_held(locks: PoolLocks) -> None:
    lock = locks.acquire(POOL)
    code = f"from poolctl.control.pool_lock import PoolLocks; print(PoolLocks({locks.directories}).is_held({POOL!r}))"
    for more, expected in (((), "True\n"), (("unshare", "--pid", "--fork", "--mount-proc"), "False\n")):
        found = subprocess.run(
            [*more, sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        assert found.stdout == expected, found.stderr
    os.close(lock)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a file of another user")
def test_file_of_another_user_does_not_block_a_pool(places: list[Path], locks: PoolLocks) -> None:
    """The other user has made the directory first, and locks every position of a file in it."""
    for place in places:
        place.mkdir()
        (place / "lock").touch()
    taken = [os.open(place / "lock", os.O_RDWR) for place in places]
    for fd in taken:
        whole = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, whole)
    assert locks.is_held(POOL), "while it is this user's"
    os.chown(places[0], 54321, 54321)
    shutil.rmtree(places[1])
    assert not locks.is_held(POOL)
    assert free_again(locks, locks.acquire(POOL), *taken)


def test_default_runtime_directories_are_one_pool(locks: PoolLocks, tmp_path: Path) -> None:
    """Which of them is usable may change while the pool runs: a logout removes /run/user/UID."""
    first, *_, last = runtime_root_candidates({})
    lock = locks.acquire(f"{first}/0123abcd")
    assert locks.is_held(f"{last}/0123abcd")
    assert not locks.is_held(f"{tmp_path}/0123abcd")
    os.close(lock)


def test_runtime_directory_is_known_by_any_path(locks: PoolLocks, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    lock = locks.acquire(f"{tmp_path}/real/run/0123abcd")
    assert locks.is_held(f"{tmp_path}/link/run/0123abcd")
    os.close(lock)


def test_place_of_the_lock_depends_on_the_user_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = user_locks().directories
    for name in ("HOME", "XDG_STATE_HOME", "POOLCTL_STATE_DIR", "POOLCTL_RUNTIME_DIR"):
        monkeypatch.setenv(name, "/elsewhere")
    assert user_locks().directories == before
    if os.geteuid() == 0:
        assert before == ["/var/lib/poolctl", "/tmp/poolctl-0.lock"]
        with as_user(4_000_000):
            assert user_locks().directories == ["/tmp/poolctl-4000000.lock"], "a user without a name"
