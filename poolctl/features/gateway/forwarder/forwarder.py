"""The forwarder's process: carries out the supervisor's orders, and outlives keeper and supervisor."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from poolctl.json_form import Table, from_json
from poolctl.keeper import pool_files, wire
from poolctl.runners.supervised_process import LINK_FD, AdoptionMessages, SupervisedProcess

from .datagrams import DatagramRules, DatagramStream
from .waiting import AwaitedTarget, WaitingRoom

HOLD, STREAM, AWAIT = "hold", "stream", "await"
# How long connections and sessions may last after the order to end, when a successor serves.
_DRAIN_SECONDS = 8.0


class Item(Protocol):
    """The work of one order, with the order's sockets."""

    def change(self, value: Table) -> None:
        """Use this value of the order from now on."""

    def drain(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Stop using the sockets; returns when connections and sessions have ended, or after `seconds`."""


class HeldListener:
    """Duplicates of a listener of the gateway, for the next pool."""

    def __init__(self, value: Table, sockets: Sequence[socket.socket]) -> None:
        self.value = value
        self.sockets = sockets

    def change(self, value: Table) -> None:
        """Describe the listener by this value from now on."""
        self.value = value

    async def drain(self, seconds: float) -> None:
        """Close the duplicates."""
        for each in self.sockets:
            each.close()


class Stream:
    """The datagrams of a UDP stream."""

    def __init__(self, value: Table, sockets: Sequence[socket.socket]) -> None:
        self._datagrams = DatagramStream(sockets, from_json(DatagramRules, value))
        self.drain = self._datagrams.drain

    def change(self, value: Table) -> None:
        """Apply these rules."""
        self._datagrams.set_rules(from_json(DatagramRules, value))

    def report(self) -> Table:
        """The counts of the stream; its `failures` by target."""
        datagrams = self._datagrams
        return {**datagrams.counts, "open": len(datagrams), "failures": datagrams.failures}


class Forwarder(SupervisedProcess):
    """Carries out orders, each with a `key` that is unique among those of its kind, a `value`, and sockets:

    - `hold` (a ListenerSettings): keep duplicates of a listener of the gateway for the next pool.
    - `stream` (DatagramRules): forward the datagrams of a UDP stream.
    - `await` (an AwaitedTarget, with `uids`): keep connections waiting for a target.

    An order with the sockets of an earlier one changes only the value. `keep` has the names of all orders that are
    still in force, and `report` is answered with the counts of the streams. `wake` is sent for each connection that
    begins to wait, with the key of its target and a number (see WaitingRoom). `directory` is where the process can be
    adopted; without one, or without orders, it ends when keeper and supervisor are gone.
    """

    def __init__(self, directory: str = "", fd: int = LINK_FD) -> None:
        super().__init__(fd)
        self._directory = directory
        self._items: dict[tuple[str, str], tuple[Item, list[int]]] = {}  # with the inodes of the sockets
        self._draining: set[asyncio.Task[None]] = set()

    async def serve_supervisor(self) -> None:
        self._sock.setblocking(False)
        wire.send(self._sock, {"t": "up"})
        await super().serve_supervisor()

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        """Carry out an order."""
        if message["t"] == "keep":
            self._drop_others({(kind, key) for kind, key in message["names"]})
        elif message["t"] == "report":
            items = {key: item for (_, key), (item, _) in self._items.items() if isinstance(item, Stream)}
            found = {key: item.report() for key, item in items.items()}
            self.link.send({"t": "report", "id": message["id"], "streams": found})
        else:
            self._carry_out(message, [socket.socket(fileno=fd) for fd in fds])

    def _carry_out(self, order: wire.Message, sockets: list[socket.socket]) -> None:
        name, inodes = (order["t"], order["key"]), [os.fstat(each.fileno()).st_ino for each in sockets]
        before, known = self._items.get(name, (None, []))
        if before is not None and known == inodes:
            before.change(order["value"])
            for each in sockets:
                each.close()
            return
        if before is not None:
            self._drain(before)
        for each in sockets:
            each.setblocking(False)
        self._items[name] = self._item(order, sockets), inodes

    def _item(self, order: wire.Message, sockets: list[socket.socket]) -> Item:
        if order["t"] == HOLD:
            return HeldListener(order["value"], sockets)
        if order["t"] == STREAM:
            return Stream(order["value"], sockets)
        return WaitingRoom(
            sockets[0], from_json(AwaitedTarget, order["value"]), frozenset(order["uids"]), self._wake
        )

    def _drop_others(self, names: set[tuple[str, str]]) -> None:
        for name in self._items.keys() - names:
            item, _ = self._items.pop(name)
            self._drain(item)

    def _drain(self, item: Item) -> None:
        task = asyncio.ensure_future(item.drain(_DRAIN_SECONDS))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    def _wake(self, key: str, number: int) -> None:
        self.link.send({"t": "wake", "key": key, "number": number})

    def on_link_lost(self) -> None:
        # Without orders it is not in the keeper's store: its supervisor was replaced while it started.
        if self._directory and self._items:
            self.listen_for_adoption(self._directory, pool_files.FORWARDER)
        else:
            super().on_link_lost()

    def messages_for_adopter(self) -> AdoptionMessages:
        for item, _ in self._items.values():
            if isinstance(item, HeldListener):
                yield {"t": "listener", "listener": item.value}, item.sockets

    async def end_service(self) -> None:
        self._drop_others(set())
        if self._draining:
            await asyncio.wait(self._draining)
