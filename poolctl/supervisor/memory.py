"""What a supervisor leaves to its successor in the keeper's store: the configuration in force, and what was wanted."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Iterable
from typing import Any

from poolctl.config.model import ServerConfig
from poolctl.platform import read_file, sealed_file
from poolctl.runners.link import Link

from .entry import Entry

logger = logging.getLogger("poolctl.supervisor")

_REMEMBERED = (
    "wanted",
    "dismissed",
    "ignore_dependencies",
    "generation",
    "newest",
    "failed",
    "done",
    "restarts",
)


class Memory:
    """Two entries of the keeper's store, as files in memory that only this pool's processes can reach."""

    def __init__(self, keeper: Link) -> None:
        self._keeper = keeper
        self._last = b""

    async def servers(self) -> tuple[str, list[ServerConfig]] | None:
        """The pool's name and the servers as the supervisor before had loaded them; None if there was none."""
        content = await self._read("configuration")
        if content is None:
            return None
        try:
            name, servers = pickle.loads(content)
        except Exception:
            # Of another version: the files are the next best source, and the servers live on in any case.
            logger.exception("what the supervisor before left cannot be read")
            return None
        return name, servers

    def keep_servers(self, name: str, servers: list[ServerConfig]) -> None:
        """Leave the configuration that is in force, whatever becomes of its files."""
        self._write("configuration", pickle.dumps((name, servers)))

    async def recall(self, entries: dict[str, Entry]) -> None:
        """Give the entries what was wanted of them."""
        content = await self._read("wanted")
        for name, values in json.loads(content or b"{}").items():
            if name in entries:
                for key in _REMEMBERED:
                    setattr(entries[name], key, values[key])

    def remember(self, entries: Iterable[Entry]) -> None:
        """Leave what is wanted of the entries, if it has changed."""
        document: dict[str, Any] = {
            entry.name: {key: getattr(entry, key) for key in _REMEMBERED} for entry in entries
        }
        content = json.dumps(document).encode()
        if content != self._last:
            self._last = content
            self._write("wanted", content)

    def _write(self, name: str, content: bytes) -> None:
        fd = sealed_file(f"poolctl-{name}", content)
        try:
            self._keeper.send({"op": "put", "name": name}, [fd])
        finally:
            os.close(fd)

    async def _read(self, name: str) -> bytes | None:
        _, fds = await self._keeper.call({"op": "get", "name": name})
        if not fds:
            return None
        try:
            return read_file(fds[0])
        finally:
            os.close(fds[0])
