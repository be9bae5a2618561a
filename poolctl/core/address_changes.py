"""Listeners while addresses change: where possible the new listener opens before the old listener closes.

An address may also go from one server to another, in a reload that renames a server or exchanges two. Its listener then
stays open: connections wait for its new server and are not refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from poolctl.address import overlaps
from poolctl.config import ServerConfig
from poolctl.runners.runner_protocol import Endpoints

from .decision_input import LEAVING, Listener
from .server_changes import Workqueue
from .server_entry import Entry


def same_listener(one: ServerConfig, other: ServerConfig) -> bool:
    """Whether the two configurations can be served from the same listening sockets."""
    return one is other or (
        tuple(one.address) == tuple(other.address)  # of one or of two families
        and bool(one.command) is bool(other.command)
        and one.binds_itself is other.binds_itself
    )


class Addresses:
    """Tracks which server holds or waits for which address, and queues servers that can continue.

    Maintains the entries' `bound`, `former` and `vacates`.
    """

    def __init__(self, queue: Workqueue) -> None:
        self._queue = queue
        # Keyed by listener key: the entries that have the address in their configuration.
        self._claims: dict[str, dict[str, Entry]] = defaultdict(dict)
        self._leaving: dict[str, Entry] = {}  # which have, or had, another address than the configured one
        self._waiting: dict[str, Entry] = {}
        self._kept: dict[str, ServerConfig] = {}  # open for a server that has not taken it over yet
        self._endpoints: dict[str, Sequence[str]] = {}  # bound addresses of open listeners, by key

    def claim(self, entry: Entry) -> None:
        """Register the configured address of the entry."""
        self._claims[entry.config.key][entry.name] = entry

    def waive(self, entry: Entry) -> None:
        """Remove the registration of the entry's configured address."""
        claims = self._claims[entry.config.key]
        claims.pop(entry.name, None)
        if not claims:
            del self._claims[entry.config.key]

    def endpoints(self, key: str) -> tuple[str, ...]:
        """The addresses that are bound for this key; empty when its listener is closed."""
        return tuple(self._endpoints.get(key, ()))

    def adopt(self, entry: Entry, config: ServerConfig, endpoints: Sequence[str] = ()) -> None:
        """Take over a listener that the previous supervisor opened for the entry, under this configuration."""
        listener, canary = entry.listener, entry.desired.canary
        self._endpoints[config.key] = endpoints
        if same_listener(config, entry.config):
            listener.state, listener.bound = Listener.OPEN, entry.config
        elif overlaps(config.address, entry.config.address):
            # The two listeners cannot be open at once; the move starts over.
            listener.state, listener.bound = Listener.OPEN, config
        elif canary is not None and same_listener(config, canary.config):
            return
        elif not any(same_listener(config, held) for held in listener.former):
            listener.former.append(config)
        if entry.removed or config is not entry.config:
            self.leave(entry)
        self._queue.touch(entry)

    def leave(self, entry: Entry) -> None:
        """Note that the entry is about to release its address."""
        self._leaving[entry.name] = entry

    def review(self, entry: Entry) -> None:
        """Update the entry after its configured address may have changed."""
        listener = entry.listener
        if listener.state in (Listener.OPENING, Listener.CLOSING) or entry.config.job:
            return
        for held in listener.former:
            if same_listener(held, entry.config):
                # Back to the old address: the replacement has failed.
                listener.former.remove(held)
                if listener.bound is not None:
                    listener.former.append(listener.bound)
                listener.bound, listener.state = held, Listener.OPEN
                return
        if listener.bound is None or same_listener(listener.bound, entry.config):
            listener.vacates = (
                listener.vacates
                and listener.bound is not None
                and self._wanted_by(entry, listener.bound) != []
            )
            return
        self._leaving[entry.name] = entry
        if overlaps(listener.bound.address, entry.config.address) or self._wanted_by(entry, listener.bound):
            listener.vacates = True
        else:
            listener.former.append(listener.bound)
            listener.bound, listener.state = None, Listener.CLOSED

    def may_open(self, entry: Entry) -> bool:
        """Whether the entry may open its listener, that is, no other listener is in the way."""
        if not self._leaving or entry.listener.state is not Listener.CLOSED:
            return True
        free = not any(self._in_the_way(entry, other) for other in self._leaving.values())
        if free:
            self._waiting.pop(entry.name, None)
        else:
            self._waiting[entry.name] = entry
        return free

    def may_close(self, entry: Entry) -> bool:
        """Whether the listener of an entry that is being removed may be closed.

        It stays open if another server is about to use it.
        """
        if not entry.removed or entry.listener.bound is None:
            return True
        return all(other.ready or other.failed for other in self._wanted_by(entry, entry.listener.bound))

    def neighbours(self, entry: Entry) -> list[Entry]:
        """The other entries that are configured with the entry's address, or wait for an address."""
        others = self._claims.get(entry.config.key, {}).values()
        return [other for other in (*others, *self._waiting.values()) if other is not entry]

    def give_up(self, entry: Entry, held: ServerConfig) -> bool:
        """Release a listener that the entry no longer needs.

        Returns whether to close it; it stays open if another server uses it or waits for it.
        """
        claimants = self._wanted_by(entry, held)
        if any(
            claimant.listener.bound is not None and same_listener(claimant.listener.bound, held)
            for claimant in claimants
        ):
            return False
        for claimant in claimants:
            self._kept[held.key] = held
            self._queue.touch(claimant)
        return not claimants

    def opened(self, entry: Entry, opened: Endpoints) -> None:
        """Note that the entry's configured listener is open."""
        self._endpoints[opened.key] = opened.addresses
        self._kept.pop(entry.config.key, None)

    def closed(self, key: str) -> None:
        """Note that the listener of this key is being closed."""
        self._endpoints.pop(key, None)

    def tidy(self, entry: Entry) -> list[ServerConfig]:
        """The former listeners of a resting entry, which must be closed. Also forgets finished moves."""
        if entry.name in self._leaving and not self._holds_more(entry):
            del self._leaving[entry.name]
            for waiting in self._waiting.values():
                self._queue.touch(waiting)
        if entry.at_rest:
            self._waiting.pop(entry.name, None)
            kept = self._kept.get(entry.config.key)
            if kept is not None and not self._wanted_by(entry, kept):
                return [self._kept.pop(kept.key)]
        return []

    def _wanted_by(self, entry: Entry, held: ServerConfig) -> list[Entry]:
        return [
            other
            for other in self._claims.get(held.key, {}).values()
            if other is not entry and other.wanted and same_listener(other.config, held)
        ]

    def _in_the_way(self, entry: Entry, other: Entry) -> bool:
        mine, listener = entry.config, other.listener
        held = [
            *listener.former,
            *listener.releasing,
            *([listener.bound] if listener.bound is not None and other is not entry else []),
        ]
        for each in held:
            if overlaps(each.address, mine.address) and not (other.removed and same_listener(each, mine)):
                return True
        # A draining worker may keep the port bound until it ends, which matters to a new listener only.
        return any(
            overlaps(worker.config.address, mine.address) and not same_listener(worker.config, mine)
            for worker in other.observed.workers.values()
        )

    def _holds_more(self, entry: Entry) -> bool:
        listener = entry.listener
        if (
            listener.former
            or listener.releasing
            or listener.vacates
            or (entry.rests and listener.bound is not None)
        ):
            return True
        return any(
            not same_listener(worker.config, entry.config) for worker in entry.observed.workers.values()
        )


def abandoned(entry: Entry) -> list[ServerConfig]:
    """The former listeners of the entry from which no worker accepts any longer."""
    listener = entry.listener
    if not listener.former:
        return []
    withdrawn = 0 if listener.withdrawn is None else listener.withdrawn.generation
    accepting = [
        worker.config
        for worker in entry.observed.workers.values()
        # A canary has connections in its backlog until the gateway knows that it leaves.
        if worker.phase not in LEAVING or (worker.generation == withdrawn and not worker.left)
    ]
    return [held for held in listener.former if not any(same_listener(held, each) for each in accepting)]
