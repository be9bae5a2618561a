"""The last certificates of servers in use: new workers get them while the file holds an expired one."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from poolctl.config import ServerConfig, certificate_validity
from poolctl.keeper import fd_store
from poolctl.platform import read_file, sealed_file

from ..process_link import Link
from ..worker_spec import tls_contents

logger = logging.getLogger("poolctl.supervisor")

_GATHER_SECONDS = 0.1
_VERSION = 1  # of the record for a successor

_Files = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """A certificate, key and client CAs as read, with their paths and the certificate's expiry time."""

    files: _Files
    contents: list[bytes]
    ends: float | None


class Certificates:
    """The last certificate of each server, by the server's name.

    They are kept in memory and in the keeper's store for a successor, never on disk.
    """

    def __init__(self, keeper: Link) -> None:
        self._keeper = keeper
        self._given: dict[str, Given] = {}
        self._forced: dict[str, int] = {}  # the generation that gets the content of the server's files
        self._due: asyncio.TimerHandle | None = None

    def for_worker(self, server: ServerConfig, generation: int) -> Given:
        """The certificate for a new worker: from the files, or the server's last one if the files hold an expired one.

        A replacement of a valid certificate is kept once a worker is ready with it (`keep_if_ready`). Raises
        ServerError for a file that cannot be read.
        """
        found, before = _read(server), self._given.get(server.name)
        now = time.time()
        if before is None or before.files != found.files or before.ends is None or before.ends <= now:
            return self._remember(server, found)
        expired = found.ends is not None and found.ends <= now
        return before if expired and self._forced.get(server.name) != generation else found

    def keep_if_ready(
        self, server: ServerConfig, generation: int, given: Given, ready: asyncio.Future[None]
    ) -> None:
        """Keep the certificate of this generation's workers, if the finished future `ready` has no exception."""
        if ready.cancelled() or ready.exception() is not None:
            return
        if self._forced.get(server.name) == generation:
            del self._forced[server.name]
        self._remember(server, given)

    def renewed(self, server: ServerConfig) -> Given:
        """The current content of the files, for running workers. Raises ServerError for an unreadable file."""
        self._forced.pop(server.name, None)
        return self._remember(server, _read(server))

    def force(self, name: str, generation: int) -> None:
        """Send the server's certificate, even an expired one, to its workers of this generation."""
        self._forced[name] = generation

    async def recall(self, names: Collection[str]) -> None:
        """Load the certificates that the previous supervisor left for these servers."""
        _, fds = await self._keeper.call({"op": "get", "name": fd_store.CERTIFICATES})
        for fd in fds:
            try:
                left = _decoded(read_file(fd))
                self._given = {name: each for name, each in left.items() if name in names}
            except Exception:
                # Stored by a later version: the files are read, as at a first start.
                logger.exception("the previous supervisor's certificates cannot be read")
            finally:
                os.close(fd)

    def _remember(self, server: ServerConfig, given: Given) -> Given:
        if given.contents and self._given.get(server.name) != given:
            self._given[server.name] = given
            self._schedule_save()
        return given

    def _schedule_save(self) -> None:
        # The certificates of servers that start together are stored together.
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._save_for_successor)

    def _save_for_successor(self) -> None:
        self._due = None
        fd = sealed_file("poolctl-certificates", _encoded(self._given))
        try:
            self._keeper.send({"op": "put", "name": fd_store.CERTIFICATES}, [fd])
        finally:
            os.close(fd)


def _encoded(given: Mapping[str, Given]) -> bytes:
    """The certificates in a form that a successor of any later version can read."""
    rows = {
        name: {
            "files": each.files,
            "contents": [one.decode("latin-1") for one in each.contents],
            "ends": each.ends,
        }
        for name, each in given.items()
    }
    return json.dumps({"version": _VERSION, "certificates": rows}).encode()


def _decoded(content: bytes) -> dict[str, Given]:
    """The certificates by server name. Raises an exception for a format that this version does not know."""
    if not content.startswith(b"{"):
        # Of a supervisor before the record had a version.
        return {name: Given(*each) for name, each in pickle.loads(content).items()}
    record = json.loads(content)
    if record["version"] != _VERSION:
        raise ValueError(f"version {record['version']} of the record is not known")
    return {
        name: Given(tuple(row["files"]), [one.encode("latin-1") for one in row["contents"]], row["ends"])
        for name, row in record["certificates"].items()
    }


def _read(server: ServerConfig) -> Given:
    contents, tls = tls_contents(server), server.tls
    if not contents or not tls or tls is True:
        return Given((), [], None)
    times = certificate_validity(contents[0].decode("ascii", errors="replace"))
    files = (tls.cert, tls.key, tls.ca, tls.password_env)
    return Given(files, contents, None if times is None else times[1].timestamp())
