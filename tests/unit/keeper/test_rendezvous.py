"""Processes are found by a name that begins with their pool's directory, and by nobody else's."""

from __future__ import annotations

import os
from pathlib import Path

from poolctl.keeper import rendezvous, wire


def test_what_listens_is_found_and_reached(tmp_path: Path) -> None:
    with rendezvous.listen(str(tmp_path), rendezvous.WORKER) as listener:
        (name,) = rendezvous.find(str(tmp_path), rendezvous.WORKER)
        assert name == os.fsencode(f"\0{tmp_path}/w/{os.getpid()}")
        assert rendezvous.find(str(tmp_path), rendezvous.LOGGER) == []
        assert rendezvous.find(str(tmp_path)[:-1], rendezvous.WORKER) == []
        client = rendezvous.connect(name, 1.0)
        assert client is not None
        ours = rendezvous.accept(listener, {os.geteuid()})
        assert ours is not None
        with client, ours:
            wire.send(ours, {"n": 1})
            assert rendezvous.receive(client) == ({"n": 1}, [])
            client.send(b"garbage")
            assert rendezvous.receive(ours) is None
    assert rendezvous.find(str(tmp_path), rendezvous.WORKER) == []
    assert rendezvous.connect(name, 1.0) is None


def test_a_name_that_somebody_took_keeps_nobody_from_being_found(tmp_path: Path) -> None:
    with (
        rendezvous.listen(str(tmp_path), rendezvous.WORKER) as first,
        rendezvous.listen(str(tmp_path), rendezvous.WORKER) as second,
    ):
        assert first.getsockname() != second.getsockname()
        assert len(rendezvous.find(str(tmp_path), rendezvous.WORKER)) == 2


def test_other_users_are_turned_away(tmp_path: Path) -> None:
    with rendezvous.listen(str(tmp_path), rendezvous.WORKER) as listener:
        (name,) = rendezvous.find(str(tmp_path), rendezvous.WORKER)
        client = rendezvous.connect(name, 1.0)
        assert client is not None
        with client:
            assert rendezvous.accept(listener, {os.geteuid() + 1}) is None
            assert rendezvous.receive(client) is None
        assert rendezvous.accept(listener, {os.geteuid()}) is None, "nobody is waiting"


def test_connections_do_not_stand_in_the_way(tmp_path: Path) -> None:
    with rendezvous.listen(str(tmp_path), rendezvous.LOGGER) as listener:
        (name,) = rendezvous.find(str(tmp_path), rendezvous.LOGGER)
        client = rendezvous.connect(name, 1.0)
        ours = rendezvous.accept(listener, {os.geteuid()})
        assert client is not None
        assert ours is not None
        with client, ours:
            assert rendezvous.find(str(tmp_path), rendezvous.LOGGER) == [name]
