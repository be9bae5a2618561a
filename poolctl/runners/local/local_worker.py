"""The supervisor's view of a worker process: control socket, readiness, orders, exit.

A program that is not an ASGI application reports readiness through NOTIFY_SOCKET (sd_notify(3)), or is ready when it
accepts a connection.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Collection, Sequence, Set
from dataclasses import replace
from typing import Any

from poolctl import platform
from poolctl.address import Address
from poolctl.config import ServerConfig, masked_text
from poolctl.worker.process_setup import BEAT
from poolctl.worker.serving.connection_balancer import create_peer_counts_page

from .. import process_link
from ..process_link import Descriptor, HasDescriptor, Link, LinkHandler, Message, sanitized_text_or_empty
from ..runner_protocol import Exit, Placement, RunnerEventHandler, WorkerFailed
from ..worker_spec import missing_module_hint
from .children import Children, ProcessIdentity
from .notify_socket import NotifySocket
from .program_ports import wait_until_port_is_unused
from .tally_page import EventLoopIdleDetector, Tally

logger = logging.getLogger("poolctl.supervisor")

# The exit of a worker that ended with status 0 before it was adopted, perhaps ordered by the last supervisor.
_EXITED_UNOBSERVED = Exit(message="ended between two supervisors")
# Maximum time between the end of a worker's control socket and the report of its exit.
_END_SECONDS = 5.0
KILL_SECONDS = 5.0


class LocalWorker(LinkHandler):
    """A worker process of this machine.

    Its phases are futures, which several tasks may await: it has `begun` its work, `imported` its application, is ready
    (`answered`; raises WorkerFailed if it exits before), has `exited`. An exit completes all of them. `left` is done
    when it has stopped accepting, `group_ended` when no process of its group is waited for. `reported` is done once its
    exit status is reliable: an adopted worker may exit with 0 because the previous supervisor has ordered it to end.

    `control` is its control socket; None for a program, which can only be signalled. A program may report over `notify`
    that it is ready. `tally` is the page on which it counts; None for a program, and after the exit. `output` is the
    key of its output pipe. `handover_group` identifies its socket pair for handing over connections, if any (see
    server_sockets.handover_group). `hook` names the hook of its server that it runs. A `preloaded` worker was forked
    from a process that had already imported the application. `start` is the start time of its process. The process of
    a proxied server opens the address `private`; `server` has that address, and `config` the server's.
    """

    def __init__(
        self,
        children: Children,
        events: RunnerEventHandler,
        placement: Placement,
        server: ServerConfig,
        output: str,
        *,
        start: int | None,
        control: socket.socket | None = None,
        notify: NotifySocket | None = None,
        tally: Tally | None = None,
        handover_group: str | None = None,
        private: Address | None = None,
        hook: str = "",
        preloaded: bool = False,
        adopted: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._children = children
        self._events = events
        self.placement = placement
        self.config = server
        self.server = server if private is None else server.at_private_address(private)
        self.output = output
        self.process = ProcessIdentity(placement.pid or 0, start)
        self.handover_group = handover_group
        self.hook = hook
        self.preloaded = preloaded
        self.begun: asyncio.Future[None] = loop.create_future()
        self.imported: asyncio.Future[None] = loop.create_future()
        self.answered: asyncio.Future[None] = loop.create_future()
        self.left: asyncio.Future[None] = loop.create_future()
        self.exited: asyncio.Future[Exit] = loop.create_future()
        self.group_ended: asyncio.Future[None] = loop.create_future()
        self.reported: asyncio.Future[None] = loop.create_future()
        # Mark the exception as retrieved, because there may be no caller that awaits this future.
        self.answered.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.wrote_stacks = asyncio.Event()
        self.ready_at: float | None = None  # on the system's monotonic clock, which all processes share
        self.asked_to_end = False  # by a signal
        self.resting = ""  # why it does not accept: "new" (not allowed to yet), or the order that forbids it
        self.idle = False  # without traffic for its server's scale.idle
        self.expired = False  # it has served `max_requests` requests
        self.reason = ""  # why it fails, as it says, or why a program is killed
        self.missing_module = ""
        self._breach = ""  # how it broke the protocol
        # The inodes of the sockets that listened at its port before it was started.
        self.earlier_listeners: Set[int] = frozenset()
        self.standing_orders: dict[str, tuple[Sequence[HasDescriptor], Message]] = {}
        self.idle_check = EventLoopIdleDetector()
        self.tally = tally
        self.control = None if control is None else Link(control, self, trusted=False)
        self.notify_path = None if notify is None else notify.path
        if notify is not None:
            notify.start(self.mark_ready)
            self.exited.add_done_callback(lambda _: notify.close())
        if not adopted or (control is None and start and platform.process_start(self.process.pid) == start):
            _settle(self.reported)

    def received(self, message: Message, fds: Sequence[int] = ()) -> None:
        event = sanitized_text_or_empty(message, "event")
        if event == "ready":
            if process_link.flag_of(message, "leaving"):
                _settle(self.left)
            self.resting = sanitized_text_or_empty(message, "resting")
            _settle(self.reported)
            self.mark_ready()
        elif event == "expired":
            if self.server.http.max_requests is not None and not self.expired:
                self.expired = True
                self._events.expired(self.placement)
        elif event in ("idle", "busy"):
            self.idle = event == "idle"
            self._events.idle_changed(self.placement, self.idle)
        elif event == "left":
            _settle(self.left)
        elif event == "imported":
            _settle(self.imported)
        elif event == "stacks":
            self.wrote_stacks.set()
        elif event == "tls":
            if error := sanitized_text_or_empty(message, "error"):
                logger.error("%s: its certificate cannot be used: %s", self.placement.id, error)
        elif event == "failed":
            self.reason = masked_text(sanitized_text_or_empty(message, "message"))
            self.missing_module = sanitized_text_or_empty(message, "missing")

    def on_link_lost(self) -> None:
        """Called when the control socket is closed: the worker has exited, or can no longer be controlled."""
        if not self.exited.done():
            loop = asyncio.get_running_loop()
            limit = loop.call_later(_END_SECONDS, self.on_violation, "closed its control socket")
            self.exited.add_done_callback(lambda _: limit.cancel())

    def on_violation(self, violation: str) -> None:
        """Kill the worker, which violated the protocol (`violation` says how). This counts as an unexpected exit."""
        if not self._breach and not self.exited.done():
            self._breach = f"it {violation}"
            logger.warning(
                "killing worker %s (pid %s): %s", self.placement.id, self.placement.pid, self._breach
            )
            self._children.kill_group_after(self.process, self.exited, 0.0)

    def order(self, order: str, fds: Sequence[int | HasDescriptor] = (), **details: object) -> None:
        """Send an order to the worker (see WorkerProcess.perform). Has no effect on a program."""
        if self.control is not None:
            self.control.send({"order": order, **details}, fds)

    def order_to_begin(self) -> None:
        """Order the waiting process to begin its work."""
        self.order("go")
        for order, (fds, details) in self.standing_orders.items():
            self.order(order, fds, **details)
        _settle(self.begun)

    def give_standing_order(self, order: str, fds: Sequence[HasDescriptor] = (), **details: object) -> None:
        """Give an order that holds until the next one of its name. It is sent now, or when the worker begins."""
        self.standing_orders[order] = fds, details
        if self.begun.done():
            self.order(order, fds, **details)

    def request_beat(self, asked_ns: int) -> bool:
        """Request a heartbeat from the worker; False if it cannot be asked now."""
        if self.control is None or self.tally is None:
            return False
        self.tally.ask(asked_ns)
        return self.control.offer(BEAT)

    async def kill_and_wait(self, reason: str) -> None:
        """Kill the worker and its group, and wait for its exit, which has this reason if it has not ended by itself."""
        self.reason = reason
        self._children.kill_group_after(self.process, self.exited, 0.0)
        await asyncio.wait({self.exited})

    async def stop_accepting(self, receivers: str | None) -> None:
        """Stop the worker from accepting; return when it has stopped, or after drain_timeout.

        A worker that runs a command gets its stop signal, and may go on accepting until it exits. A worker that is not
        ready has hardly accepted anything: its limit is stop_timeout. For `receivers` see `_order_end`.
        """
        if self.left.done() or self.exited.done():
            return
        if self.control is None:
            if self.config.is_proxied and self.answered.done():
                await wait_until_port_is_unused(
                    self.server.address.port or 0, self.exited, self.server.drain_timeout
                )
            if self.server.listens:
                await self._ask_to_end()
            _settle(self.left)
        else:
            await self._order_end("drain", receivers)
        server = self.server
        limit = server.drain_timeout if self.answered.done() else server.stop_timeout
        either: set[asyncio.Future[Any]] = {self.left, self.exited}
        await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)

    async def drain(self, receivers: str | None) -> None:
        """Stop the worker from accepting; return when its connections are closed, or after drain_timeout.

        Returns at once for a program without a port, which has no connections. `receivers`: see `_order_end`.
        """
        until = asyncio.get_running_loop().time() + self.server.drain_timeout
        await self.stop_accepting(receivers)
        if self.server.listens and self.left.done():
            await asyncio.wait({self.exited}, timeout=until - asyncio.get_running_loop().time())

    async def stop(self, timeout_seconds: float, receivers: str | None) -> Exit:
        """Ask the worker to end, kill it after the timeout, and return its exit. For `receivers` see `_order_end`.

        The end of a program includes that of its process group, unless its `stop_group` is "leader". Raises
        TimeoutError if it does not end even when killed.
        """
        await self._order_end("stop", receivers)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._wait_until_ended()
        except TimeoutError:
            group = self.server.stop_group != "leader"
            await self._children.try_signal(self.process, self.exited, signal.SIGKILL, group=group)
            async with asyncio.timeout(KILL_SECONDS):
                exit_ = await self._wait_until_ended()
            return Exit.from_signal(signal.SIGKILL) if exit_.group_left else exit_

    async def _ask_to_end(self) -> None:
        """Send the stop signal once, unless the process has exited: then the rest of its group has got the signal."""
        if self.asked_to_end or self.exited.done():
            return
        self.asked_to_end = True
        group = self.server.stop_group == "together"
        number = self.server.stop_signal_number
        if not await self._children.try_signal(self.process, self.exited, number, group=group):
            self.asked_to_end = False  # the keeper is being replaced: it is asked again

    async def _wait_until_ended(self) -> Exit:
        exit_ = await asyncio.shield(self.exited)
        await asyncio.shield(self.group_ended)
        return exit_

    async def _order_end(self, order: str, receivers: str | None) -> None:
        """Order the worker to drain or to stop; a program, and a worker that may not read orders yet, gets a signal.

        `receivers` is the `handover_group` of the workers that stay; None if no worker stays. The worker hands its
        connections over to them only if its own is equal.
        """
        if self.control is not None:
            can_hand_over = receivers is not None and receivers == self.handover_group
            self.order(order, to="pair" if can_hand_over else "none")
            self._children.continue_now(self.process)
        if self.control is None or not self.answered.done():
            # A worker that is still importing its application reads no orders. A serving worker reads the order before
            # the signal, which then has no effect.
            await self._ask_to_end()

    async def become_ready_by(self, *signs: Awaitable[None]) -> None:
        """Wait for the first of these signs, and mark the worker as ready.

        Raises WorkerFailed if it exits before, and the exception of a sign.
        """
        tasks = {asyncio.ensure_future(sign) for sign in signs}
        try:
            await asyncio.wait({*tasks, self.answered}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        for task in tasks:
            if task.done():
                task.result()
        self.mark_ready()
        await asyncio.shield(self.answered)

    def mark_ready(self, at: float | None = None) -> None:
        """Mark the worker as ready since the monotonic time `at`, or now; has no effect once it has exited."""
        _settle(self.imported)
        if not self.answered.done():
            self.ready_at = time.monotonic() if at is None else at
            self.answered.set_result(None)

    def meta(self) -> Message:
        """The value of this worker's entry in the keeper's store, from which a later supervisor adopts it."""
        placement = self.placement
        return {
            "server": placement.server,
            "key": self.server.key,
            "generation": placement.generation,
            "index": placement.index,
            "pid": placement.pid,
            "start": self.process.start,
            "ready_at": self.ready_at,
            "output": self.output,
            "protocol": self.handover_group,
            "notify": self.notify_path,
            "stop_signal": self.server.stop_signal_number,
            **({"keeps_group": True} if self.server.command else {}),
            **({"hook": self.hook} if self.hook else {}),
        }

    def record_exit(self, exit_: Exit) -> None:
        """Record how the process exited, and complete all futures of this worker. A second call has no effect."""
        if self.exited.done():
            return
        if self.control is not None:
            # Its last messages may arrive after the report of its exit.
            self.control.dispatch_arrived_messages()
        if self._breach:
            exit_ = replace(exit_, message=f"{exit_.message}: {self._breach}")
        if exit_.ok and not (self.reported.done() or self.server.job or self.hook):
            exit_ = _EXITED_UNOBSERVED
        for future in (self.reported, self.begun, self.imported):
            _settle(future)
        self.exited.set_result(exit_)
        if not exit_.group_left or self.server.stop_group == "leader":
            _settle(self.group_ended)
        if not self.answered.done():
            hint = f"poolctl logs {self.server.name}"
            if exit_.ok and self.server.command and not self.server.job:
                hint = f"{_fix_for_early_end(self.server)}; {hint}"
            if self.missing_module:
                hint = f"{missing_module_hint(self.missing_module, self.server)}; {hint}"
            # A program that was to be killed may have ended by itself before.
            applies = self.control is not None or exit_.signal == signal.SIGKILL
            message = exit_.message_before_ready(self.reason if applies else "")
            self.answered.set_exception(WorkerFailed(message, hint=hint, exit=exit_))
        if self.control is not None:
            self.control.close()


def _fix_for_early_end(server: ServerConfig) -> str:
    """What may keep a program running that ended by itself with status 0 before it was ready."""
    fixes = ["keep it in the foreground"]
    if "stdin" not in server.model_fields_set:
        fixes.append('write stdin = "open" if it ends at the end of its input')
    if not server.listens:
        fixes.append("write job = true if it runs to its end")
    return f"{', '.join(fixes[:-1])}, or {fixes[-1]}" if len(fixes) > 1 else fixes[0]


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class RunnerWorkers(dict[str, LocalWorker]):
    """All workers by id; `of` returns a server's workers.

    The workers of one server share a memory page with their connection counts (see connection_balancer). This object
    keeps the page's descriptor, for workers that are added later. After a takeover, all workers get a new page. Changed
    only by `add` and `remove`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_key: dict[str, dict[LocalWorker, None]] = {}
        self._pages: dict[str, tuple[str, Descriptor]] = {}

    def add(self, worker: LocalWorker) -> None:
        """Add a worker. If its server is to have several workers, give all of them the page of connection counts."""
        key, group = worker.config.key, worker.handover_group
        self[worker.placement.id] = worker
        self._by_key.setdefault(key, {})[worker] = None
        if group is None:
            return
        receivers = [worker]
        if key in self._pages and self._pages[key][0] != group:
            self._pages.pop(key)[1].close()
        if key not in self._pages:
            receivers = [
                peer for peer in self._by_key[key] if peer.handover_group == group and not peer.exited.done()
            ]
            if len(receivers) < 2 and worker.server.workers < 2:
                return
            self._pages[key] = group, Descriptor(create_peer_counts_page())
        for receiver in receivers:
            receiver.give_standing_order("peers", [self._pages[key][1]])

    def remove(self, worker: LocalWorker) -> None:
        """Remove a worker that has exited. A second call has no effect."""
        if self.get(worker.placement.id) is worker:
            del self[worker.placement.id]
        key = worker.config.key
        workers = self._by_key.get(key, {})
        workers.pop(worker, None)
        if not workers:
            self._by_key.pop(key, None)
            if key in self._pages:
                self._pages.pop(key)[1].close()

    def of(self, key: str) -> Collection[LocalWorker]:
        """The workers of the server whose canonical address is `key`."""
        return self._by_key.get(key, ())

    def running_peers(self, worker: LocalWorker) -> list[LocalWorker]:
        """The other workers of the worker's server that have not exited."""
        return [peer for peer in self.of(worker.config.key) if peer is not worker and not peer.exited.done()]
