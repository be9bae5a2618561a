"""A pool's directory: HAProxy's sockets and the desired state of a killed pool, its lock, and its removal."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from poolctl.keeper import pool_files
from poolctl.platform import boot_identity
from tests.deadline import wait_until
from tests.descriptors import no_descriptor_left
from tests.sandbox import run_in_namespace


def bound(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    return sock


def test_sweep_removes_only_haproxys_sockets_that_no_process_has_open(tmp_path: Path) -> None:
    for name in ("g.stale", "control.sock", "gone"):
        bound(tmp_path / name).close()
    with bound(tmp_path / "g.bound"), bound(tmp_path / "g.listening") as listener:
        listener.listen()
        pool_files.remove_stale_sockets(str(tmp_path))
    kept = {"control.sock", "gone", "g.bound", "g.listening"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    pool_files.remove_stale_sockets(str(tmp_path / "no such directory"))


def test_last_desired_state_is_read_until_it_is_removed(tmp_path: Path) -> None:
    assert pool_files.read_left_state(str(tmp_path)) == {}
    pool_files.write_left_state(str(tmp_path), b'{"servers": {}}')
    pool_files.write_left_state(str(tmp_path), b'{"servers": {"web": {"count": 2}}}')
    assert pool_files.read_left_state(str(tmp_path)) == {"servers": {"web": {"count": 2}}}
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    pool_files.remove_left_states(str(tmp_path))
    pool_files.remove_left_states(str(tmp_path))
    assert pool_files.read_left_state(str(tmp_path)) == {}
    assert list(tmp_path.iterdir()) == []


def test_desired_state_is_empty_after_a_boot(tmp_path: Path) -> None:
    pool_files.write_left_state(str(tmp_path), b'{"servers": {}}')
    (path,) = tmp_path.iterdir()
    written = json.loads(path.read_text())
    boot, first = written["life"]
    for another in (["0-0", first], [boot, first + 1]):
        path.write_text(json.dumps({**written, "life": another}))
        assert pool_files.read_left_state(str(tmp_path)) == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"life": 1', '{"life": null, "left": {}}', "\xff"])
def test_unreadable_desired_state_is_empty(tmp_path: Path, text: str) -> None:
    pool_files.write_left_state(str(tmp_path), b"{}")
    (path,) = tmp_path.iterdir()
    path.write_bytes(text.encode("latin-1"))
    assert pool_files.read_left_state(str(tmp_path)) == {}


def test_each_name_has_a_state_of_its_own_and_all_are_removed_together(tmp_path: Path) -> None:
    names = [
        pool_files.DESIRED,
        pool_files.REGISTRATIONS,
        pool_files.CONTEXT_SECRET,
    ]
    for name in names:
        pool_files.write_left_state(str(tmp_path), json.dumps({"of": name}).encode(), name)
    (tmp_path / "web.log").touch()
    assert [pool_files.read_left_state(str(tmp_path), name) for name in names] == [
        {"of": name} for name in names
    ]
    pool_files.remove_left_states(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["web.log"]


def test_state_of_an_unknown_boot_is_not_trusted(tmp_path: Path) -> None:
    def work() -> None:
        boot_identity.cache_clear()
        try:
            pool_files.write_left_state(str(tmp_path), b'{"servers": {}}')
            assert pool_files.read_left_state(str(tmp_path)) == {}
        finally:
            boot_identity.cache_clear()

    run_in_namespace("mount --bind /dev/null /proc/sys/kernel/random/boot_id", work)


@pytest.mark.parametrize(("removed", "made_again"), [(False, False), (True, False), (True, True)])
def test_lock_that_is_held_is_refused_or_awaited_until_it_is_released(
    tmp_path: Path, removed: bool, made_again: bool
) -> None:
    held, file = pool_files.lock(str(tmp_path)), tmp_path / "lock"
    assert file.stat().st_mode & 0o777 == 0o600
    assert not os.get_inheritable(held)
    with no_descriptor_left(), pytest.raises(BlockingIOError):
        pool_files.lock(str(tmp_path), patient=False)
    taken: list[int] = []
    waiting = threading.Thread(target=lambda: taken.append(pool_files.lock(str(tmp_path))))
    waiting.start()
    wait_until(lambda: f" {os.getpid()} " in _waiting_for_locks())
    assert taken == []
    if removed:
        file.unlink()
    if made_again:
        file.touch()
    os.close(held)
    waiting.join(60)
    assert os.path.samestat(os.fstat(taken[0]), file.stat())
    os.close(taken[0])
    os.close(pool_files.lock(str(tmp_path), patient=False))


def _waiting_for_locks() -> str:
    """The rows of proc_locks(5) for requests that wait."""
    return "".join(row for row in Path("/proc/locks").read_text().splitlines(True) if "->" in row)


def test_directory_without_logs_is_removed_with_its_lock(tmp_path: Path) -> None:
    directory = tmp_path / "pool"
    directory.mkdir()
    for name in ("web.log", "web.log.1", "lock"):
        (directory / name).touch()
    pool_files.clean_up_pool_directory(str(directory))
    assert not directory.exists()
    pool_files.clean_up_pool_directory(str(directory))
    assert not directory.exists()


def test_log_with_lines_and_files_of_others_stay_in_the_directory(tmp_path: Path) -> None:
    (tmp_path / "web.log").write_text("failed\n")
    (tmp_path / "notes").touch()
    for name in ("empty.log", "lock"):
        (tmp_path / name).touch()
    with no_descriptor_left():
        pool_files.clean_up_pool_directory(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"web.log", "notes"}


@pytest.mark.parametrize("name", ["control.sock", "wanted.json"])
def test_directory_of_a_running_or_killed_pool_keeps_its_files(tmp_path: Path, name: str) -> None:
    for each in (name, "web.log"):
        (tmp_path / each).touch()
    pool_files.clean_up_pool_directory(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {name, "web.log", "lock"}


def test_directory_in_which_a_pool_is_being_started_keeps_its_files(tmp_path: Path) -> None:
    held = pool_files.lock(str(tmp_path))
    (tmp_path / "web.log").touch()
    pool_files.clean_up_pool_directory(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"web.log", "lock"}
    os.close(held)
