"""A pool's directory: sockets and desired state that outlive keeper and supervisor, its lock, and its removal."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from poolctl.keeper import pool_files, rendezvous
from poolctl.platform import peer_credentials
from tests.unit.keeper.test_rendezvous import listening


def test_listening_socket_is_found_and_one_that_is_only_bound_is_not(tmp_path: Path) -> None:
    bound, path = rendezvous.bind(str(tmp_path), pool_files.WORKER)
    with bound:
        assert os.path.dirname(path) == str(tmp_path)
        assert pool_files.find(str(tmp_path), pool_files.WORKER) == []
        assert rendezvous.connect(path) is None
        bound.listen()
        assert pool_files.find(str(tmp_path), pool_files.WORKER) == [path]
        assert pool_files.find(str(tmp_path), pool_files.LOGGER) == []
        client = rendezvous.connect(path)
        assert client is not None
        with client:
            assert peer_credentials(client)[:2] == (os.getpid(), os.geteuid())
    assert pool_files.find(str(tmp_path), pool_files.WORKER) == []
    assert rendezvous.connect(path) is None


def test_sweep_removes_only_sockets_that_no_process_has_open(tmp_path: Path) -> None:
    (tmp_path / "wanted.json").write_text("{}")
    stale, _ = rendezvous.bind(str(tmp_path), pool_files.WORKER)
    stale.close()
    bound, waiting = rendezvous.bind(str(tmp_path), pool_files.WORKER)
    sock, path = listening(tmp_path)
    with sock, bound:
        pool_files.sweep(str(tmp_path))
        assert sorted(map(str, tmp_path.iterdir())) == sorted([path, waiting, str(tmp_path / "wanted.json")])


def test_listener_that_has_connections_is_still_found(tmp_path: Path) -> None:
    sock, path = listening(tmp_path)
    with sock:
        client = rendezvous.connect(path)
        ours = rendezvous.accept(sock, {os.geteuid()})
        assert client is not None
        assert ours is not None
        with client, ours:
            assert pool_files.find(str(tmp_path), pool_files.WORKER) == [path]


def test_last_desired_state_is_read_until_it_is_removed(tmp_path: Path) -> None:
    assert pool_files.read_desired(str(tmp_path)) == {}
    pool_files.write_desired(str(tmp_path), b'{"servers": {}}')
    pool_files.write_desired(str(tmp_path), b'{"servers": {"web": {"count": 2}}}')
    assert pool_files.read_desired(str(tmp_path)) == {"servers": {"web": {"count": 2}}}
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    pool_files.remove_desired(str(tmp_path))
    pool_files.remove_desired(str(tmp_path))
    assert pool_files.read_desired(str(tmp_path)) == {}
    assert list(tmp_path.iterdir()) == []


def test_desired_state_is_empty_after_a_boot(tmp_path: Path) -> None:
    pool_files.write_desired(str(tmp_path), b'{"servers": {}}')
    (path,) = tmp_path.iterdir()
    written = json.loads(path.read_text())
    boot, first = written["life"]
    for another in (["0-0", first], [boot, first + 1]):
        path.write_text(json.dumps({**written, "life": another}))
        assert pool_files.read_desired(str(tmp_path)) == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"life": 1', '{"life": null, "left": {}}', "\xff"])
def test_unreadable_desired_state_is_empty(tmp_path: Path, text: str) -> None:
    pool_files.write_desired(str(tmp_path), b"{}")
    (path,) = tmp_path.iterdir()
    path.write_bytes(text.encode("latin-1"))
    assert pool_files.read_desired(str(tmp_path)) == {}
