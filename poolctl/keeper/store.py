"""What the keeper holds: named entries with descriptors."""

from __future__ import annotations

import itertools
import json
import os

from .. import __version__
from ..platform import (
    process_start,
)
from . import fd_store, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Entries of workers, and of the process groups that exited workers have left.
WORKERS = (fd_store.WORKER, fd_store.LEFT_GROUP)

_MAX_PAGE_ROWS = 200
_MAX_PAGE_BYTES = wire.MAX_PACKET_BYTES // 2


class Store:
    """Named entries, each with a few descriptors and a small JSON value that describes them."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Any, list[int]]] = {}

    @property
    def holds_work(self) -> bool:
        """Whether the store holds sockets or workers (names with a colon), not only inherited descriptors and state."""
        return any(":" in name for name in self._entries)

    def put(self, name: str, meta: object, fds: list[int]) -> None:
        """Store `fds` under `name`, and take ownership of them. An earlier entry of this name is closed."""
        self.drop(name)
        self._entries[name] = (meta, fds)

    def replace_meta(self, name: str, meta: object) -> None:
        """Replace the value of an entry, if it exists."""
        if name in self._entries:
            self._entries[name] = (meta, self._entries[name][1])

    def get(self, name: str) -> tuple[Any, list[int]] | None:
        """The value and the descriptors of the entry `name`, which still owns them; None if there is no such entry."""
        return self._entries.get(name)

    def drop(self, name: str) -> None:
        """Close and remove the entry `name`, if it exists."""
        _, fds = self._entries.pop(name, (None, []))
        for fd in fds:
            wire.close_with_unread_descriptors(fd)

    def values(self, *prefixes: str) -> list[Any]:
        """The values of the entries with a name that starts with one of `prefixes`."""
        return [value for name, (value, _) in self._entries.items() if name.startswith(prefixes)]

    def keeps_group(self, pid: int) -> bool:
        """Whether the process is a worker, and its process group keeps running when it exits."""
        return any(meta["pid"] == pid and meta.get("keeps_group") for meta in self.values(*WORKERS))

    def release_to_another_version(self) -> None:
        """Drop the zygotes, and clear the marks of helpers: a supervisor of another version starts its own."""
        self.clear(*fd_store.OF_THE_VERSION)
        for meta, _ in self._entries.values():
            if isinstance(meta, dict) and "mark" in meta:
                meta["mark"] = ""

    def rows(self) -> list[tuple[str, object, list[int]]]:
        """All entries, as tuples of name, value and descriptors. The store still owns the descriptors."""
        return [(name, value, fds) for name, (value, fds) in self._entries.items()]

    def clear(self, *prefixes: str) -> None:
        """Close and remove the entries whose names start with one of `prefixes`; without an argument all of them."""
        for name in list(self._entries):
            if name.startswith(prefixes or ("",)):
                self.drop(name)

    def page(self, after: str) -> list[list[object]]:
        """`[name, value]` rows after the name `after`, in name order: as many as fit into a packet, at most 200."""
        names = sorted(name for name in self._entries if name > after)[:_MAX_PAGE_ROWS]
        rows = [[name, self._entries[name][0]] for name in names]
        sizes = itertools.accumulate(len(json.dumps(row)) for row in rows)
        return rows[: max(1, sum(size <= _MAX_PAGE_BYTES for size in sizes))]


def fill_and_find_supervisor(store: Store, plan: wire.Message) -> tuple[int, int] | None:
    """Put the descriptors in `plan` into the store. Return the supervisor's pid and link, or None if it is not running.

    A child whose pid is 0 in the plan could not be started: the store gets no entry for it.
    """
    control, names = plan["control"], plan["inherited"]
    lifeline, lock = plan.get("lifeline", -1), plan.get("lock", -1)
    first = max(control, lifeline, lock) + 1
    put_close_on_exec(store, fd_store.CONTROL, None, [control])
    for name, fd in ((fd_store.LIFELINE, lifeline), (fd_store.LOCK, lock)):
        if fd >= 0:
            put_close_on_exec(store, name, None, [fd])
    inherited = [*zip(names, range(first, first + len(names)), strict=True)]
    if unit_sockets := [(name, fd) for name, fd in inherited if not is_returned(name)]:
        put_close_on_exec(
            store, fd_store.INHERITED, [name for name, _ in unit_sockets], [fd for _, fd in unit_sockets]
        )
    for returned in sorted({name for name in names if is_returned(name)}):
        put_close_on_exec(store, returned, None, [fd for name, fd in inherited if name == returned])
    supervisor = None
    links = itertools.count(first + len(names))
    for name, pid, link in zip(plan["begun"], plan["pids"], links, strict=False):
        if not pid:
            os.close(link)
        elif name == fd_store.SUPERVISOR:
            supervisor = pid, link
        else:
            # Workers inherit a zygote's environment: the supervisor decides whether it matches.
            without = plan.get("without", [])
            meta = {"without": without, "pid": pid, "start": process_start(pid), "mark": __version__}
            put_close_on_exec(store, name, meta, [link])
    return supervisor


def is_returned(name: str) -> bool:
    """Whether this is the name of listeners that an earlier run of a pool has stored in the service manager."""
    digits = name.removeprefix(fd_store.RETURNED)
    return name != digits and len(digits) == fd_store.RETURNED_DIGITS and not digits.strip("0123456789abcdef")


def put_close_on_exec(store: Store, name: str, meta: object, fds: list[int]) -> None:
    """Put an entry, and have its descriptors closed on exec, so that no child inherits them."""
    for fd in fds:
        os.set_inheritable(fd, False)
    store.put(name, meta, fds)
