"""Which server has which address.

If a server's address changes, the new listener opens before the old listener closes, where possible. If a reload moves
an address to another server, by a rename or a swap, the listener stays open: connections wait for the new server and
are not refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from poolctl.address import overlaps
from poolctl.config import ServerConfig

from .server_entry import Entry
from .server_state import ListenerState
from .worker import LEAVING, WorkerPhase
from .workqueue import Workqueue


def same_listener(one: ServerConfig, other: ServerConfig) -> bool:
    """Whether the two configurations can be served from the same listening sockets."""
    return one is other or (
        tuple(one.address) == tuple(other.address)  # a single address, or one for each IP family
        and bool(one.command) is bool(other.command)
        and one.binds_itself is other.binds_itself
    )


def _can_coexist(one: ServerConfig, other: ServerConfig) -> bool:
    """Whether listeners of one server at these overlapping addresses can be open at once (SO_REUSEPORT, socket(7)).

    The new listener may listen() only when its workers accept from it, and a command cannot be made to wait for that.
    """
    return all(config.address.kind == "tcp" and not config.command for config in (one, other))


def _may_share(one: Entry, other: Entry) -> bool:
    """Whether workers of both servers can hold one listener during a handover, while only one server accepts.

    A command cannot be told to stop accepting. A server that sleeps or may not overlap never has an old and a new
    worker at once.
    """
    return all(
        entry.wanted and entry.may_overlap and not (entry.config.command or entry.sleepy)
        for entry in (one, other)
    )


class AddressRegistry:
    """Tracks which server holds or waits for which address; queues waiting servers when an address is released.

    Maintains the entries' `bound`, `previous_configs` and `must_reopen`.
    """

    def __init__(self, queue: Workqueue) -> None:
        self._queue = queue
        # By listener key: the entries that have the address in their configuration.
        self._registered: dict[str, dict[str, Entry]] = defaultdict(dict)
        self._leaving: dict[str, Entry] = {}  # servers that will release an address
        # By listener key: the last server that began to leave the address.
        self._last_holders: dict[str, Entry] = {}
        self._waiting: dict[str, Entry] = {}
        self._unclaimed: dict[str, ServerConfig] = {}  # by key: open listeners that wait for their new server
        self._endpoints: dict[str, Sequence[str]] = {}  # bound addresses of open listeners, by listener key

    def register(self, entry: Entry) -> None:
        """Register the configured address of the entry."""
        self._registered[entry.config.key][entry.name] = entry

    def unregister(self, entry: Entry) -> None:
        """Remove the registration of the entry's configured address."""
        registered = self._registered[entry.config.key]
        registered.pop(entry.name, None)
        if not registered:
            del self._registered[entry.config.key]

    def endpoints(self, key: str) -> tuple[str, ...]:
        """Return the addresses that the listener for the configured address `key` has bound; empty if it is closed."""
        return tuple(self._endpoints.get(key, ()))

    def adopt(self, entry: Entry, config: ServerConfig, endpoints: Sequence[str] = ()) -> None:
        """Take over a listener that the previous supervisor opened for the entry, under this configuration."""
        listener = entry.listener
        self._endpoints[config.key] = endpoints
        if same_listener(config, entry.config):
            listener.state, listener.bound = ListenerState.OPEN, entry.config
        elif overlaps(config.address, entry.config.address) and not _can_coexist(config, entry.config):
            # Both listeners cannot be open at once, so the change of address starts again.
            listener.state, listener.bound = ListenerState.OPEN, config
        elif not any(same_listener(config, held) for held in listener.previous_configs):
            self._add_previous(entry, config)
        if entry.removed or config is not entry.config:
            self.note_leaving(entry)
        self._queue.touch(entry)

    def note_leaving(self, entry: Entry) -> None:
        """Note that the entry will release an address. After the release, servers waiting for an address are queued."""
        self._leaving[entry.name] = entry

    def plan_address_change(self, entry: Entry) -> None:
        """Update the entry's listeners if its configured address has changed."""
        listener = entry.listener
        if listener.state in (ListenerState.OPENING, ListenerState.CLOSING) or entry.config.job:
            return
        for held in listener.previous_configs:
            if same_listener(held, entry.config):
                # The replacement has failed, and the server is back at its old address.
                listener.previous_configs.remove(held)
                if listener.bound is not None:
                    self._add_previous(entry, listener.bound)
                listener.bound, listener.state = held, ListenerState.OPEN
                return
        if listener.bound is not None and not same_listener(listener.bound, entry.config):
            if listener.must_reopen:
                return
            self._leaving[entry.name] = entry
            conflicts = overlaps(listener.bound.address, entry.config.address)
            claimants = self._other_claimants(entry, listener.bound)
            if (conflicts and not _can_coexist(listener.bound, entry.config)) or not all(
                _may_share(entry, claimant) for claimant in claimants
            ):
                listener.must_reopen = True
                return
            self._add_previous(entry, listener.bound)
            listener.bound, listener.state = None, ListenerState.CLOSED
        elif listener.must_reopen:
            listener.must_reopen = (
                listener.bound is not None and self._other_claimants(entry, listener.bound) != []
            )
        if listener.bound is None and listener.previous_configs and self._is_deadlocked(entry):
            # Reopen without overlap: its workers end first.
            listener.bound, listener.state = listener.previous_configs.pop(), ListenerState.OPEN
            listener.must_reopen = True

    def _is_deadlocked(self, entry: Entry) -> bool:
        """Whether the entry waits for an overlapping address, and the server there waits for the entry to move."""
        exchanging = self.exchange(entry)
        return any(
            (other in exchanging or self._is_blocked_by(other, entry))
            and any(
                overlaps(held.address, entry.config.address) and not same_listener(held, entry.config)
                for held in other.listener.previous_configs
            )
            for other in self._leaving.values()
            if other is not entry
        )

    def _add_previous(self, entry: Entry, held: ServerConfig) -> None:
        entry.listener.previous_configs.append(held)
        self._last_holders[held.key] = entry

    def may_open(self, entry: Entry) -> bool:
        """Whether the entry may open its listener: no other server uses the address.

        If another server uses it, the entry is queued again when an address is released.
        """
        if not self._leaving or entry.listener.state is not ListenerState.CLOSED:
            return True
        free = not any(self._is_blocked_by(entry, other) for other in self._leaving.values())
        if free:
            self._waiting.pop(entry.name, None)
        else:
            self._waiting[entry.name] = entry
        return free

    def waits_for_address(self, entry: Entry) -> bool:
        """Whether the entry cannot open its listener before another server has left its address."""
        return entry.listener.state is ListenerState.CLOSED and any(
            self._is_blocked_by(entry, other) for other in self._leaving.values() if other is not entry
        )

    def exchange(self, entry: Entry) -> list[Entry]:
        """The other servers in the entry's unfinished address swap, direct or circular.

        They leave their previous addresses together, once all of them are ready at the new ones.
        """
        members, pending = {entry.name: entry}, [entry]
        while pending:
            member = pending.pop()
            neighbours = [
                claimant
                for held in member.listener.previous_configs
                for claimant in self._other_claimants(member, held)
            ]
            leaver = self._last_holders.get(member.config.key, member)
            if any(same_listener(held, member.config) for held in leaver.listener.previous_configs):
                neighbours.append(leaver)
            for neighbour in neighbours:
                if neighbour.name not in members and _may_share(member, neighbour):
                    members[neighbour.name] = neighbour
                    pending.append(neighbour)
        return [member for member in members.values() if member is not entry]

    def may_accept(self, entry: Entry) -> bool:
        """Whether the entry's workers may accept: the server that leaves its address no longer accepts there."""
        leaver = self._last_holders.get(entry.config.key, entry)
        return leaver is entry or not any(
            same_listener(worker.config, entry.config)
            and not (worker.resting or worker.stopped_accepting or worker.phase is WorkerPhase.STOPPING)
            for worker in leaver.observed.workers.values()
        )

    def may_leave(self, entry: Entry) -> bool:
        """Whether all servers of the address swap are ready at their new addresses, or have failed."""
        return not entry.listener.previous_configs or all(
            other.has_ready_generation or other.failed or other.in_backoff for other in self.exchange(entry)
        )

    def other_holder(self, entry: Entry) -> Entry | None:
        """Another server that is configured for the entry's address and has its listener there, or None."""
        return next(
            (
                other
                for other in self._other_claimants(entry, entry.config)
                if other.listener.bound is not None and same_listener(other.listener.bound, entry.config)
            ),
            None,
        )

    def is_claimed(self, entry: Entry, config: ServerConfig) -> bool:
        """Whether another server is configured for the address in `config`, a previous one of the entry."""
        return bool(self._other_claimants(entry, config))

    def parties(self, entry: Entry) -> list[Entry]:
        """The servers that may wait for the entry in an address swap."""
        if not self._last_holders:
            return []
        keys = {worker.config.key for worker in entry.observed.workers.values()} - {entry.config.key}
        neighbours = [other for key in keys for other in self._registered.get(key, {}).values()]
        neighbours.append(self._last_holders.get(entry.config.key, entry))
        return [other for other in (*self.exchange(entry), *neighbours) if other is not entry]

    def touch_with_parties(self, entry: Entry) -> None:
        """Queue the entry, and the servers that wait for its workers before they leave an address or accept there."""
        self._queue.touch(entry, progressed=True)
        for other in self.parties(entry):
            self._queue.touch(other, progressed=True)

    def may_close(self, entry: Entry) -> bool:
        """Whether the listener of an entry that is being removed may be closed.

        It stays open if another server is about to use it.
        """
        if not entry.removed or entry.listener.bound is None:
            return True
        return all(
            other.ready or other.failed for other in self._other_claimants(entry, entry.listener.bound)
        )

    def address_contenders(self, entry: Entry) -> list[Entry]:
        """Return all other entries that have the same configured address or wait until any address is released."""
        registered = self._registered.get(entry.config.key, {}).values()
        return [other for other in (*registered, *self._waiting.values()) if other is not entry]

    def release_unless_claimed(self, entry: Entry, held: ServerConfig) -> bool:
        """Release a listener that the entry no longer needs.

        Returns whether to close it; it stays open if another server uses it or waits for it.
        """
        claimants = self._other_claimants(entry, held)
        if any(
            claimant.listener.bound is not None and same_listener(claimant.listener.bound, held)
            for claimant in claimants
        ):
            return False
        if any(
            same_listener(previous, held)
            for other in self._leaving.values()
            if other is not entry
            for previous in other.listener.previous_configs
        ):
            return False  # a server that still serves there releases the listener later
        for claimant in claimants:
            self._unclaimed[held.key] = held
            self._queue.touch(claimant)
        return not claimants

    def record_opened(self, entry: Entry, key: str, endpoints: tuple[str, ...]) -> None:
        """Note that the entry's configured listener is open, with this key and these addresses."""
        self._endpoints[key] = endpoints
        self._unclaimed.pop(entry.config.key, None)

    def record_closed(self, key: str) -> None:
        """Note that the listener of this key is being closed."""
        self._endpoints.pop(key, None)

    def take_unneeded_listener(self, entry: Entry) -> ServerConfig | None:
        """Return the listener that was kept open for this entry but is not needed, for the caller to close; else None.

        If the entry has released its previous addresses, also queues all servers that wait for an address.
        """
        if entry.name in self._leaving and not self._has_address_to_release(entry):
            del self._leaving[entry.name]
            if not self._leaving:
                self._last_holders.clear()
            for waiting in self._waiting.values():
                self._queue.touch(waiting)
        if entry.is_fully_stopped:
            self._waiting.pop(entry.name, None)
            listener = self._unclaimed.get(entry.config.key)
            if listener is not None and not self._other_claimants(entry, listener):
                self.record_closed(listener.key)
                return self._unclaimed.pop(listener.key)
        return None

    def _other_claimants(self, entry: Entry, held: ServerConfig) -> list[Entry]:
        return [
            other
            for other in self._registered.get(held.key, {}).values()
            if other is not entry and other.wanted and same_listener(other.config, held)
        ]

    def _is_blocked_by(self, entry: Entry, other: Entry) -> bool:
        mine, listener = entry.config, other.listener
        beside = listeners_beside(entry) if other is entry else []
        held = [
            *listener.previous_configs,
            *listener.releasing,
            *([listener.bound] if listener.bound is not None and other is not entry else []),
        ]
        for config in held:
            is_shared = same_listener(config, mine) and (
                other.removed or (not same_listener(config, other.config) and _may_share(entry, other))
            )
            if overlaps(config.address, mine.address) and not (is_shared or config in beside):
                return True
        # A draining worker may keep the port bound until it ends. This matters to a new listener only.
        return any(
            overlaps(worker.config.address, mine.address)
            and not any(same_listener(worker.config, config) for config in (mine, *beside))
            for worker in other.observed.workers.values()
        )

    def _has_address_to_release(self, entry: Entry) -> bool:
        listener = entry.listener
        if (
            listener.previous_configs
            or listener.releasing
            or listener.must_reopen
            or (entry.wants_no_worker and listener.bound is not None)
        ):
            return True
        return any(
            not same_listener(worker.config, entry.config) for worker in entry.observed.workers.values()
        )


def abandoned_listeners(entry: Entry) -> list[ServerConfig]:
    """The previous listeners of the entry from which no worker accepts any longer."""
    listener = entry.listener
    if not listener.previous_configs:
        return []
    in_use = [worker.config for worker in entry.observed.workers.values() if worker.phase not in LEAVING]
    return [
        held
        for held in listener.previous_configs
        if not any(same_listener(held, config) for config in in_use)
    ]


def listeners_beside(entry: Entry) -> list[ServerConfig]:
    """The previous listeners of the entry that stay open while it opens one at a new, overlapping address."""
    abandoned = abandoned_listeners(entry)
    return [
        held
        for held in entry.listener.previous_configs
        if overlaps(held.address, entry.config.address)
        and _can_coexist(held, entry.config)
        and held not in abandoned
    ]
