"""The pages on which the workers of one server see each other's open connections (see poolctl.worker.peer_counts).

A page is held by the workers; here it is kept only for later workers. A supervisor that adopts workers creates a new
page, and sends it to all.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from poolctl.config import ServerConfig
from poolctl.worker.peer_counts import new_page

from ..process_link import Descriptor, HasDescriptor


class Peer(Protocol):
    """A worker; `protocol` is its adoption pair's protocol, None without a pair."""

    server: ServerConfig
    protocol: str | None
    exited: asyncio.Future[Any]

    def share_page(self, page: HasDescriptor) -> None:
        """Let it see on this page the connections of its server's other workers, once it has begun."""


class PeerPages:
    """The page of each server with several workers, by its address. Only workers of one user share a page."""

    def __init__(self) -> None:
        self._pages: dict[str, tuple[str, Descriptor]] = {}
        self._workers: dict[str, list[Peer]] = {}

    def add(self, worker: Peer) -> None:
        """Send the worker its server's page, and also the first worker, if this is the second."""
        key, protocol = worker.server.key, worker.protocol
        if protocol is None:
            return
        peers = [each for each in self._workers.get(key, ()) if not each.exited.done()]
        peers.append(worker)
        self._workers[key] = peers
        if len(peers) < 2 and worker.server.workers < 2:
            return
        if key in self._pages and self._pages[key][0] != protocol:
            self._pages.pop(key)[1].close()
        if key not in self._pages:
            self._pages[key] = protocol, Descriptor(new_page())
        for each in peers:
            if each.protocol == protocol:
                each.share_page(self._pages[key][1])

    def close(self, key: str) -> None:
        """Forget the page of this address, and its workers."""
        self._workers.pop(key, None)
        if key in self._pages:
            self._pages.pop(key)[1].close()
