"""The descriptor store: named descriptors that outlive the process that stored them (modelled on systemd's FDSTORE).

Only names of a pool's sockets and workers contain a colon: a keeper without a supervisor keeps running while it
holds any of them (`Store.holds_work`).
"""

from __future__ import annotations

import itertools
import json
import os

from ..platform import process_start
from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Passed to the pool when it starts.
CONTROL, LIFELINE, INHERITED = "control", "lifeline", "inherited"
# Helpers: the links to them, and the logger's move in progress. Zygotes belong to the version that started them:
# one per interpreter, one per application.
LOGGER, UNDERWAY = "logger", "logger-underway"
ACCEPTOR = "acceptor"
ZYGOTE, APP_ZYGOTE = "zygote ", "appzygote "
OF_THE_VERSION = (ZYGOTE, APP_ZYGOTE)
# Sockets and workers, named by a server's key, a worker's id, or a number.
LISTENER, ADOPTION, OUTPUT = "listener:", "adoption:", "output:"
WORKER, TALLY, HELD_CONNECTION = "worker:", "tally:", "visitor:"
# State that a supervisor leaves to its successor, and its own endpoints.
CONFIGURATION, WANTED, TOTALS = "configuration", "wanted", "totals"
CERTIFICATES = "certificates"
METRICS, OPERATOR = "metrics", "operator"
# The links to the gateway's process and to its zygote, its pair, the hosts' states, registered services, and its
# listeners by their keys.
GATEWAY_LINK, GATEWAY_PAIR, GATEWAY_HOSTS = "gateway link", "gateway pair", "gateway hosts"
GATEWAY_ZYGOTE = "gateway zygote"
REGISTRATIONS, REGISTRATION_ADDRESS = "registrations", "registration"
GATEWAY_LISTENER = "gateway listener "

# Not an entry, although the plan lists it among them: the supervisor is the client itself.
SUPERVISOR = "supervisor"

_PAGE = 200
_PAGE_BYTES = wire.MAX_MESSAGE_BYTES // 2


class Store:
    """Named entries, each with a few descriptors and a small JSON value that describes them."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Any, list[int]]] = {}

    @property
    def holds_work(self) -> bool:
        """Whether it holds sockets or workers, not only inherited descriptors and the supervisor's state."""
        return any(":" in name for name in self._entries)

    def put(self, name: str, meta: object, fds: list[int]) -> None:
        """Keep `fds` (owned by the store from now on) under `name`; replaces and closes an earlier entry."""
        self.drop(name)
        self._entries[name] = (meta, fds)

    def note(self, name: str, meta: object) -> None:
        """Replace the value of an entry, if it exists."""
        if name in self._entries:
            self._entries[name] = (meta, self._entries[name][1])

    def get(self, name: str) -> tuple[Any, list[int]] | None:
        """The value and the descriptors of `name`; they stay the store's."""
        return self._entries.get(name)

    def drop(self, name: str) -> None:
        """Close and remove the entry `name`, if it exists."""
        _, fds = self._entries.pop(name, (None, []))
        for fd in fds:
            wire.close(fd)

    def values(self, prefix: str) -> list[Any]:
        """The values of the entries whose names start with `prefix`."""
        return [value for name, (value, _) in self._entries.items() if name.startswith(prefix)]

    def rows(self) -> list[tuple[str, object, list[int]]]:
        """Every name with its value and its descriptors, which stay the store's."""
        return [(name, value, fds) for name, (value, fds) in self._entries.items()]

    def clear(self, *prefixes: str) -> None:
        """Close and remove the entries whose names start with one of `prefixes`; without an argument all of them."""
        for name in list(self._entries):
            if name.startswith(prefixes or ("",)):
                self.drop(name)

    def page(self, after: str) -> list[list[object]]:
        """`[name, value]` rows after the name `after`, in name order: as many as fit into a message, at most 200."""
        names = sorted(name for name in self._entries if name > after)[:_PAGE]
        rows = [[name, self._entries[name][0]] for name in names]
        sizes = itertools.accumulate(len(json.dumps(row)) for row in rows)
        return rows[: max(1, sum(size <= _PAGE_BYTES for size in sizes))]


def fill(store: Store, plan: wire.Message) -> tuple[int, int] | None:
    """Put the descriptors of the plan into the store. Returns the pid and link of a running supervisor, or None.

    The supervisor starts any helper that could not be started here when it needs it.
    """
    control, lifeline, names = plan["control"], plan.get("lifeline", -1), plan["inherited"]
    first = max(control, lifeline) + 1
    _keep(store, CONTROL, None, [control])
    if lifeline >= 0:
        _keep(store, LIFELINE, None, [lifeline])
    if names:
        _keep(store, INHERITED, names, list(range(first, first + len(names))))
    supervisor = None
    links = itertools.count(first + len(names))
    for name, pid, link in zip(plan["begun"], plan["pids"], links, strict=False):
        if not pid:
            os.close(link)
        elif name == SUPERVISOR:
            supervisor = pid, link
        else:
            # A zygote's workers inherit its environment: the supervisor decides whether it is the right one.
            meta = {"without": plan.get("without", []), "pid": pid, "start": process_start(pid)}
            _keep(store, name, meta if name.startswith(ZYGOTE) else None, [link])
    return supervisor


def _keep(store: Store, name: str, meta: object, fds: list[int]) -> None:
    for fd in fds:
        # Otherwise every started program would inherit it.
        os.set_inheritable(fd, False)
    store.put(name, meta, fds)
