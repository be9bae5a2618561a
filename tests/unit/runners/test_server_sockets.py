"""Listeners and adoption pairs are held here and by the keeper."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.errors import ServerError
from poolctl.keeper import connection_handover, wire
from poolctl.keeper.connection_handover import Connection
from poolctl.runners.listener_opener import Opener
from poolctl.runners.local.server_sockets import AdoptionPairs, Sockets
from tests.ports import claim_port
from tests.unit.runners.test_local_runner import config
from tests.unit.runners.test_process_link import StoringPeer


async def test_connections_that_no_worker_has_taken_from_the_pair_yet_are_counted() -> None:
    stage = Pairs()
    key = config().key
    assert stage.pairs.queued_connections(key) == 0
    stage.pairs.open(config())
    clients = []
    for count in range(5):
        assert stage.pairs.queued_connections(key) == count
        clients.append(give_one(stage.pairs, key))
    take = stage.pairs.take_end(key)
    assert take is not None
    connection_handover.receive_connection(take).close()  # type: ignore[union-attr]
    assert stage.pairs.queued_connections(key) == 4
    await stage.pairs.close_all()
    assert stage.pairs.queued_connections(key) == 0
    for client in clients:
        client.close()
    await stage.close()


class Pairs:
    """The pairs of a runner beside a keeper's store."""

    def __init__(self) -> None:
        self.peer = StoringPeer()
        self.pairs = AdoptionPairs(self.peer.kept)

    def stored(self) -> dict[str, Any]:
        """What the keeper has been given, by name."""
        return {name: meta for name, (meta, _) in self.peer.kept.recorded_entries().items()}

    async def close(self) -> None:
        await self.pairs.close_all()
        self.peer.keeper.reaper.close()
        self.peer.close()


@contextlib.contextmanager
def connection() -> Iterator[tuple[socket.socket, Connection]]:
    """The ends of a connection: the client's, and the accepted one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), timeout=60)
        accepted, _ = listener.accept()
    with ours, Connection(fileno=accepted.detach()) as theirs:
        yield ours, theirs


def give_one(pairs: AdoptionPairs, key: str) -> socket.socket:
    """The client's end of a connection that waits in the pair now."""
    with connection() as (ours, theirs):
        assert pairs.give(key, theirs)
        return socket.socket(fileno=ours.detach())


def is_closed(client: socket.socket) -> bool:
    """Whether the other end of the connection is closed, within a moment."""
    client.settimeout(60)
    with client:
        return client.recv(1) == b""


def server_at(bind: str, **keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": "web", "bind": bind, "app": "web:app"} | keys)


def program_at(bind: str, **keys: Any) -> ServerConfig:
    return server_at(bind, app=None, command=["program", *keys.pop("arguments", [])], **keys)


class Listening:
    """The listeners of a runner beside a keeper's store."""

    def __init__(self) -> None:
        self.peer = StoringPeer()
        self.sockets = Sockets(self.peer.kept, Opener())

    def entry(self, key: str) -> Any:
        """What the keeper knows of the listeners of an address."""
        return self.peer.kept.recorded_entries().get(f"listener:{key}", (None,))[0]

    async def close(self) -> None:
        await self.sockets.close_all()
        assert not self.sockets.keys()
        self.peer.keeper.reaper.close()
        self.peer.close()


async def test_listener_is_opened_once_and_given_to_the_keeper_until_it_is_closed(
    descriptors_closed: None,
) -> None:
    server = server_at(f"127.0.0.1:{claim_port()}")

    stage = Listening()
    key = server.key
    assert (stage.sockets.of(server), stage.sockets.endpoints(key)) == ([], [])
    await stage.sockets.open(server)
    await stage.sockets.open(server)
    (listener,) = stage.sockets.of(server)
    assert not listener.getblocking()
    assert stage.sockets.keys() == {key}
    assert stage.sockets.endpoints(key) == [server.bind]
    assert stage.entry(key) == {"server": "web", "shared": False}
    await stage.sockets.close(key)
    assert stage.entry(key) is None
    assert stage.sockets.of(server) == []
    await stage.sockets.close(key)
    await stage.close()


async def test_listener_refuses_connections_once_closed_although_a_worker_holds_it() -> None:
    stage = Listening()
    server = server_at(f"127.0.0.1:{claim_port()}")
    await stage.sockets.open(server)
    with stage.sockets.of(server)[0].dup() as held:
        await stage.sockets.close(server.key)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(held.getsockname())
    await stage.close()


async def test_lent_listener_is_shared_until_it_is_closed() -> None:
    stage = Listening()
    server = server_at(f"127.0.0.1:{claim_port()}")
    assert stage.sockets.share_with_worker(server) == []
    assert not stage.sockets.shared(server.key)
    await stage.sockets.open(server)
    assert not stage.sockets.shared(server.key)
    assert stage.sockets.share_with_worker(server) == stage.sockets.of(server) != []
    assert stage.sockets.shared(server.key)
    assert stage.entry(server.key) == {"server": "web", "shared": True}
    await stage.sockets.close(server.key)
    await stage.sockets.open(server)
    assert not stage.sockets.shared(server.key)
    await stage.close()


async def test_listener_of_a_program_blocks() -> None:
    stage = Listening()
    server = program_at(f"127.0.0.1:{claim_port()}", arguments=["--fd={fd}"])
    await stage.sockets.open(server)
    assert [each.getblocking() for each in stage.sockets.of(server)] == [True]
    await stage.close()


async def test_program_that_binds_its_address_gets_no_listener_and_needs_a_free_port() -> None:
    stage = Listening()
    server = program_at(f"127.0.0.1:{claim_port()}", arguments=["{port}"])
    assert server.binds_itself
    await stage.sockets.open(server)
    assert stage.sockets.keys() == set()
    with socket.create_server(("127.0.0.1", server.address.port or 0)):
        with pytest.raises(ServerError, match="in use") as caught:
            await stage.sockets.open(server)
        assert (caught.value.name, caught.value.bind) == ("web", server.bind)
        with pytest.raises(ServerError, match="in use"):
            await stage.sockets.open(server_at(server.bind))
    await stage.close()


async def test_address_that_is_widened_twice_before_the_first_is_released_is_bound_once() -> None:
    stage, port = Listening(), claim_port()
    narrow, wide, both = (server_at(f"{host}:{port}") for host in ("127.0.0.1", "0.0.0.0", ""))
    await stage.sockets.open(narrow)
    await stage.sockets.open(wide, [narrow.key])
    await stage.sockets.open(both, [narrow.key])
    assert stage.sockets.endpoints(both.key) == [f"0.0.0.0:{port}", f"[::]:{port}"]
    for host in ("127.0.0.2", "::1"):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port))
    await stage.sockets.close(narrow.key)
    for host in ("127.0.0.2", "::1"):
        socket.create_connection((host, port)).close()
    await stage.close()


async def test_address_that_is_narrowed_before_the_one_beside_it_is_released_listens_then() -> None:
    stage, port = Listening(), claim_port()
    narrow, wide, both = (server_at(f"{host}:{port}") for host in ("127.0.0.1", "0.0.0.0", ""))
    await stage.sockets.open(narrow)
    await stage.sockets.open(both, [narrow.key])
    stage.sockets.close_unneeded(wide)
    assert stage.sockets.endpoints(wide.key) == [f"0.0.0.0:{port}"]
    await stage.sockets.close(narrow.key)
    socket.create_connection(("127.0.0.2", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("::1", port))
    await stage.close()


async def test_adopted_listener_is_lost_alone_if_it_does_not_listen_yet_and_another_process_does() -> None:
    stage = Listening()
    ports, bound = (claim_port(), claim_port()), []
    for port in ports:
        bound.append(sock := socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", ports[0])):
        for port, sock in zip(ports, bound, strict=True):
            stage.sockets.adopt(f"127.0.0.1:{port}", {"server": "web", "shared": False}, [sock.detach()])
        await stage.sockets.adopt_bound()
    assert stage.sockets.keys() == {f"127.0.0.1:{ports[1]}"}
    socket.create_connection(("127.0.0.1", ports[1])).close()
    await stage.close()


async def test_server_without_an_address_has_no_listener() -> None:
    stage = Listening()
    server = ServerConfig(name="job", command=["true"])
    await stage.sockets.open(server)
    assert stage.sockets.keys() == set()
    await stage.close()


async def test_path_of_a_unix_socket_is_removed_also_after_an_adoption() -> None:
    with tempfile.TemporaryDirectory() as directory:
        stage = Listening()
        server = server_at(f"unix:{directory}/web.sock")
        await stage.sockets.open(server)
        successor = Sockets(stage.peer.kept, Opener())
        fds = [os.dup(each.fileno()) for each in stage.sockets.of(server)]
        (adopted,) = successor.adopt(server.key, {"server": "web", "shared": False}, fds)
        assert successor.of(server) == [adopted]
        assert not successor.shared(server.key)
        assert os.listdir(directory) == ["web.sock"]
        await successor.close(server.key)
        assert os.listdir(directory) == []
        await stage.sockets.close(server.key)
        await stage.sockets.open(server)
        await stage.sockets.close(server.key)
        assert os.listdir(directory) == []
        await stage.close()


async def test_adopted_listener_counts_as_shared_unless_the_keeper_says_otherwise() -> None:
    stage = Listening()
    for meta, shared in (({}, True), ({"shared": True}, True), ({"shared": False}, False)):
        server = server_at(f"127.0.0.1:{claim_port()}")
        with socket.create_server(("127.0.0.1", server.address.port or 0)) as listener:
            stage.sockets.adopt(server.key, meta, [os.dup(listener.fileno())])
        assert stage.sockets.shared(server.key) == shared
    await stage.close()


async def test_inherited_listener_is_shared_and_returned_unchanged(tmp_path: Path) -> None:
    stage = Listening()
    server = server_at("fd:web")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert stage.sockets.shared(server.key)
        stage.sockets.adopt(server.key, {"shared": False}, [os.dup(listener.fileno())])
        await stage.sockets.close(server.key)
        socket.create_connection(listener.getsockname(), timeout=60).close()
    await stage.close()


# Adoption pairs.


async def test_pair_is_kept_for_equal_connections_and_replaced_for_another_user_or_tls(
    tmp_path: Path, descriptors_closed: None
) -> None:
    stage = Pairs()
    key = config().key
    assert (stage.pairs.handover_group(key), stage.pairs.take_end(key)) == (None, None)
    give, take = stage.pairs.get_or_open(config())
    assert (give.getblocking(), take.getblocking()) == (False, False)
    assert stage.pairs.get_or_open(config(workers=2)) == (give, take)
    assert stage.pairs.take_end(key) is take
    assert stage.stored() == {f"adoption:{key}": {"server": "web", "protocol": "plain"}}
    other = stage.pairs.get_or_open(config(user="daemon"))
    assert other != (give, take)
    assert stage.pairs.handover_group(key) == "plain daemon"
    tls = config(tls={"cert": str(tmp_path / "cert"), "key": str(tmp_path / "key")})
    assert stage.pairs.get_or_open(tls) != other
    assert stage.pairs.handover_group(key) == "tls"
    while give.fileno() >= 0 or other[0].fileno() >= 0:
        await asyncio.sleep(0)
    await stage.close()


async def test_program_gets_no_pair() -> None:
    stage = Pairs()
    program = program_at("127.0.0.1:8080")
    stage.pairs.open(program)
    assert stage.pairs.get_or_open(program) == ()
    assert stage.stored() == {}
    await stage.close()


async def test_connection_waits_in_the_pair_until_the_pair_is_full() -> None:
    stage = Pairs()
    key = config().key
    with connection() as (ours, theirs):
        assert not stage.pairs.give(key, theirs), "there is no pair"
        stage.pairs.open(config())
        given = 0
        while stage.pairs.give(key, theirs):
            given += 1
        assert given > 10
        assert theirs.fileno() >= 0
        theirs.close()
        taken = connection_handover.receive_connection(stage.pairs.take_end(key))  # type: ignore[arg-type]
        with taken:
            ours.sendall(b"x")
            taken.setblocking(True)
            assert taken.recv(1) == b"x"
        stage.pairs.close_queued(key)
        assert stage.pairs.queued_connections(key) == 0
    await stage.close()


async def test_emptied_pair_has_closed_its_connections_and_takes_others(descriptors_closed: None) -> None:
    stage = Pairs()
    key = config().key
    stage.pairs.close_queued(key)
    stage.pairs.open(config())
    clients = [give_one(stage.pairs, key) for _ in range(3)]
    stage.pairs.close_queued(key)
    assert all(map(is_closed, clients))
    last = give_one(stage.pairs, key)
    assert stage.pairs.queued_connections(key) == 1
    await stage.pairs.close(key)
    assert is_closed(last), "a pair is closed with the connections in it"
    await stage.close()


async def test_dropped_pair_is_closed_here_and_in_the_keeper_and_made_again_when_needed(
    descriptors_closed: None,
) -> None:
    stage = Pairs()
    key = config().key
    before = stage.pairs.get_or_open(config())
    stage.pairs.close_pair(key)
    assert [end.fileno() for end in before] == [-1, -1]
    assert stage.stored() == {}
    stage.pairs.close_pair(key)
    assert stage.pairs.get_or_open(config()) != before
    assert list(stage.stored()) == [f"adoption:{key}"]
    await stage.pairs.close(key)
    assert stage.stored() == {}
    await stage.close()


async def test_message_in_a_pair_that_is_no_connection_is_closed_with_the_pair(
    descriptors_closed: None,
) -> None:
    stage = Pairs()
    give, _ = stage.pairs.get_or_open(config())
    give.send(b"no message at all")
    with connection() as (odd, theirs):
        wire.send(give, {"t": "odd"}, [theirs.fileno()])
        theirs.close()
        client = give_one(stage.pairs, config().key)
        stage.pairs.close_queued(config().key)
        assert is_closed(odd)
        assert is_closed(client)
    await stage.close()


async def test_adopted_pair_is_the_servers(descriptors_closed: None) -> None:
    stage = Pairs()
    give, take = wire.pair()
    ends = stage.pairs.adopt(config().key, {"protocol": "plain"}, [give.detach(), take.detach()])
    assert list(stage.pairs.get_or_open(config())) == ends
    assert stage.pairs.take_end(config().key) is ends[1]
    with give_one(stage.pairs, config().key):
        assert stage.pairs.queued_connections(config().key) == 1
    await stage.close()
