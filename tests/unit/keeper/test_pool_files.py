"""A pool's directory: sockets and desired state that outlive keeper and supervisor, its lock, and its removal."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path

import pytest

from poolctl.keeper import pool_files, rendezvous
from poolctl.platform import peer_credentials
from tests.deadline import wait_until
from tests.descriptors import open_descriptors
from tests.unit.keeper.test_rendezvous import listening


def test_listening_socket_is_found_and_one_that_is_only_bound_is_not(tmp_path: Path) -> None:
    bound, path = rendezvous.bind_new_socket(str(tmp_path), pool_files.WORKER)
    with bound:
        assert os.path.dirname(path) == str(tmp_path)
        assert pool_files.find_listeners(str(tmp_path), pool_files.WORKER) == []
        assert rendezvous.connect(path) is None
        bound.listen()
        assert pool_files.find_listeners(str(tmp_path), pool_files.WORKER) == [path]
        assert pool_files.find_listeners(str(tmp_path), pool_files.LOGGER) == []
        client = rendezvous.connect(path)
        assert client is not None
        with client:
            assert peer_credentials(client)[:2] == (os.getpid(), os.geteuid())
    assert pool_files.find_listeners(str(tmp_path), pool_files.WORKER) == []
    assert rendezvous.connect(path) is None


def test_sweep_removes_only_sockets_that_no_process_has_open(tmp_path: Path) -> None:
    (tmp_path / "wanted.json").write_text("{}")
    stale, _ = rendezvous.bind_new_socket(str(tmp_path), pool_files.WORKER)
    stale.close()
    bound, waiting = rendezvous.bind_new_socket(str(tmp_path), pool_files.WORKER)
    sock, path = listening(tmp_path)
    with sock, bound:
        pool_files.remove_stale_sockets(str(tmp_path))
        assert sorted(map(str, tmp_path.iterdir())) == sorted([path, waiting, str(tmp_path / "wanted.json")])


def test_listener_that_has_connections_is_still_found(tmp_path: Path) -> None:
    sock, path = listening(tmp_path)
    with sock:
        client = rendezvous.connect(path)
        ours = rendezvous.accept(sock, {os.geteuid()})
        assert client is not None
        assert ours is not None
        with client, ours:
            assert pool_files.find_listeners(str(tmp_path), pool_files.WORKER) == [path]


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


def test_sweep_removes_the_sockets_of_every_kind_of_process_and_no_other_file(tmp_path: Path) -> None:
    for kind in (pool_files.WORKER, pool_files.LOGGER, pool_files.GATEWAY, "x"):
        rendezvous.bind_new_socket(str(tmp_path), kind)[0].close()
    (tmp_path / "control.sock").touch()
    pool_files.remove_stale_sockets(str(tmp_path))
    assert sorted(path.name.partition(".")[0] for path in tmp_path.iterdir()) == ["control", "x"]


def test_directory_that_is_missing_holds_no_socket(tmp_path: Path) -> None:
    assert pool_files.find_listeners(str(tmp_path / "gone"), pool_files.WORKER) == []
    pool_files.remove_stale_sockets(str(tmp_path / "gone"))


def test_every_socket_counts_as_open_when_the_kernels_table_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock, path = rendezvous.bind_new_socket(str(tmp_path), pool_files.WORKER)
    sock.close()
    monkeypatch.setattr(pool_files, "_SOCKET_TABLE", str(tmp_path / "gone"))
    pool_files.remove_stale_sockets(str(tmp_path))
    assert pool_files.find_listeners(str(tmp_path), pool_files.WORKER) == [path]


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


def test_state_of_an_unknown_boot_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_files, "boot_identity", lambda: ["", 1])
    pool_files.write_left_state(str(tmp_path), b'{"servers": {}}')
    assert pool_files.read_left_state(str(tmp_path)) == {}


def test_lock_that_is_held_is_refused_or_awaited_until_it_is_released(tmp_path: Path) -> None:
    held = pool_files.lock(str(tmp_path))
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    assert not os.get_inheritable(held)
    before = open_descriptors()
    with pytest.raises(BlockingIOError):
        pool_files.lock(str(tmp_path), patient=False)
    assert open_descriptors() == before
    taken: list[int] = []
    waiting = threading.Thread(target=lambda: taken.append(pool_files.lock(str(tmp_path))))
    waiting.start()
    wait_until(lambda: f" {os.getpid()} " in _waiting_for_locks())
    assert taken == []
    os.close(held)
    waiting.join(60)
    os.close(taken[0])
    os.close(pool_files.lock(str(tmp_path), patient=False))


def _waiting_for_locks() -> str:
    """The rows of proc_locks(5) for requests that wait."""
    return "".join(row for row in Path("/proc/locks").read_text().splitlines(True) if "->" in row)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_lock_whose_file_the_previous_holder_removed_is_taken_on_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_replaced: bool
) -> None:
    file, original, calls = tmp_path / "lock", fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not calls:
            file.unlink()
            if is_replaced:
                file.touch()
        calls.append(descriptor)
        original(descriptor, operation)

    monkeypatch.setattr(pool_files.fcntl, "flock", flock)
    before = open_descriptors()
    held = pool_files.lock(str(tmp_path))
    assert os.path.samestat(os.fstat(held), file.stat())
    assert len(calls) == 2
    os.close(held)
    assert open_descriptors() == before


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
    before = open_descriptors()
    pool_files.clean_up_pool_directory(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"web.log", "notes"}
    assert open_descriptors() == before


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
