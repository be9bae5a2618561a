"""The gateway's listening sockets, held here and by the keeper, so that they outlive the process that accepts."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection, Iterable, Mapping

from poolctl.address import overlaps, parse
from poolctl.errors import ServerError
from poolctl.json_form import from_json, to_json
from poolctl.keeper import fd_store
from poolctl.listeners.open_listener import Identity, close_listener, identity_of, refuse
from poolctl.runners.listener_opener import Opener
from poolctl.runners.process_link import Link, LinkLost

from ..process.settings import UDP, ListenerSettings


class GatewayListeners:
    """Open sockets by the keys of their listeners (see ListenerSettings), and `settings` by the same."""

    def __init__(self, keeper: Link) -> None:
        self._keeper = keeper
        self._opener = Opener()
        self.settings: dict[str, ListenerSettings] = {}
        self._open: dict[str, list[socket.socket]] = {}
        self._identities: dict[str, Identity | None] = {}

    def of(self, key: str) -> list[socket.socket]:
        """The sockets of this listener; empty if it is not open."""
        return self._open.get(key, [])

    async def adopt(self) -> None:
        """Take ownership of the previous supervisor's sockets in the keeper that are not open here."""
        after = fd_store.GATEWAY_LISTENER
        while True:
            reply, _ = await self._keeper.call({"op": "list", "after": after})
            names = [name for name, _ in reply["entries"] if name.startswith(fd_store.GATEWAY_LISTENER)]
            for name in names:
                key = name.removeprefix(fd_store.GATEWAY_LISTENER)
                if key in self._open:
                    continue
                reply, fds = await self._keeper.call({"op": "get", "name": name})
                self.settings[key] = from_json(ListenerSettings, reply["meta"])
                self._open[key] = [socket.socket(fileno=fd) for fd in fds]
                self._identities[key] = identity_of(self.settings[key].bind)
            if not names:
                return
            after = names[-1]

    async def open(self, wanted: Mapping[str, ListenerSettings]) -> list[ServerError]:
        """Open the listeners that are not open yet; returns the errors of the others."""
        problems = []
        for key, listener in wanted.items():
            if key in self._open and self.settings[key].dual == listener.dual:
                if self.settings[key] != listener:
                    self._keep(key, listener)
                continue
            # A wider or narrower address would keep the port.
            outdated = [
                each
                for each, other in self.settings.items()
                if (each not in wanted or each == key) and _is_in_the_way(other, listener)
            ]
            former = [self.settings[each] for each in outdated]
            await self._close(outdated)
            try:
                await self._open_one(key, listener)
            except ServerError as error:
                problems.append(error)
                for each in former:
                    with contextlib.suppress(ServerError):
                        await self._open_one(each.key, each)
        return problems

    async def _open_one(self, key: str, listener: ListenerSettings) -> None:
        address = parse(listener.bind)
        if listener.dual:
            address = parse(f":{address.port}")
        if listener.protocol == UDP:
            sockets = await self._opener.open_datagram_sockets(address)
        else:
            sockets = await self._opener.listen(address)
        self._open[key] = sockets
        self._identities[key] = identity_of(listener.bind)
        self._keep(key, listener)

    def _keep(self, key: str, listener: ListenerSettings) -> None:
        self.settings[key] = listener
        name = f"{fd_store.GATEWAY_LISTENER}{key}"
        self._keeper.send({"op": "put", "name": name, "meta": to_json(listener)}, self._open[key])

    async def close_others(self, wanted: Collection[str]) -> None:
        """Close all listeners that are not wanted; connections to them are refused from now on."""
        await self._close([key for key in self._open if key not in wanted])

    async def _close(self, keys: Iterable[str]) -> None:
        for key in keys:
            del self.settings[key]
            sockets = self._open.pop(key)
            refuse(sockets)  # the gateway's process has them too
            close_listener(sockets, self._identities.pop(key))
            with contextlib.suppress(LinkLost):
                await self._keeper.call({"op": "drop", "name": f"{fd_store.GATEWAY_LISTENER}{key}"})

    def mark(self, key: str) -> tuple[int, ...]:
        """Distinguishes the sockets of this listener from others that had the same address before."""
        return tuple(os.fstat(sock.fileno()).st_ino for sock in self.of(key))


def _is_in_the_way(other: ListenerSettings, listener: ListenerSettings) -> bool:
    """Whether `other` has to be closed before this listener can be opened."""
    return (other.protocol == UDP) == (listener.protocol == UDP) and overlaps(
        parse(other.bind), parse(listener.bind)
    )
