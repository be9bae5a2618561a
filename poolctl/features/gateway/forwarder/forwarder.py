"""The forwarder's process: carries out the supervisor's orders."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from poolctl.json_form import from_json
from poolctl.keeper import wire
from poolctl.runners.supervised_process import LINK_FD, SupervisedProcess

from .waiting import AwaitedTarget, WaitingRoom

# How long connections may last after the order to end.
_DRAIN_SECONDS = 8.0
_AT_ONCE = 64  # connections in a message


class Forwarder(SupervisedProcess):
    """Keeps connections waiting for targets, each ordered by `await` with an AwaitedTarget, its listener, and `uids`.

    An order with the listener of an earlier one changes only the target. `keep` has the keys of all targets that are
    still awaited. `wake` is sent for each connection that begins to wait, with the key of its target and a number (see
    WaitingRoom).

    A replaced process answers each `give_waiting` with some of the connections that wait, finally with none; its
    successor gets them by `waiting`. After the order to end, it exits with the last connection that it copies.
    """

    def __init__(self, fd: int = LINK_FD) -> None:
        super().__init__(fd)
        self._rooms: dict[str, tuple[WaitingRoom, int]] = {}  # with the inode of the listener
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
            self._drop_others({*message["keys"]})
        elif message["t"] == "give_waiting":
            self._give_waiting(message["id"])
        elif message["t"] == "waiting":
            for key, fd in zip(message["keys"], fds, strict=True):
                self._admit(key, socket.socket(fileno=fd))
        else:
            self._await(message, socket.socket(fileno=fds[0]))

    def _await(self, order: wire.Message, listener: socket.socket) -> None:
        key, inode = order["key"], os.fstat(listener.fileno()).st_ino
        before, known = self._rooms.get(key, (None, 0))
        if before is not None and known == inode:
            before.change(order["value"])
            listener.close()
            return
        if before is not None:
            self._drain(before)
        listener.setblocking(False)
        target = from_json(AwaitedTarget, order["value"])
        self._rooms[key] = WaitingRoom(listener, target, frozenset(order["uids"]), self._wake), inode

    def _drop_others(self, keys: set[str]) -> None:
        for key in self._rooms.keys() - keys:
            self._drain(self._rooms.pop(key)[0])

    def _drain(self, room: WaitingRoom) -> None:
        task = asyncio.ensure_future(room.drain(_DRAIN_SECONDS))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    def _give_waiting(self, number: int) -> None:
        self._is_replaced = True
        keys, clients = list[str](), list[socket.socket]()
        for key, (room, _) in self._rooms.items():
            clients += room.take_waiting(_AT_ONCE - len(clients))
            keys += [key] * (len(clients) - len(keys))
        self.link.send({"t": "waiting", "id": number, "keys": keys}, [each.fileno() for each in clients])
        for each in clients:
            each.close()

    def _admit(self, key: str, client: socket.socket) -> None:
        room, _ = self._rooms.get(key, (None, 0))
        if room is not None:
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
        ends: list[asyncio.Future[Any]] = [
            asyncio.gather(*(room.finish() for room, _ in self._rooms.values())),
            asyncio.ensure_future(self._is_alone.wait()),
        ]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
