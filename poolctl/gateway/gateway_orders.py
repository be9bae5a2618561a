"""Handling of the supervisor's messages in a gateway's process, for every program that serves the clients."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import ClassVar, Generic, Protocol, TypeVar

from poolctl.keeper import wire
from poolctl.runners.process_link import Link
from poolctl.runners.supervised_process import LINK_FD, Holdings, SupervisedProcess

from ..json_form import from_json, to_json
from .backends import Backends
from .endpoint import ProbeState, ServerFacts
from .host_orders import HostOrders
from .settings import ListenerSettings

Order = Callable[[wire.Message, list[int]], None]


class OwnedListener(Protocol):
    """A listener with its sockets."""

    @property
    def settings(self) -> ListenerSettings: ...

    @property
    def sockets(self) -> list[socket.socket]: ...


L = TypeVar("L", bound=OwnedListener)


class OrderedGateway(SupervisedProcess, Generic[L]):
    """Follows the supervisor's messages; each is one method, named after it, here or in the subclass.

    It keeps no state that the supervisor could not send again. After "resync" another supervisor does so, and state
    that it has not sent before "begin" is forgotten.
    """

    ORDERS: ClassVar[tuple[str, ...]] = (
        "settings", "pair", "hosts", "server", "forget", "certificate", "table", "listener", "unlisten", "resync",
        "begin", "withdraw", "host", "probed", "report", "figures", "drain",
    )  # fmt: skip
    host_orders: HostOrders  # made with the first settings

    @property
    def all_backends(self) -> Backends:
        """The backends of all routes."""
        raise NotImplementedError

    def __init__(self, fd: int = LINK_FD) -> None:
        super().__init__(fd)
        self._orders: dict[str, Order] = {name: getattr(self, f"_{name}") for name in self.ORDERS}
        self._own_pair: list[socket.socket] = []  # give, for the next supervisor, and take
        self._servers: dict[str, ServerFacts] = {}
        self._listeners: dict[str, L] = {}
        self._stale: set[tuple[str, str]] = set()  # the orders, with keys, that undo anything not sent again
        self._has_settings = self._begun = False

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        """See SupervisedProcess."""
        name = str(message.get("t"))
        order = self._orders.get(name)
        if order is None or not (self._has_settings or name == "settings"):
            for fd in fds:  # of another version, or for a gateway that does more
                os.close(fd)
            return
        order(message, fds)
        self._has_settings = True

    def holdings(self) -> Holdings:
        """See SupervisedProcess."""
        yield {"t": "pair"}, self._own_pair
        for listener in self._listeners.values():
            yield {"t": "listener", "listener": to_json(listener.settings)}, listener.sockets

    def adopted(self, link: Link) -> None:
        """See SupervisedProcess."""
        super().adopted(link)
        self.host_orders.report()

    def _resync(self, message: wire.Message, fds: list[int]) -> None:
        self._stale = {("forget", name) for name in self._servers}
        self._stale |= {("unlisten", key) for key in self._listeners}
        self.all_backends.forget_probes()

    def _forget_stale(self) -> None:
        for order, name in self._stale:
            self._orders[order]({"server": name, "key": name}, [])
        self._stale.clear()

    def _hosts(self, message: wire.Message, fds: list[int]) -> None:
        self.host_orders.restore(message["states"])

    def _probed(self, message: wire.Message, fds: list[int]) -> None:
        self.all_backends.probed(from_json(ProbeState, message["state"]))

    def _host(self, message: wire.Message, fds: list[int]) -> None:
        self.host_orders.follow(message)
