"""Workers as processes: placed, serving, replaced and ended; those of routed servers get the routes."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast

import pytest

from poolctl import ServerConfig, __version__
from poolctl.errors import ServerError
from poolctl.keeper import fd_store, wire
from poolctl.runners.embedded_runner import ProcessRunner
from poolctl.runners.helper_process import Helpers
from poolctl.runners.local.forking import RunnerContext
from poolctl.runners.local.local_runner import LocalRunner, RoutePublisher
from poolctl.runners.local.local_worker import LocalWorker, RunnerWorkers
from poolctl.runners.local.server_sockets import WorkerRoutes
from poolctl.runners.local.takeover import AdoptionResult
from poolctl.runners.local.tally_page import Tally
from poolctl.runners.process_link import Descriptor
from poolctl.runners.runner_protocol import Placement, RunnerEventHandler, WorkerFailed
from poolctl.runners.withheld_variables import withheld_variables
from poolctl.worker import tally
from tests.certificates import certificate
from tests.unit.runners.real_runner import fetch, kept, served
from tests.unit.runners.test_local_worker import worker
from tests.unit.runners.test_process_link import StoringPeer


def config(**keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": "web", "bind": "127.0.0.1:8080", "app": "web:app"} | keys)


class Recorder:
    """A gateway that notes the servers whose workers leave."""

    def __init__(self) -> None:
        self.left: list[str] = []

    async def announce_workers_exit(self, server: str) -> None:
        self.left.append(server)


class Stage:
    """The workers of a runner, and the routes that are published to them."""

    def __init__(self) -> None:
        self.workers = RunnerWorkers()
        self.routed = RoutePublisher(self.workers)
        self.gateway = Recorder()
        self.table = Descriptor(os.memfd_create("routes"))
        self.links: list[socket.socket] = []

    def publish(self, *servers: ServerConfig) -> None:
        names = [each.name for each in servers]
        routes = WorkerRoutes(
            dict.fromkeys(names, self.table), dict.fromkeys(names, "secret"), ("10.0.0.0/8",)
        )
        self.routed.publish(names, routes, self.gateway)

    def add_worker(self) -> tuple[LocalWorker, socket.socket]:
        """A worker that has not begun yet, and the other end of its control socket."""
        ours, theirs = wire.pair()
        made = worker(control=ours)
        self.workers.add(made)
        self.links += [ours, theirs]
        return made, theirs

    def close(self) -> None:
        self.table.close()
        for link in self.links:
            link.close()


def orders(sock: socket.socket) -> list[tuple[wire.Message, int]]:
    """The orders that have arrived, each with the number of its descriptors."""
    found = []
    while True:
        try:
            message, fds = wire.receive(sock) or ({}, [])
        except BlockingIOError:
            return found
        found.append((message, len(fds)))
        for fd in fds:
            wire.close_with_unread_descriptors(fd)


ROUTES = {"order": "routes", "key": "secret", "trusted": ["10.0.0.0/8"]}


async def test_workers_of_routed_servers_get_their_routes_after_they_begin_and_each_later_time() -> None:
    stage = Stage()
    made, theirs = stage.add_worker()
    stage.publish(config())
    assert orders(theirs) == []
    made.order_to_begin()
    assert orders(theirs) == [({"order": "go"}, 0), (ROUTES, 1)]
    stage.publish(config())
    assert orders(theirs) == [(ROUTES, 1)]
    # One whose server has lost its routes forgets them.
    stage.publish()
    assert orders(theirs) == [({"order": "routes"}, 0)]
    stage.close()


async def test_worker_that_begins_later_gets_the_routes_of_its_server() -> None:
    stage = Stage()
    stage.publish(config())
    made, theirs = stage.add_worker()
    stage.routed.send_routes(made)
    made.order_to_begin()
    assert orders(theirs) == [({"order": "go"}, 0), (ROUTES, 1)]
    stage.close()


async def test_worker_of_a_server_without_a_route_gets_nothing_and_its_exit_is_not_announced() -> None:
    stage = Stage()
    made, theirs = stage.add_worker()
    made.order_to_begin()
    stage.publish()
    assert orders(theirs) == [({"order": "go"}, 0)]
    await stage.routed.announce_exit(made)
    assert stage.gateway.left == []
    stage.close()


async def test_gateway_hears_of_workers_that_leave_also_from_a_server_that_has_no_route_now() -> None:
    stage = Stage()
    made, _ = stage.add_worker()
    await stage.routed.announce_exit(made)
    assert stage.gateway.left == []
    stage.publish(config())
    await stage.routed.announce_exit(made)
    stage.publish()
    await stage.routed.announce_exit(made)
    assert stage.gateway.left == ["web", "web"]
    stage.close()


class Told:
    """The events that the runner has reported."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *values: self.events.append((name, *values))


class Adopting:
    """A runner whose keeper is this process; the test has the other ends of its logger, a zygote and a worker."""

    def __init__(self, directory: Path) -> None:
        self.peer = StoringPeer()
        self.told = Told()
        self.logger = self.put(fd_store.LOGGER, {"pid": 1 << 23, "start": 1, "mark": __version__})
        site = RunnerContext(
            keeper=self.peer.kept,
            keeper_pid=0,
            helpers=Helpers(self.peer.kept, str(directory)),
            open_files=(1024, 4096),
            directory=str(directory),
            logs_directory=str(directory),
            environments={},
        )
        self.runner = LocalRunner(site)
        self.runner.events = cast(RunnerEventHandler, self.told)

    def put(self, name: str, meta: Any) -> socket.socket:
        """The test's end of a link that the keeper holds."""
        ours, theirs = wire.pair()
        with ours:
            self.peer.kept.send({"op": "put", "name": name, "meta": meta}, [ours.fileno()])
        return theirs

    def put_worker(self, server: ServerConfig) -> socket.socket:
        """The control socket of a worker with pid 7 of an earlier supervisor."""
        facts = {
            "server": server.name, "key": server.key, "generation": 3, "index": 1, "pid": 7, "start": None,
            "ready_at": 1.5, "output": "web.1", "protocol": "plain", "notify": None, "place": None,
        }  # fmt: skip
        return self.put(f"worker:{server.name}.3.1", facts)

    async def close(self) -> None:
        # Only now, because the logger has to stay until no output is read.
        for pid in self.runner.pids:
            self.runner.handle_exit_report({"pid": pid, "status": 0, "sequence": 9})
        await self.runner.aclose()
        self.logger.close()
        self.peer.keeper.reaper.close()
        self.peer.close()


@contextlib.asynccontextmanager
async def adopting(directory: Path) -> AsyncIterator[Adopting]:
    it = Adopting(directory)
    yield it
    await it.close()


@pytest.fixture
def it(descriptors_closed: None, tmp_path: Path) -> AbstractAsyncContextManager[Adopting]:
    return adopting(tmp_path)


async def test_listeners_pairs_counts_output_and_zygotes_are_adopted_and_those_of_no_server_are_closed(
    it: Adopting, tmp_path: Path
) -> None:
    (tmp_path / "web.log").write_text("hello\n")

    kept = it.peer.kept
    servers = []
    for name in ("web", "gone"):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = config(name=name, bind=f"127.0.0.1:{listener.getsockname()[1]}")
            entry = {"op": "put", "name": f"listener:{server.key}", "meta": {"server": name}}
            kept.send(entry, [listener.fileno()])
        give, take = wire.pair()
        with give, take:
            meta = {"server": name, "protocol": "plain"}
            entry = {"op": "put", "name": f"adoption:{server.key}", "meta": meta}
            kept.send(entry, [give.fileno(), take.fileno()])
        servers.append(server)
    fd = tally.create_tally_page()
    tally.map_page(fd)[tally.STARTED] = 3
    kept.send({"op": "put", "name": "tally:web.1.0:5", "meta": {"server": "web"}}, [fd])
    os.close(fd)
    read, write = os.pipe()
    pipe = {"t": "add", "id": "web.1", "name": "web", "path": str(tmp_path / "web.log"), "pid": 7}
    kept.send({"op": "put", "name": "output:web.1", "meta": pipe}, [read])
    os.close(read)
    zygote = it.put(f"zygote {sys.executable}", {"without": withheld_variables(), "pid": 0, "start": None})
    web, gone = servers
    adopted = await it.runner.adopt_workers_and_end_others({"web": web})
    assert adopted == AdoptionResult([], {}, {web.key: (web.bind,)})
    ((kind, *ended, counts),) = it.told.events
    assert (kind, ended, counts[tally.STARTED]) == ("add_up_counts", ["web", "web.1.0:5"], 3)
    assert await it.runner.logs("web", 5) == ["hello"]
    assert (pipe, 1) in orders(it.logger)
    assert it.runner.adoptions.handover_group(web.key) == "plain"
    assert [name for name in kept.entries if gone.key in name] == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((gone.address.host, gone.address.port))
    while (sent := orders(zygote)) == []:
        await asyncio.sleep(0)
    assert sent == [({"op": "ping"}, 0)]
    zygote.close()
    os.close(write)


@pytest.mark.parametrize(
    ("status", "message"), [(3, "exited with status 3"), (0, "ended between two supervisors")]
)
async def test_worker_whose_exit_was_reported_before_it_was_adopted_has_that_exit(
    it: Adopting, status: int, message: str
) -> None:
    it.put(f"zygote {sys.executable}", {"without": withheld_variables(), "pid": 0, "start": None}).close()
    end = it.put_worker(config())
    it.runner.handle_exit_report({"pid": 7, "status": status, "sequence": 1})
    (found,) = (await it.runner.adopt_workers_and_end_others({"web": config()})).workers
    assert (found.placement.id, found.placement.pid) == ("web.3.1", 7)
    assert (await it.runner.wait_for_exit(found.placement)).message == message
    end.close()


@pytest.mark.parametrize(
    ("order", "is_announced"),
    [
        (lambda runner, worker: runner.stop(worker, 60), True),
        (lambda runner, worker: runner.stop(worker, 60, replaced=True), False),
        (lambda runner, worker: runner.stop(worker, 0), False),
        (lambda runner, worker: runner.stop(worker, 0, replaced=True), False),
        (lambda runner, worker: runner.begin_drain(worker, replaced=False), True),
        (lambda runner, worker: runner.begin_drain(worker), False),
    ],
)
async def test_gateway_is_told_before_a_worker_that_is_not_replaced_is_stopped_in_good_time(
    it: Adopting, order: Callable[[LocalRunner, Placement], Coroutine[Any, Any, object]], is_announced: bool
) -> None:
    it.put(f"zygote {sys.executable}", {"without": withheld_variables(), "pid": 0, "start": None}).close()
    end = it.put_worker(config())
    it.runner.handle_exit_report({"pid": 7, "status": 0, "sequence": 1})
    (found,) = (await it.runner.adopt_workers_and_end_others({"web": config()})).workers
    gateway = Recorder()
    it.runner.routing.publish(["web"], WorkerRoutes({}, {}), gateway)
    await order(it.runner, found.placement)
    assert gateway.left == ["web"] * is_announced
    end.close()


async def test_adopted_worker_gets_the_orders_of_its_server(it: Adopting, tmp_path: Path) -> None:
    server = config(tls=dict(zip(("cert", "key"), map(str, certificate(tmp_path)), strict=True)))

    it.put(f"zygote {sys.executable}", {"without": withheld_variables(), "pid": 0, "start": None}).close()
    end = it.put_worker(server)
    wire.send(end, {"event": "ready", "leaving": False, "resting": ""})
    (found,) = (await it.runner.adopt_workers_and_end_others({"web": server})).workers
    assert orders(end) == [({"order": "go"}, 0), ({"order": "report"}, 0)]
    assert found.ready_at == 1.5, "as it was recorded"
    await it.runner.wait_for_begin_or_exit(found.placement)
    it.runner.watch_idleness(found.placement, 5.0)
    for yes in (False, True):
        await it.runner.set_in_rotation(found.placement, yes)
        await it.runner.set_accepting(found.placement, yes)
    await it.runner.reload_tls(found.placement, server)
    sent = [(message["order"], count) for message, count in orders(end)]
    assert sent == [("idle", 0), ("out", 0), ("rest", 0), ("in", 0), ("work", 0), ("tls", 2)]
    wire.send(end, {"event": "idle"})
    while not it.told.events:
        await asyncio.sleep(0)
    assert it.told.events == [("idle_changed", found.placement, True)]
    end.close()


async def test_runner_passes_on_what_its_logger_and_its_workers_pages_report(
    it: Adopting, tmp_path: Path
) -> None:
    key, write = it.runner.output.create_pipe(config())
    os.close(write)
    it.runner.output.received({"t": "dropped", "id": key, "bytes": 3, "error": "disk full"}, [])
    fd = tally.create_tally_page()
    tally.map_page(fd)[tally.STARTED] = 1
    it.runner.tallies.collect_final_counts("web", "web.1.0", Tally(fd))
    lost, counted = it.told.events
    assert lost == ("output_lost", "web", 3, str(tmp_path / "web.log"), "disk full")
    assert counted[:3] == ("add_up_counts", "web", "web.1.0")


# The runner over a real keeper and real workers.


def names(entries: dict[str, Any]) -> set[str]:
    """The kinds of the entries in the keeper's store that belong to a server."""
    kinds = {name.partition(":")[0] for name in entries}
    return kinds & {"listener", "adoption", "worker", "output", "tally", "held-connection"}


async def test_orders_to_a_worker_that_has_exited_have_no_effect(runner: ProcessRunner) -> None:
    placement = Placement.of("web", 1, 0)
    runner.watch_idleness(placement, 5.0)
    await runner.wait_for_begin_or_exit(placement)
    await runner.set_in_rotation(placement, False)
    await runner.set_accepting(placement, False)
    await runner.begin_drain(placement)
    await runner.drain(placement)
    await runner.reload_tls(placement, served())
    with pytest.raises(WorkerFailed, match="has ended before"):
        await runner.wait_until_ready(placement)
    assert (await runner.stop(placement, 5.0)).message == "has ended before"
    assert (await runner.wait_for_exit(placement)).message == "has ended before"
    with pytest.raises(ConnectionRefusedError, match="has exited"):
        await runner.connect_for_probe(placement, "http", plain=True)


async def keep_alive(server: ServerConfig) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(server.address.host, server.address.port)
    return reader, writer


@pytest.mark.slow
async def test_sleeping_server_needs_no_pair_until_it_has_a_worker_and_wakes_at_a_request(
    runner: ProcessRunner,
) -> None:
    server = served(scale={"min": 0})
    await runner.open(server)
    assert names(await kept(runner)) == {"listener"}
    woken = asyncio.Event()
    runner.arm(server, woken.set)
    asking = asyncio.ensure_future(fetch(server, "/pid"))
    await woken.wait()
    runner.disarm(server.key)
    placement = await runner.place(server, 1, 0)
    await runner.wait_until_ready(placement)
    assert await asking == str(placement.pid)


async def test_server_that_is_watched_again_is_woken_again_and_its_waiting_clients_may_be_dismissed(
    runner: ProcessRunner,
) -> None:
    server = served(scale={"min": 0})
    await runner.open(server)
    for _ in range(2):
        woken = asyncio.Event()
        runner.arm(server, woken.set)
        asking = asyncio.ensure_future(fetch(server))
        await woken.wait()
        runner.close_waiting(server.key)
        with pytest.raises((OSError, http.client.HTTPException)):
            await asking


async def test_connections_that_no_worker_has_accepted_are_counted(runner: ProcessRunner) -> None:
    server = served()
    await runner.open(server)
    assert runner.queued_connections(server) == 0
    with socket.create_connection((server.address.host, server.address.port)):
        while runner.queued_connections(server) != 1:
            await asyncio.sleep(0.01)
    assert runner.queued_connections(served(name="other")) == 0


@pytest.mark.slow
async def test_process_that_a_zygote_cannot_have_forked_counts_as_never_started(
    runner: ProcessRunner,
) -> None:
    server = served(preload=True)
    await runner.open(server)
    runner.children.keeper_pid = os.getpid()  # the worker is no child of this process
    placement = await runner.place(server, 1, 0)
    assert (await runner.wait_for_exit(placement)).message.startswith("was never started")
    while runner.app_zygotes.processes:
        await asyncio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"python": "/nowhere/python"}, "/nowhere/python"),
        ({"user": "no-such-user-of-poolctl"}, "no-such-user-of-poolctl"),
        ({"tls": {"cert": "/nowhere/cert", "key": "/nowhere/key"}}, "/nowhere/cert"),
        ({"command": ["no-such-program-of-poolctl"]}, "no-such-program-of-poolctl"),
    ],
)
async def test_check_of_a_server_whose_worker_could_not_be_forked_names_what_is_missing(
    runner: ProcessRunner, keys: dict[str, Any], named: str
) -> None:
    await runner.check_startable(served())
    with pytest.raises((ServerError, WorkerFailed)) as caught:
        await runner.check_startable(served(**keys))
    assert named in f"{caught.value} {caught.value.hint}"
