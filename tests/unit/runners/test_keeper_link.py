"""A keeper's link records every entry of the keeper, of earlier supervisors too."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import pytest

from poolctl.keeper import wire
from poolctl.keeper.keeper import Keeper
from poolctl.runners.keeper_link import KeeperLink
from poolctl.runners.process_link import LinkLost, Receiver


class Peer:
    """A keeper's store, asked in this very process."""

    def __init__(self) -> None:
        ours, self.sock = wire.pair()
        self.sock.setblocking(False)
        self.keeper = Keeper("/nowhere", [], (0, 0))
        self.store = self.keeper.store
        asyncio.get_running_loop().add_reader(self.sock, self._serve)
        self.kept = KeeperLink(ours)

    def _serve(self) -> None:
        received = wire.receive(self.sock)
        if received is not None:
            reply, fds = self.keeper.answer(*received)
            wire.send(self.sock, reply, fds)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock)
        self.sock.close()
        self.kept.close()
        for name in list(self.kept.entries):
            self.kept.send({"op": "drop", "name": name})
        self.store.clear()


def run(work: Coroutine[Any, Any, None]) -> None:
    before = set(os.listdir("/proc/self/fd"))
    asyncio.run(work)
    assert set(os.listdir("/proc/self/fd")) == before


def same(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


def test_entries_put_noted_and_dropped_are_recorded() -> None:
    async def work() -> None:
        peer = Peer()
        read, write = os.pipe()
        peer.kept.send({"op": "put", "name": "output:a", "meta": {"n": 1}}, [read])
        peer.kept.send({"op": "note", "name": "output:a", "meta": {"n": 2}})
        peer.kept.send({"op": "note", "name": "nobody", "meta": 3})
        ((name, (meta, (held,))),) = peer.kept.entries.items()
        assert (name, meta) == ("output:a", {"n": 2})
        assert held.fileno() != read
        assert same(held.fileno(), read)
        peer.kept.send({"op": "put", "name": "output:a"}, [write])
        (again,) = peer.kept.entries["output:a"][1]
        assert same(again.fileno(), write)
        peer.kept.send({"op": "drop", "name": "output:a"})
        assert peer.kept.entries == {}
        await peer.kept.call({"op": "list"})
        assert peer.store.page("") == []
        os.close(write)
        os.close(read)
        peer.keeper.reaper.watcher.close()
        peer.close()

    run(work())


def test_another_keeper_gets_the_entries_and_what_was_put_while_there_was_none() -> None:
    async def work() -> None:
        peer, other = Peer(), Peer()
        read, write = os.pipe()
        peer.kept.send({"op": "put", "name": "output:a", "meta": {"n": 1}}, [read])
        asyncio.get_running_loop().remove_reader(peer.sock)
        peer.sock.close()
        with pytest.raises(LinkLost):
            await peer.kept.call({"op": "list"})
        peer.kept.send({"op": "put", "name": "output:b", "meta": {"n": 2}}, [write])
        other.kept.close()
        lost: list[bool] = []
        receiver = Receiver()
        receiver.lost = lambda: lost.append(True)  # type: ignore[method-assign]
        asyncio.get_running_loop().remove_reader(other.sock)
        other.sock.close()
        ours, other.sock = wire.pair()
        asyncio.get_running_loop().add_reader(other.sock, other._serve)
        peer.kept.reconnect(ours, receiver)
        reply, _ = await peer.kept.call({"op": "list"})
        assert reply["entries"] == [["output:a", {"n": 1}], ["output:b", {"n": 2}]]
        _, (fd,) = await peer.kept.call({"op": "get", "name": "output:b"})
        assert same(fd, write)
        for each in (fd, read, write):
            os.close(each)
        for each in (peer, other):
            each.keeper.reaper.watcher.close()
            each.store.clear()
        asyncio.get_running_loop().remove_reader(other.sock)
        other.sock.close()
        while not lost:
            await asyncio.sleep(0)
        peer.kept.close()

    run(work())


def test_entries_of_an_earlier_supervisor_are_fetched_without_zygotes() -> None:
    async def work() -> None:
        peer = Peer()
        read, write = os.pipe()
        for name in ("listener:a", "zygote /usr/bin/python", "appzygote a", "lifeline"):
            peer.store.put(name, {"of": name}, [os.dup(read)])
        _, fds = await peer.kept.call({"op": "get", "name": "listener:a"})
        for fd in fds:
            os.close(fd)
        await peer.kept.complete()
        assert sorted(peer.kept.entries) == ["lifeline", "listener:a"]
        assert all(same(fds[0], read) for _, fds in peer.kept.held().values())
        os.close(read)
        os.close(write)
        peer.keeper.reaper.watcher.close()
        peer.close()

    run(work())


def test_entries_are_recorded_on_a_lost_link_too() -> None:
    async def work() -> None:
        peer = Peer()
        peer.kept.close()
        peer.kept.send({"op": "put", "name": "wanted", "meta": 1})
        assert peer.kept.entries == {"wanted": (1, [])}
        peer.keeper.reaper.watcher.close()
        peer.close()

    run(work())


def test_a_socket_is_shared_with_its_owner_and_left_out_once_it_is_closed() -> None:
    async def work() -> None:
        peer = Peer()
        ours, theirs = wire.pair()
        before = len(os.listdir("/proc/self/fd"))
        peer.kept.send({"op": "put", "name": "worker:a", "meta": 1}, [ours])
        assert len(os.listdir("/proc/self/fd")) == before
        assert peer.kept.held() == {"worker:a": (1, [ours.fileno()])}
        ours.close()
        theirs.close()
        assert peer.kept.held() == {"worker:a": (1, [])}
        await peer.kept.call({"op": "list"})
        peer.keeper.reaper.watcher.close()
        peer.close()

    run(work())
