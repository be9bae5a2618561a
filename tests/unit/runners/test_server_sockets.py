"""Listeners and adoption pairs are held here and by the keeper; a gateway releases a pair before it is closed."""

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
from poolctl.runners.local.server_sockets import AdoptionPairs, Sockets
from tests.descriptors import no_descriptor_left
from tests.ports import claim_port
from tests.unit.runners.test_local_runner import Recorder, Stage, config, run
from tests.unit.runners.test_process_link import StoringPeer
from tests.virtual_loop import VirtualLoop


def test_gateway_gets_the_pair_of_a_routed_server_and_of_no_other() -> None:
    async def work() -> None:
        stage = Stage()
        stage.pairs.open(config())
        stage.publish()
        assert stage.gateway.pairs == {}
        stage.publish(config())
        assert list(stage.gateway.pairs) == ["web"]
        stage.publish()
        assert stage.tidied == [config().key]
        await stage.pairs.close_all()
        stage.close()

    run(work())


def test_connections_that_no_worker_has_taken_from_the_pair_yet_are_counted() -> None:
    async def work() -> None:
        stage = Stage()
        assert stage.pairs.queued_connections(config().key) == 0
        stage.publish(config())
        for count in range(5):
            assert stage.pairs.queued_connections(config().key) == count
            stage.given.append(stage.pass_one())
        take = stage.pairs.take_end(config().key)
        assert take is not None
        connection_handover.receive_connection(take).close()
        assert stage.pairs.queued_connections(config().key) == 4
        stage.publish()
        await stage.pairs.close_all()
        assert stage.pairs.queued_connections(config().key) == 0
        for client in stage.given:
            client.close()
        stage.close()

    run(work())


def test_gateway_hears_of_workers_that_leave_also_from_a_server_that_has_no_route_now() -> None:
    async def work() -> None:
        stage = Stage()
        await stage.pairs.notify_gateway_of_workers_exit(config())
        stage.publish(config(name="routed"))
        await stage.pairs.notify_gateway_of_workers_exit(config())
        assert stage.gateway.left == ["routed"]
        await stage.pairs.notify_gateway_of_workers_exit(config(name="other", bind="127.0.0.1:1"))
        assert stage.gateway.left == ["routed", "other"]
        stage.gateway.let_go.set()
        await stage.pairs.close_all()
        stage.close()

    run(work())


def test_pair_is_closed_after_the_gateway_has_let_go_and_what_waits_in_it_goes_back() -> None:
    async def work() -> None:
        stage = Stage()
        stage.publish(config())
        with stage.pass_one() as client:
            closing = asyncio.ensure_future(stage.pairs.close(config().key))
            await stage.gateway.asked.wait()
            give = stage.gateway.pairs["web"]
            assert give.fileno() >= 0
            stage.gateway.let_go.set()
            await closing
            assert give.fileno() < 0
            with connection_handover.receive_connection(stage.taken_back) as taken:  # type: ignore[union-attr]
                client.sendall(b"x")
                assert taken.recv(1) == b"x"
        stage.close()

    run(work())


def test_replaced_pair_is_announced_at_once_and_the_old_one_closed_once_the_gateway_has_let_go() -> None:
    async def work() -> None:
        stage = Stage()
        stage.publish(config())
        old = stage.gateway.pairs["web"]
        stage.pairs.open(config(user="daemon"))
        await stage.gateway.asked.wait()
        assert stage.gateway.pairs["web"] is not old
        assert old.fileno() >= 0
        stage.gateway.let_go.set()
        while old.fileno() >= 0:
            await asyncio.sleep(0)
        await stage.pairs.close_all()
        stage.close()

    run(work())


def test_after_a_takeover_a_pair_is_in_use_until_the_first_table_says_otherwise() -> None:
    async def work() -> None:
        stage = Stage()
        stage.pairs.assume_gateway_passes_to_all()
        stage.pairs.open(config())
        assert stage.pairs.is_used_by_gateway(config().key)
        closing = asyncio.ensure_future(stage.pairs.close(config().key))
        await asyncio.sleep(0)
        assert not closing.done()
        stage.publish()
        await closing
        assert not stage.pairs.is_used_by_gateway(config().key)
        stage.close()

    run(work())


class Gateway(Recorder):
    """A gateway that releases each pair at once, and records them."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go.set()
        self.withdrawn: list[tuple[str, socket.socket]] = []

    async def withdraw_passing_socket(self, server: str, give: socket.socket) -> None:
        await super().withdraw_passing_socket(server, give)
        self.withdrawn.append((server, give))


class Pairs:
    """The pairs of a runner beside a keeper's store."""

    def __init__(self) -> None:
        self.peer = StoringPeer()
        self.pairs = AdoptionPairs(self.peer.kept)
        self.gateway = Gateway()
        self.give_back, self.taken_back = wire.pair()

    def route(self, *servers: ServerConfig) -> None:
        self.pairs.set_routed_servers({each.key: each.name for each in servers}, self.gateway, self.give_back)

    def stored(self) -> dict[str, Any]:
        """What the keeper has been given, by name."""
        return {name: meta for name, (meta, _) in self.peer.kept.recorded_entries().items()}

    async def close(self) -> None:
        await self.pairs.close_all()
        self.give_back.close()
        self.taken_back.close()
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
        self.sockets = Sockets(self.peer.kept)

    def entry(self, key: str) -> Any:
        """What the keeper knows of the listeners of an address."""
        return self.peer.kept.recorded_entries().get(f"listener:{key}", (None,))[0]

    async def close(self) -> None:
        await self.sockets.close_all()
        assert not self.sockets.keys()
        self.peer.keeper.reaper.close()
        self.peer.close()


def test_listener_is_opened_once_and_given_to_the_keeper_until_it_is_closed() -> None:
    server = server_at(f"127.0.0.1:{claim_port()}")

    async def work() -> None:
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

    with no_descriptor_left():
        run(work())


def test_listener_refuses_connections_once_closed_although_a_worker_holds_it() -> None:
    async def work() -> None:
        stage = Listening()
        server = server_at(f"127.0.0.1:{claim_port()}")
        await stage.sockets.open(server)
        with stage.sockets.of(server)[0].dup() as held:
            await stage.sockets.close(server.key)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(held.getsockname())
        await stage.close()

    run(work())


def test_lent_listener_is_shared_until_it_is_closed() -> None:
    async def work() -> None:
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

    run(work())


def test_listener_of_a_program_blocks() -> None:
    async def work() -> None:
        stage = Listening()
        server = program_at(f"127.0.0.1:{claim_port()}", arguments=["--fd={fd}"])
        await stage.sockets.open(server)
        assert [each.getblocking() for each in stage.sockets.of(server)] == [True]
        await stage.close()

    run(work())


def test_program_that_binds_its_address_gets_no_listener_and_needs_a_free_port() -> None:
    async def work() -> None:
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

    run(work())


def test_server_without_an_address_has_no_listener() -> None:
    async def work() -> None:
        stage = Listening()
        server = ServerConfig(name="job", command=["true"])
        await stage.sockets.open(server)
        assert stage.sockets.keys() == set()
        await stage.close()

    run(work())


def test_path_of_a_unix_socket_is_removed_also_after_an_adoption() -> None:
    async def work(directory: str) -> None:
        stage = Listening()
        server = server_at(f"unix:{directory}/web.sock")
        await stage.sockets.open(server)
        successor = Sockets(stage.peer.kept)
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

    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        run(work(directory))


def test_adopted_listener_counts_as_shared_unless_the_keeper_says_otherwise() -> None:
    async def work() -> None:
        stage = Listening()
        for meta, shared in (({}, True), ({"shared": True}, True), ({"shared": False}, False)):
            server = server_at(f"127.0.0.1:{claim_port()}")
            with socket.create_server(("127.0.0.1", server.address.port or 0)) as listener:
                stage.sockets.adopt(server.key, meta, [os.dup(listener.fileno())])
            assert stage.sockets.shared(server.key) == shared
        await stage.close()

    run(work())


def test_inherited_listener_is_shared_and_returned_unchanged(tmp_path: Path) -> None:
    async def work() -> None:
        stage = Listening()
        server = server_at("fd:web")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            assert stage.sockets.shared(server.key)
            stage.sockets.adopt(server.key, {"shared": False}, [os.dup(listener.fileno())])
            await stage.sockets.close(server.key)
            socket.create_connection(listener.getsockname(), timeout=60).close()
        await stage.close()

    run(work())


# Adoption pairs.


def test_pair_is_kept_for_equal_connections_and_replaced_for_another_user_or_tls(tmp_path: Path) -> None:
    async def work() -> None:
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

    with no_descriptor_left():
        run(work())


def test_program_gets_no_pair() -> None:
    async def work() -> None:
        stage = Pairs()
        program = program_at("127.0.0.1:8080")
        stage.pairs.open(program)
        assert stage.pairs.get_or_open(program) == ()
        assert stage.stored() == {}
        await stage.close()

    run(work())


def test_connection_waits_in_the_pair_until_the_pair_is_full() -> None:
    async def work() -> None:
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

    run(work())


def test_emptied_pair_has_closed_its_connections_and_takes_others() -> None:
    async def work() -> None:
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

    with no_descriptor_left():
        run(work())


def test_message_in_a_pair_that_is_no_connection_does_not_reach_the_gateway() -> None:
    async def work() -> None:
        stage = Pairs()
        key = config().key
        stage.pairs.return_to_gateway(key)
        give, _ = stage.pairs.get_or_open(config())
        stage.route(config())
        give.send(b"no message at all")
        with connection() as (odd, theirs):
            wire.send(give, {"t": "odd"}, [theirs.fileno()])
            theirs.close()
            client = give_one(stage.pairs, key)
            stage.pairs.return_to_gateway(key)
            assert is_closed(odd)
        stage.taken_back.setblocking(False)
        taken = connection_handover.receive_connection(stage.taken_back)
        with taken, client:  # type: ignore[union-attr]
            client.sendall(b"x")
            taken.setblocking(True)  # type: ignore[union-attr]
            assert taken.recv(1) == b"x"  # type: ignore[union-attr]
        with pytest.raises(BlockingIOError):
            wire.receive(stage.taken_back)
        await stage.close()

    with no_descriptor_left():
        run(work())


def test_hidden_pair_is_withdrawn_from_the_gateway_once_and_given_again_when_shown() -> None:
    async def work() -> None:
        stage = Pairs()
        server, key = config(), config().key
        stage.pairs.open(server)
        stage.route(server)
        stage.pairs.allow_gateway_passing(key)
        give = stage.gateway.pairs.pop("web")
        assert not stage.pairs.is_passing_forbidden(key)
        stage.pairs.forbid_gateway_passing(key)
        stage.pairs.forbid_gateway_passing(key)
        assert stage.pairs.is_passing_forbidden(key)
        while not stage.gateway.withdrawn:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert stage.gateway.withdrawn == [("web", give)]
        stage.pairs.open(config(user="daemon"))
        assert stage.gateway.pairs == {}, "a later pair is withheld too"
        stage.pairs.allow_gateway_passing(key)
        assert not stage.pairs.is_passing_forbidden(key)
        assert stage.gateway.pairs == {"web": stage.pairs.get_or_open(config(user="daemon"))[0]}
        await stage.close()

    run(work())


def test_pair_of_a_server_without_a_route_is_not_shown() -> None:
    async def work() -> None:
        stage = Pairs()
        key = config().key
        stage.pairs.open(config())
        stage.pairs.allow_gateway_passing(key)
        stage.route()
        stage.pairs.allow_gateway_passing(key)
        stage.route(config())
        stage.pairs.allow_gateway_passing("127.0.0.1:1")
        assert stage.gateway.pairs == {}
        stage.pairs.allow_gateway_passing(key)
        stage.route()  # the gateway has withdrawn it itself
        stage.pairs.forbid_gateway_passing(key)
        await stage.pairs.close(key)
        assert stage.gateway.withdrawn == []
        await stage.close()

    run(work())


def test_dropped_pair_is_closed_here_and_in_the_keeper_and_made_again_when_needed() -> None:
    async def work() -> None:
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

    with no_descriptor_left():
        run(work())


def test_adopted_pair_is_the_servers() -> None:
    async def work() -> None:
        stage = Pairs()
        give, take = wire.pair()
        ends = stage.pairs.adopt(config().key, {"protocol": "plain"}, [give.detach(), take.detach()])
        assert list(stage.pairs.get_or_open(config())) == ends
        assert stage.pairs.take_end(config().key) is ends[1]
        with give_one(stage.pairs, config().key):
            assert stage.pairs.queued_connections(config().key) == 1
        await stage.close()

    with no_descriptor_left():
        run(work())


def test_gateway_of_an_earlier_supervisor_counts_as_gone_after_two_seconds_without_a_table() -> None:
    async def work() -> None:
        stage = Pairs()
        loop = asyncio.get_running_loop()
        stage.pairs.open(config())
        stage.pairs.assume_gateway_passes_to_all()
        await stage.pairs.notify_gateway_of_workers_exit(config())
        assert loop.time() == 2.0
        await stage.pairs.close(config().key)
        assert loop.time() == 2.0
        await stage.close()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work())
