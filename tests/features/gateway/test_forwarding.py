"""The forwarder as the supervisor runs it: a process, its orders, and its successors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from poolctl.features.gateway.forwarder.waiting import AwaitedTarget
from poolctl.features.gateway.supervision.forwarding import FORWARDER, Forwarding, Order, WaitingListeners
from poolctl.json_form import to_json
from poolctl.runners.helper_process import Helpers
from poolctl.runners.process_link import Link
from tests.asyncio_server import listening
from tests.deadline import until
from tests.descriptors import run
from tests.helper_keeper import ExecutingKeeper, HelperKeeper
from tests.processes import is_alive

KEY = "http://vm:80"


class Environment:
    """What the forwarder's owner uses of the supervisor."""

    def __init__(self, keeper: HelperKeeper, directory: str) -> None:
        self.keeper, self.directory = cast(Link, keeper), directory
        self.helpers = Helpers(self.keeper, directory)


class Events:
    def __init__(self) -> None:
        self.recorded: list[str] = []

    def record(self, kind: str, event: str, **detail: Any) -> None:
        self.recorded.append(event)


class Stage:
    """A forwarder beside a keeper that starts real processes."""

    def __init__(self, directory: Path) -> None:
        self.keeper = ExecutingKeeper()
        self.environment = Environment(self.keeper, str(directory))
        self.keeper.report = self.environment.helpers.handle_exit_report
        self.events = Events()
        self.woken: list[tuple[str, int]] = []
        environment: Any = self.environment
        self.forwarding = Forwarding(environment, cast(Any, self.events))
        self.forwarding.on_wake = lambda *wake: self.woken.append(wake)
        self.waiting = WaitingListeners(environment)

    async def applied(self) -> None:
        """Wait until the forwarder has carried out all orders."""
        (helper,) = self.environment.helpers
        await (await helper.wait_until_up()).wait_until_performed()

    def await_order(self, port: int, **keys: Any) -> Order:
        """The order to keep connections waiting for a target at this port."""
        target = AwaitedTarget(key=KEY, address=("127.0.0.1", str(port)), seconds=20.0, **keys)
        return Order(to_json(target), self.waiting.of(KEY).sock, [os.geteuid()])

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of a client that connects where HAProxy does."""
        name = self.waiting.of(KEY).address.removeprefix("abns@")
        place: Any = b"\0" + name.encode().ljust(107, b"\0")
        return await asyncio.open_unix_connection(place)

    async def ask(self, text: str) -> str:
        """What such a client gets."""
        reader, writer = await self.connect()
        with contextlib.closing(writer):
            writer.write(text.encode())
            writer.write_eof()
            return (await reader.read()).decode()


@contextlib.asynccontextmanager
async def stage(directory: Path) -> AsyncIterator[Stage]:
    made = Stage(directory)
    try:
        yield made
    finally:
        await made.forwarding.aclose()
        made.waiting.close_others(())
        for each in made.keeper.ends:
            each.close()
        await made.keeper.wait_for_exits()


@contextlib.asynccontextmanager
async def target(port: int = 0) -> AsyncIterator[int]:
    """A target that answers what it got with "got " before it; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"got ")
        writer.write(await reader.read())
        writer.close()

    async with listening(serve, "127.0.0.1", port) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.loop(run=run)
async def test_connection_waits_until_its_target_can_be_reached(tmp_path: Path) -> None:
    async with stage(tmp_path) as made, target() as port:
        made.forwarding.apply({KEY: made.await_order(port, down=True)})
        asked = asyncio.ensure_future(made.ask("x"))
        await until(lambda: made.woken)
        assert made.woken == [(KEY, 1)]
        made.forwarding.apply({KEY: made.await_order(port)})
        assert await asked == "got x"


@pytest.mark.loop(run=run)
async def test_connections_wait_for_the_next_forwarder_when_one_is_killed(tmp_path: Path) -> None:
    async with stage(tmp_path) as made, target() as port:
        made.forwarding.apply({KEY: made.await_order(port)})
        await made.applied()
        os.kill(made.keeper.pids[-1], signal.SIGKILL)
        assert await made.ask("x") == "got x"
        assert made.events.recorded == ["forwarder ended"]


@pytest.mark.loop(run=run)
async def test_forwarder_of_another_version_gets_the_connections_that_wait_and_others_end_by_themselves(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as made, target() as port:
        made.forwarding.apply({KEY: made.await_order(port)})
        reader, writer = await made.connect()
        assert await reader.readexactly(4) == b"got "
        made.forwarding.apply({KEY: made.await_order(port, down=True)})
        asked = [asyncio.ensure_future(made.ask(f"{each}")) for each in range(20)]
        await until(lambda: len(made.woken) == 21)
        (first,) = made.keeper.pids
        (helper,) = made.environment.helpers
        helper.kind = replace(helper.kind, version="99.0")
        helper.reconcile()
        await until(lambda: len(made.woken) == 41)
        assert helper.pid != first
        made.forwarding.apply({KEY: made.await_order(port)})
        assert await asyncio.gather(*asked) == [f"got {each}" for each in range(20)]
        assert is_alive(first)
        writer.write(b"a")
        writer.write_eof()
        assert await reader.read() == b"a"
        writer.close()
        await until(lambda: not is_alive(first))


@pytest.mark.loop(run=run)
async def test_forwarder_ends_when_nothing_is_left_to_do(tmp_path: Path) -> None:
    async with stage(tmp_path) as made, target() as port:
        made.forwarding.apply({KEY: made.await_order(port)})
        await made.applied()
        made.forwarding.apply({})
        await made.keeper.wait_for_exits()


@pytest.mark.slow
@pytest.mark.loop(run=run)
async def test_copied_connection_outlives_its_order_and_the_link_of_a_replaced_forwarder(
    tmp_path: Path,
) -> None:
    """A route is removed, and then the supervisor is replaced: neither may cut a WebSocket."""
    async with stage(tmp_path) as made, target() as port:
        made.forwarding.apply({KEY: made.await_order(port)})
        reader, writer = await made.connect()
        assert await reader.readexactly(4) == b"got "
        (helper,) = made.environment.helpers
        process: Any = helper.process
        made.forwarding.apply({})
        await until(lambda: helper.process is None)
        process.link.close()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), FORWARDER.end_seconds + 1.0)
        writer.write(b"a")
        writer.write_eof()
        assert await reader.read() == b"a"
        writer.close()
        await made.keeper.wait_for_exits()


@pytest.mark.loop(run=run)
async def test_forwarder_goes_on_with_its_orders_until_the_supervisor_that_adopts_it_has_its_own(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as made, target() as port:
        made.forwarding.apply({KEY: made.await_order(port)})
        await made.applied()
        process: Any = next(iter(made.environment.helpers)).process
        environment: Any = made.environment
        Forwarding(environment, cast(Any, made.events)).use(process, is_new=False)
        await process.wait_until_performed()
        assert await made.ask("x") == "got x"


@pytest.mark.loop(run=run)
async def test_waiting_listeners_are_kept_for_the_next_supervisor(tmp_path: Path) -> None:
    class ListingKeeper(HelperKeeper):
        async def call(self, message: Any, fds: Any = ()) -> Any:
            if message["op"] == "list":
                names = sorted(name for name in self.entries if name > message["after"])
                return {"entries": [(name, None) for name in names]}, []
            return await super().call(message, fds)

    keeper = ListingKeeper()
    environment: Any = Environment(keeper, str(tmp_path))
    first, second = WaitingListeners(environment), WaitingListeners(environment)
    made, other = first.of(KEY), first.of("http://other")
    assert made.name != other.name
    first.close_others([KEY])
    await second.adopt()
    assert second.of(KEY).address == made.address
    assert os.fstat(second.of(KEY).sock.fileno()).st_ino == os.fstat(made.sock.fileno()).st_ino
    first.close_others(())
    second.close_others(())
    keeper.close()


@pytest.mark.loop(run=run)
async def test_order_of_an_earlier_supervisor_ends_when_the_next_one_does_not_repeat_it(
    tmp_path: Path,
) -> None:
    """A supervisor that has forgotten a target, because its file has changed meanwhile."""
    async with stage(tmp_path) as made:
        kept = made.await_order(1)
        made.forwarding.apply({KEY: kept})
        await made.applied()
        process: Any = next(iter(made.environment.helpers)).process
        with socket.create_server(("127.0.0.1", 0)) as earlier:
            content = {"t": "await", "key": "http://earlier", "value": kept.value, "uids": kept.uids}
            process.link.send(content, [earlier])
            await process.wait_until_performed()
            inode = os.fstat(earlier.fileno()).st_ino
        assert inode in open_sockets(process.pid)
        made.forwarding.use(process, is_new=False)
        await until(lambda: inode not in open_sockets(process.pid))
        assert os.fstat(kept.listener.fileno()).st_ino in open_sockets(process.pid)


def open_sockets(pid: int) -> set[int]:
    """The inodes of what the process has open."""
    inodes = set[int]()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(os.stat(each).st_ino)
    return inodes
