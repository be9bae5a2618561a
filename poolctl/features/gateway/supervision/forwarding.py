"""Runs the forwarder, gives it orders, and holds the listeners where connections wait for targets."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from poolctl.bootstrap import command
from poolctl.json_form import Table
from poolctl.keeper import fd_store, wire
from poolctl.monitor.event_queue import EventBus
from poolctl.platform import close_all
from poolctl.runners.helper_process import HelperKind, HelperOwner, HelperProcess
from poolctl.runners.process_link import LinkLost, stored_entries
from poolctl.supervisor.active_configuration import SupervisorContext

_BACKLOG = 4096
_HANDOVER_TIMEOUT = 5.0
# The key of the listener where HAProxy accepts requests of the replaced process; keys of targets are not empty.
NEXT_PROCESS = ""
# The length of the path in a sockaddr_un, to which HAProxy pads abstract names (`abns@`).
_PATH_BYTES = 108

logger = logging.getLogger("poolctl.supervisor")

FORWARDER = HelperKind(
    name="forwarder",
    label="the forwarder",
    argv=(*command(sys.executable, "features.gateway.forwarder"),),
    entry=fd_store.FORWARDER_LINK,
    # Restarted at once: meanwhile connections wait in the backlog.
    first_pause_seconds=0.0,
)


class Order(NamedTuple):
    """An order to await a target: its AwaitedTarget as a table, its listener, and the users who may connect."""

    value: Table
    listener: socket.socket
    uids: Sequence[int]


class ForwarderProcess(HelperProcess):
    """A forwarder. It may take any time to exit, as it copies connections of clients."""

    def end(self) -> None:
        self.stop_watching()
        self.link.send({"t": "end"})

    def close(self) -> None:
        self.kill_and_close()


class Forwarding(HelperOwner[ForwarderProcess]):
    """Runs the forwarder while it has orders. `on_wake` is called with each wake (see AwaitedTarget)."""

    def __init__(self, environment: SupervisorContext, events: EventBus) -> None:
        self.on_wake: Callable[[str, int], None] = lambda key, number: None
        self._events = events
        self._helper = environment.helpers.add(FORWARDER, self, ForwarderProcess)
        # None until they are known: an adopted forwarder keeps the orders of the previous supervisor.
        self._orders: Mapping[str, Order] | None = None  # by target
        self._sent: dict[str, Order] = {}

    def apply(self, orders: Mapping[str, Order]) -> None:
        """Await only these targets. The caller owns the listeners. Does not wait."""
        toggles = self._orders is None or bool(orders) != bool(self._orders)
        self._orders = dict(orders)
        if self._helper.process is not None:
            self._send_changes(self._helper.process, self._orders)
        if toggles:
            self._helper.reconcile()

    async def adopt(self) -> None:
        """Use the forwarder of an earlier supervisor, if there is one. Raises LinkLost."""
        await self._helper.adopt()

    async def aclose(self) -> None:
        """End the forwarder."""
        await self._helper.aclose()

    # The helper's owner.

    async def settings(self) -> str | None:
        return "" if self._orders else None

    def use(self, process: ForwarderProcess, *, is_new: bool) -> None:
        self._sent = {}
        if self._orders is not None:
            self._send_changes(process, self._orders)

    async def retire(self, process: ForwarderProcess) -> None:
        try:
            async with asyncio.timeout(_HANDOVER_TIMEOUT):
                while self._helper.process is not None:
                    answer, fds = await process.ask({"t": "give_waiting"})
                    self._helper.process.link.send({"t": "waiting", "keys": answer["keys"]}, fds)
                    close_all(fds)
                    if not fds:
                        break
        except (LinkLost, TimeoutError) as error:
            logger.warning("waiting connections of a replaced forwarder are not handed over: %r", error)
        finally:
            process.end()

    def received(self, message: wire.Message, fds: list[int]) -> None:
        super().received(message, fds)
        if message.get("t") == "wake":
            self.on_wake(str(message["key"]), int(message["number"]))

    def on_event(self, event: str, message: str, **detail: Any) -> None:
        self._events.record("pool", event, message=message, **detail)

    def _send_changes(self, process: ForwarderProcess, orders: Mapping[str, Order]) -> None:
        for key, order in orders.items():
            if self._sent.get(key) != order:
                content = {"t": "await", "key": key, "value": order.value, "uids": order.uids}
                process.link.send(content, [order.listener])
        if self._sent.keys() - orders.keys() or not self._sent:
            process.link.send({"t": "keep", "keys": [*orders]})
        self._sent = dict(orders)


class WaitingListener(NamedTuple):
    """A listener where connections wait for a target. Its name is abstract (unix(7)) and random."""

    name: str
    sock: socket.socket

    @property
    def address(self) -> str:
        """The address in HAProxy's syntax."""
        return f"abns@{self.name}"


class WaitingListeners:
    """The listeners where connections wait, by target, and that of NEXT_PROCESS.

    The keeper holds them for the next supervisor.
    """

    def __init__(self, environment: SupervisorContext) -> None:
        self._keeper = environment.keeper
        self._open: dict[str, WaitingListener] = {}

    async def adopt(self) -> None:
        """Take over the previous supervisor's listeners from the keeper, unless open here. Raises LinkLost."""
        async for entry, _ in stored_entries(self._keeper, fd_store.GATEWAY_WAITING):
            key = entry.removeprefix(fd_store.GATEWAY_WAITING)
            if key not in self._open:
                reply, (fd,) = await self._keeper.call({"op": "get", "name": entry})
                self._open[key] = WaitingListener(reply["meta"]["name"], socket.socket(fileno=fd))

    @property
    def keys(self) -> Set[str]:
        """The targets that have a listener."""
        return self._open.keys() - {NEXT_PROCESS}

    def of(self, key: str) -> WaitingListener:
        """The listener for this target; it is opened if necessary."""
        if key not in self._open:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            name = f"poolctl-{os.getpid()}-{secrets.token_hex(8)}"
            sock.bind(b"\0" + name.encode().ljust(_PATH_BYTES - 1, b"\0"))
            sock.listen(_BACKLOG)
            sock.setblocking(False)
            self._open[key] = WaitingListener(name, sock)
            entry = f"{fd_store.GATEWAY_WAITING}{key}"
            self._keeper.send({"op": "put", "name": entry, "meta": {"name": name}}, [sock])
        return self._open[key]

    def close_others(self, keys: Collection[str]) -> None:
        """Close the listeners of all other targets."""
        self._close(self.keys - {*keys})

    def close(self) -> None:
        """Close all listeners."""
        self._close([*self._open])

    def _close(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._keeper.send({"op": "drop", "name": f"{fd_store.GATEWAY_WAITING}{key}"})
            self._open.pop(key).sock.close()
