"""The forwarder's process, which carries out the supervisor's orders."""

from __future__ import annotations

import asyncio
import os
import socket

from poolctl.json_form import from_json
from poolctl.keeper import wire
from poolctl.runners.supervised_process import LINK_FD, SupervisedProcess

from .waiting import AwaitedTarget, WaitingRoom

_BATCH_SIZE = 64  # connections in a message


class Forwarder(SupervisedProcess):
    """Holds connections until their targets can be reached.

    The message `await` has an AwaitedTarget, its listener and the allowed `uids`; with the same listener again it
    updates the target. `keep` has the keys of all targets that are still awaited. The forwarder sends `wake`, with the
    target's key and a number, for each connection that begins to wait (see WaitingRoom).

    A replaced process answers each `give_waiting` with a batch of waiting connections, an empty one at the end; its
    successor receives them as `waiting`. When told to stop, it exits once its last connection closes or the keeper, its
    parent, exits.
    """

    def __init__(self, fd: int = LINK_FD) -> None:
        super().__init__(fd)
        self._rooms: dict[str, tuple[WaitingRoom, int]] = {}  # with the inode of the listener
        # All open connections, including those to targets that are no longer awaited.
        self._connections: set[asyncio.Task[None]] = set()
        self._keeper_fd = os.pidfd_open(os.getppid())

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
                client, (room, _) = socket.socket(fileno=fd), self._rooms.get(key, (None, 0))
                room.admit(client) if room is not None else client.close()
        else:
            self._await(message, socket.socket(fileno=fds[0]))

    def _await(self, order: wire.Message, listener: socket.socket) -> None:
        key, inode = order["key"], os.fstat(listener.fileno()).st_ino
        room, inode_before = self._rooms.get(key, (None, 0))
        if room is not None and inode_before == inode:
            room.change(order["value"])
            listener.close()
            return
        if room is not None:
            room.stop_accepting()
        listener.setblocking(False)
        target = from_json(AwaitedTarget, order["value"])

        def wake(key: str, number: int) -> None:
            self.link.send({"t": "wake", "key": key, "number": number})

        room = WaitingRoom(listener, target, frozenset(order["uids"]), wake, self._connections)
        self._rooms[key] = room, inode

    def _drop_others(self, keys: set[str]) -> None:
        for key in self._rooms.keys() - keys:
            self._rooms.pop(key)[0].stop_accepting()

    def _give_waiting(self, number: int) -> None:
        keys, clients = list[str](), list[socket.socket]()
        for key, (room, _) in self._rooms.items():
            clients += room.take_waiting(_BATCH_SIZE - len(clients))
            keys += [key] * (len(clients) - len(keys))
        self.link.send({"t": "waiting", "id": number, "keys": keys}, [client.fileno() for client in clients])
        for client in clients:
            client.close()

    async def end_service(self) -> None:
        self._drop_others(set())
        loop = asyncio.get_running_loop()
        keeper_ended = loop.create_future()
        loop.add_reader(self._keeper_fd, keeper_ended.cancel)
        while self._connections and not keeper_ended.done():
            await asyncio.wait([*self._connections, keeper_ended], return_when=asyncio.FIRST_COMPLETED)
