"""The forwarder's process: carries out the supervisor's orders."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine
from typing import Any, Protocol

from poolctl.json_form import Table, from_json
from poolctl.keeper import wire
from poolctl.runners.supervised_process import LINK_FD, SupervisedProcess

from .waiting import AwaitedTarget, WaitingRoom

AWAIT = "await"
# How long connections may last after the order to end.
_DRAIN_SECONDS = 8.0
_AT_ONCE = 64  # connections in a message


class Item(Protocol):
    """The work of one order, with the order's sockets."""

    def change(self, value: Table) -> None:
        """Use this value of the order from now on."""

    def drain(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Stop using the sockets; returns when connections have ended, or after `seconds`."""


class Forwarder(SupervisedProcess):
    """Carries out orders, each with a `key` that is unique among those of its kind, a `value`, and sockets:

    - `await` (an AwaitedTarget, with `uids`): keep connections waiting for a target.

    An order with the sockets of an earlier one changes only the value. `keep` has the names of all orders that are
    still in force. `wake` is sent for each connection that begins to wait, with the key of its target and a number (see
    WaitingRoom).

    A replaced process answers each `give_waiting` with some of the connections that wait, finally with none; its
    successor gets them by `waiting`. After the order to end, it exits with the last connection that it copies.
    """

    def __init__(self, fd: int = LINK_FD) -> None:
        super().__init__(fd)
        self._items: dict[tuple[str, str], tuple[Item, list[int]]] = {}  # with the inodes of the sockets
        self._draining: set[asyncio.Task[None]] = set()
        self._is_replaced = False
        self._is_alone = asyncio.Event()  # set when keeper and supervisor are gone

    async def serve_supervisor(self) -> None:
        self._sock.setblocking(False)
        wire.send(self._sock, {"t": "up"})
        await super().serve_supervisor()

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        """Carry out an order."""
        if message["t"] == "keep":
            self._drop_others({(kind, key) for kind, key in message["names"]})
        elif message["t"] == "give_waiting":
            self._give_waiting(message["id"])
        elif message["t"] == "waiting":
            for key, fd in zip(message["keys"], fds, strict=True):
                self._admit(key, socket.socket(fileno=fd))
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

    @property
    def _rooms(self) -> dict[tuple[str, str], WaitingRoom]:
        return {name: item for name, (item, _) in self._items.items() if isinstance(item, WaitingRoom)}

    def _give_waiting(self, number: int) -> None:
        self._is_replaced = True
        keys, clients = list[str](), list[socket.socket]()
        for (_, key), room in self._rooms.items():
            clients += room.take_waiting(_AT_ONCE - len(clients))
            keys += [key] * (len(clients) - len(keys))
        self.link.send({"t": "waiting", "id": number, "keys": keys}, [each.fileno() for each in clients])
        for each in clients:
            each.close()

    def _admit(self, key: str, client: socket.socket) -> None:
        if (room := self._rooms.get((AWAIT, key))) is not None:
            room.admit(client)
        else:
            client.close()

    def _wake(self, key: str, number: int) -> None:
        self.link.send({"t": "wake", "key": key, "number": number})

    def on_link_lost(self) -> None:
        self._is_alone.set()
        super().on_link_lost()

    async def end_service(self) -> None:
        if self._is_replaced:
            await self._finish_connections()
        self._drop_others(set())
        if self._draining:
            await asyncio.wait(self._draining)

    async def _finish_connections(self) -> None:
        """Wait until the connections to targets have ended, or keeper and supervisor are gone."""
        rooms = self._rooms
        self._drop_others({*rooms})
        ends: list[asyncio.Future[Any]] = [
            asyncio.gather(*(room.finish() for room in rooms.values())),
            asyncio.ensure_future(self._is_alone.wait()),
        ]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
